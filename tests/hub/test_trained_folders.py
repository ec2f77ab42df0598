"""What trainers leave in their output folder, and what they upload of it."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.hub import load_recommender, read_index, save_recommender
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.recommenders.retrieval import RetrievalRecommender
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer


ROWS = Dataset.from_dict(
    {"history": [[0, 1], [2], [3, 4, 5], [6]], "target": [2, 3, 6, 7], "supervise_from": [1, 1, 1, 1]}
)
SETTINGS = {
    "max_steps": 2,
    "save_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
LORA = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


@pytest.fixture
def msl(tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path):
    base = tmp_path / "base"
    tiny_lm("llama").save_pretrained(base)

    def build(folder, peft_config=None, **settings):
        return MSLTrainer(
            AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False),
            MSLConfig(str(folder), **(SETTINGS | settings)),
            train_dataset=ROWS,
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
            peft_config=peft_config,
        )

    return build


def sequential(folder, catalog, **settings):
    return SequentialTrainer(
        SASRecModel(SASRecConfig(num_items=12, hidden_size=8)),
        SequentialConfig(str(folder), **(SETTINGS | settings)),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        catalog=catalog,
    )


def clutter(folder):
    for name in ("test/predictions.parquet", "runs/events.out", "training_args.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"user 7 {folder}")


@pytest.mark.parametrize("first", ["adapter", "full"])
def test_a_folder_that_is_used_again_holds_the_new_model_alone(msl, tmp_path, first):
    forms = [first, "full" if first == "adapter" else "adapter"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    for form in forms:
        trainer = msl(tmp_path / "run", peft_config=LORA if form == "adapter" else None)
        trainer.save_model()
        expected = trainer.recommender().recommend([[100, 101], []], k=5)
        loaded = load_recommender(tmp_path / "run", device="cpu")
        assert isinstance(loaded.model, PeftModel) == (form == "adapter")
        assert loaded.recommend([[100, 101], []], k=5).item_ids == expected.item_ids
        assert read_index(tmp_path / "run")["weights"] == form
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_every_checkpoint_and_the_best_model_load(tiny_catalog, tmp_path):
    trainer = sequential(
        tmp_path / "run", tiny_catalog, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-1", tmp_path / "run/checkpoint-2"):
        assert "model.safetensors" in read_index(folder)["files"]
        load_recommender(folder, device="cpu")


def test_a_best_checkpoint_that_was_damaged_is_named(tiny_catalog, tmp_path):
    trainer = sequential(
        tmp_path / "run", tiny_catalog, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True
    )
    trainer.train()
    path = Path(trainer.state.best_model_checkpoint, "model.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="model.safetensors is not as it was saved"):
        trainer._load_best_model()


def test_an_adapter_is_not_trained_into_the_folder_of_its_base(msl, tmp_path):
    with pytest.raises(ValueError, match="`output_dir` .* is the folder of the base model"):
        msl(tmp_path / "base", peft_config=LORA)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_uploaded(strategy, tmp_path):
    with pytest.raises(ValueError, match="`hub_strategy` must be 'end' or 'every_save'"):
        SequentialConfig(str(tmp_path), push_to_hub=True, hub_strategy=strategy)


def test_pushes_of_a_training_run_upload_what_a_push_of_its_folder_would(msl, fake_hub, tmp_path):
    clutter(tmp_path / "run")
    pushed = []
    trainer = msl(
        tmp_path / "run", peft_config=LORA, push_to_hub=True, hub_strategy="every_save", hub_model_id="films"
    )
    trainer.train()
    pushed.append(fake_hub.files)
    trainer.save_model()
    pushed.append(fake_hub.files)
    for files in pushed:
        assert {"adapter_model.safetensors", "recommender.json", "README.md", "tokenizer.json"} <= set(files)
        assert not [name for name in files if name.endswith((".parquet", ".pt", ".bin", ".txt")) or "/" in name]
        assert "training_args.json" not in files and "trainer_state.json" not in files
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert json.loads(pushed[-1]["adapter_config.json"])["base_model_name_or_path"] == "base"
    load_recommender(tmp_path / "run", device="cpu")


def test_a_model_without_a_catalog_is_pushed_without_what_lies_beside_it(fake_hub, tmp_path):
    clutter(tmp_path / "run")
    trainer = sequential(tmp_path / "run", None, push_to_hub=True, hub_model_id="films", hub_strategy="end")
    trainer.train()
    trainer.push_to_hub()
    assert {"config.json", "model.safetensors"} <= set(fake_hub.files)
    assert set(fake_hub.files) <= {"config.json", "model.safetensors", "generation_config.json", "README.md"}
    assert not Path(tmp_path / "run/recommender.json").exists()


def test_vectors_of_earlier_weights_do_not_stay_beside_new_ones(tiny_lm, tiny_catalog, bpe_tokenizer, tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path / "lm")
    SASRecModel(SASRecConfig(num_items=12, hidden_size=8)).save_pretrained(tmp_path / "teacher")
    prompt = RetrievalPrompt(bpe_tokenizer, tiny_catalog, max_length=256)

    def save(with_index):
        model = LLMSRecModel.from_frozen(tmp_path / "lm", tmp_path / "teacher", vector_size=4, head_size=8)
        model.save_pretrained(tmp_path / "run")
        if with_index:
            recommender = RetrievalRecommender(model, bpe_tokenizer, tiny_catalog, prompt)
            recommender.index.save(tmp_path / "run")
        save_recommender(
            tmp_path / "run",
            catalog=tiny_catalog,
            kind="llm_srec",
            prompt=prompt,
            tokenizer=bpe_tokenizer,
            scoring="exact",
        )
        return load_recommender(tmp_path / "run", device="cpu").recommend([[100]], k=3)

    save(with_index=True)
    assert "item_index.safetensors" in read_index(tmp_path / "run")["files"]
    save(with_index=False)  # other weights: they are drawn anew
    assert not (tmp_path / "run/item_index.safetensors").exists()
