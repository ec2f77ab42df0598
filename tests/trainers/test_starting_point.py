"""Where MSL and Softmax-DPO start: from a recommender folder, an adapter or a model, by name or in memory."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from hf_rec import Catalog, MSLConfig, MSLTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer, load_recommender
from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import load
from hf_rec.models import weight_files
from hf_rec.trainers import starting_point


ROWS = Dataset.from_dict({HISTORY: [[1, 2], [3], [4, 5, 6], [7]], TARGET: [3, 4, 6, 8]})
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
METHODS = {"msl": (MSLTrainer, MSLConfig), "softmax_dpo": (SoftmaxDPOTrainer, SoftmaxDPOConfig)}


@pytest.fixture
def start_on(tmp_path):
    """A function that makes a trainer: `start_on("msl", model, catalog=..., **settings)`."""

    def build(method, model, folder="run", settings=None, **kwargs):
        trainer, config = METHODS[method]
        options = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        args = config(str(tmp_path / folder), **options | (settings or {}))
        return trainer(model, args=args, train_dataset=ROWS, **kwargs)

    return build


@pytest.fixture
def base(tmp_path, tiny_lm, bpe_tokenizer):
    """Folder of a Llama and its tokenizer."""
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    bpe_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def recommender_folder(start_on, base, tiny_catalog, bpe_tokenizer, tmp_path):
    """An MSL adapter with a prompt, a temperature and weights of its own."""
    trainer = start_on(
        "msl",
        base,
        folder="first",
        settings={"tau": 2.0, "learning_rate": 0.1},
        catalog=tiny_catalog,
        prompt=Prompt(bpe_tokenizer, tiny_catalog, form="alpaca", instruction="Name a film.", max_length=300),
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model()
    return tmp_path / "first"


@pytest.mark.parametrize("method", METHODS)
def test_a_recommender_folder_brings_prompt_trie_temperature_catalog_and_adapter(
    start_on, recommender_folder, tiny_catalog, method
):
    saved = load_recommender(recommender_folder, device="cpu")
    trainer = start_on(method, recommender_folder)  # a Path
    assert trainer.tau == 2.0
    assert trainer.prompt.sha256 == saved.prompt.sha256 and trainer.prompt.instruction == "Name a film."
    assert trainer.catalog.sha256 == tiny_catalog.sha256
    histories, candidates = [[101], [102, 103]], list(range(100, 112))
    for one, other in zip(
        trainer.recommender().score(histories, candidates), saved.score(histories, candidates), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-5)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert before and all(".default." in name for name in before)
    trainer.train()
    assert all(not torch.equal(trainer.model.get_parameter(name), weight) for name, weight in before.items())


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_without_a_recommender_is_trained_further(start_on, base, tiny_lm, tiny_catalog, method, tmp_path):
    model = get_peft_model(tiny_lm("llama"), copy.copy(LORA))
    model.peft_config["default"].base_model_name_or_path = base
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(tmp_path / "adapter")
    trainer = start_on(method, tmp_path / "adapter", catalog=tiny_catalog)
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert weights and all("lora_" in name for name in weights)
    trainer.train()


def test_a_hub_id_is_read_at_its_revision_and_its_adapter_trained(start_on, recommender_folder, monkeypatch):
    asked = []

    def downloaded(name, *file, revision=None, **_):
        asked.append((name, revision))
        return str(recommender_folder.joinpath(*file))

    monkeypatch.setattr(load, "hf_hub_download", downloaded)
    monkeypatch.setattr(weight_files, "snapshot_download", downloaded)
    trainer = start_on("msl", "someone/films", settings={"model_init_kwargs": {"revision": "v2"}})
    assert trainer.tau == 2.0 and set(asked) == {("someone/films", "v2")}


def test_a_temperature_that_is_given_wins_over_the_folders(start_on, recommender_folder):
    assert start_on("msl", recommender_folder, settings={"tau": 0.5}).tau == 0.5
    assert start_on("msl", recommender_folder, settings={"adaptive_tau": True, "tau_min": 2.5}).tau == 2.5


@pytest.mark.parametrize("name", ["item_path", "history_path"])
def test_item_paths_other_than_the_folders_are_refused(
    start_on, recommender_folder, bpe_tokenizer, tiny_catalog, name
):
    with pytest.raises(ValueError, match=f"`{name}` is 'id', but the prompt that .* comes with the model has 'title'"):
        start_on("msl", recommender_folder, settings={name: "id"})
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    with pytest.raises(ValueError, match=f"Leave `{name}` out, or start from a language model"):
        start_on("softmax_dpo", recommender_folder, settings={name: "digits"}, prompt=prompt)
    start_on("msl", recommender_folder, settings={"history_path": "title"})  # as it is


@pytest.mark.parametrize("method", METHODS)
def test_a_catalog_that_is_not_the_folders_is_refused(start_on, recommender_folder, method):
    other = Catalog.from_records([{"item_id": row, "title": f"Film {row}"} for row in range(12)])
    with pytest.raises(ValueError, match="`catalog` is not the one"):
        start_on(method, recommender_folder, catalog=other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_load_in_float32_unless_told_otherwise(
    start_on, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path, method, dtype, expected
):
    tiny_lm("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    bpe_tokenizer.save_pretrained(tmp_path / "half")
    settings = {} if dtype is None else {"model_init_kwargs": {"dtype": dtype}}
    trainer = start_on(method, str(tmp_path / "half"), catalog=tiny_catalog, settings=settings)
    assert trainer.model.dtype == expected


@pytest.mark.parametrize("method", METHODS)
def test_tokenizer_and_adapter_know_the_revision_of_the_model(start_on, base, tiny_catalog, monkeypatch, method):
    revisions, from_pretrained = [], AutoTokenizer.from_pretrained

    def recorded(name, **kwargs):
        revisions.append(kwargs.pop("revision", None))
        return from_pretrained(name, **kwargs)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", recorded)
    peft_config = LoraConfig(**{**LORA.to_dict(), "base_model_name_or_path": None})
    settings = {"model_init_kwargs": {"revision": "v2"}}
    trainer = start_on(method, base, settings=settings, catalog=tiny_catalog, peft_config=peft_config)
    assert revisions == ["v2"]
    assert trainer.model.peft_config["default"].revision == "v2"
    assert peft_config.revision is None


@pytest.mark.parametrize("method", METHODS)
def test_a_new_adapter_obeys_the_seed(start_on, base, tiny_catalog, method):
    found = []
    for seed in (7, 7, 8):
        torch.rand(3)  # the state that the caller left does not matter
        trainer = start_on(method, base, settings={"seed": seed}, catalog=tiny_catalog, peft_config=LORA)
        weights = trainer.model.named_parameters()
        found.append(torch.cat([weight.detach().flatten() for name, weight in weights if "lora_A" in name]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_second_adapter_on_an_adapter_is_refused(start_on, recommender_folder):
    with pytest.raises(ValueError, match="`peft_config` asks for a new adapter"):
        start_on("msl", recommender_folder, peft_config=LORA)


@pytest.mark.parametrize("method", METHODS)
def test_a_load_balancing_loss_that_would_be_left_out_is_refused(
    start_on, tiny_lm, bpe_tokenizer, tiny_catalog, method
):
    model = tiny_lm("llama")
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="`output_router_logits`"):
        start_on(method, model, processing_class=bpe_tokenizer, catalog=tiny_catalog)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_nan_weights_stops_the_run_at_its_first_step(
    start_on, tiny_lm, bpe_tokenizer, tiny_catalog, method, tmp_path
):
    model = tiny_lm("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0] = torch.nan
    trainer = start_on(method, model, processing_class=bpe_tokenizer, catalog=tiny_catalog, settings={"max_steps": 3})
    with pytest.raises(FloatingPointError, match="not finite at optimizer step 1.*`learning_rate`"):
        trainer.train()
    assert not list(tmp_path.glob("run/*.safetensors"))


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_loading_a_model_that_is_loaded_are_refused(
    start_on, tiny_lm, bpe_tokenizer, tiny_catalog, method
):
    settings = {"model_init_kwargs": {"dtype": "bfloat16"}}
    with pytest.raises(ValueError, match="`model_init_kwargs` goes with"):
        start_on(method, tiny_lm("llama"), settings=settings, processing_class=bpe_tokenizer, catalog=tiny_catalog)


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_a_prompt_that_is_there_already_are_named(start_on, recommender_folder, monkeypatch, method):
    lines = []
    monkeypatch.setattr(starting_point.logger, "warning", lines.append)
    start_on(method, recommender_folder)
    assert lines == []
    start_on(method, recommender_folder, settings={"max_length": 200, "prompt_form": "alpaca"})
    assert len(lines) == 1 and "`max_length` 200 (the prompt has 300)" in lines[0] and "prompt_form" not in lines[0]


def test_a_model_in_memory_without_a_name_needs_its_tokenizer(start_on, tiny_lm, tiny_catalog):
    with pytest.raises(ValueError, match="`processing_class` is required"):
        start_on("msl", tiny_lm("llama"), catalog=tiny_catalog)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({HISTORY: ["103", "108"], TARGET: "101"}, "`history` must hold catalog rows.*from '103' to '108'"),
        ({HISTORY: [1, 2], TARGET: 12}, "`target` must hold catalog rows, whole numbers from 0 to 11"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_raw_ids_and_rows_of_another_catalog_are_refused(
    start_on, tiny_lm, bpe_tokenizer, tiny_catalog, monkeypatch, method, row, message, streamed
):
    rows = Dataset.from_list([row])
    monkeypatch.setitem(globals(), "ROWS", rows.to_iterable_dataset() if streamed else rows)
    with pytest.raises(ValueError, match=f"{message}.*`catalog.rows"):
        start_on(method, tiny_lm("llama"), processing_class=bpe_tokenizer, catalog=tiny_catalog)
    assert callable(tiny_catalog.rows)
