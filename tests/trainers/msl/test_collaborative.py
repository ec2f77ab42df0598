"""Training with collaborative tokens: causal, packed, resumed, searched and saved as without them."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.hub import load_recommender
from hf_rec.item_token_ids import FIRST, UNKNOWN_ROW, USER
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.trainers.msl.collaborative import Hiding
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer


ROWS = Dataset.from_dict(
    {
        HISTORY: [[1, 2, 7, 4, 5, 1], [3], [4, 5, 6, 8, 1], [7, 8], [], [2, 2, 11, 0]],
        TARGET: [9, 10, 2, 5, 3, 6],
        SUPERVISE_FROM: [1, 1, 2, 1, 0, 1],
    }
)
HISTORIES = [[101, 102, 107, 104, 105], [103], [], [110, 100, 111]]


@pytest.fixture(scope="module")
def sequence_model(tiny_catalog):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = {"num_items": 12, "hidden_size": 8, "max_length": 4, "catalog_sha256": tiny_catalog.sha256}
        return SASRecModel(SASRecConfig(**settings)).eval()


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, sequence_model):
    def build(kind="gpt2", folder="run", peft_config=None, model=None, rows=ROWS, **kwargs):
        settings = {
            "max_steps": 3,
            "per_device_train_batch_size": 3,
            "learning_rate": 5e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        if model is None:
            settings |= {"collaborative": "state", "user_token": True}
            kwargs = {"sequence_model": sequence_model} | kwargs
        given = {name: kwargs.pop(name) for name in ("sequence_model",) if name in kwargs}
        return MSLTrainer(
            tiny_lm(kind) if model is None else model,
            MSLConfig(str(tmp_path / folder), **(settings | kwargs)),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=bpe_tokenizer if model is None else None,
            catalog=tiny_catalog,
            peft_config=peft_config,
            **given,
        )

    return build


def losses(trainer, rows):
    """Loss of each label of each row, run one by one."""
    trainer.model.eval()
    found = []
    for row in rows:
        batch = trainer.data_collator([row])
        found.append(trainer.compute_loss(trainer.model, batch, return_outputs=True)[1]["losses"].detach())
    return found


def test_later_events_do_not_change_the_losses_of_earlier_ones(make_trainer):
    trainer = make_trainer(supervise="all", user_token=False, loss_type="lml")
    encode = trainer.prompt.encode_example
    short, other = encode([1, 2, 7], 4, 1, "all"), encode([1, 2, 7, 4, 8], 6, 1, "all")
    first, second = losses(trainer, [short, other])
    torch.testing.assert_close(first, second[: len(first)], rtol=1e-5, atol=1e-6)
    trainer.model.zero_grad()
    earlier = losses(trainer, [encode([3, 2, 7], 4, 1, "all")])[0]
    assert (earlier[-1] - first[-1]).abs() > 1e-5  # while earlier ones do change those of later ones


@pytest.mark.parametrize(("kind", "supervise"), [("llama", "all"), ("gpt2", "last")])
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_on_their_own(make_trainer, kind, supervise):
    found = []
    for packing in (False, True):
        trainer = make_trainer(kind, packing=packing, supervise=supervise, collaborative="both")
        trainer.model.eval()
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(ROWS))])
        loss = trainer.compute_loss(trainer.model, batch)
        found.append((loss, torch.autograd.grad(loss, list(trainer.model.parameters())), batch))
    (loss, gradients, padded), (other_loss, other_gradients, packed) = found
    assert packed["input_ids"].shape[0] < padded["input_ids"].shape[0]
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


@pytest.mark.parametrize(("kind", "collaborative"), [("gpt2", "state"), ("llama", "both"), ("t5", "item")])
def test_the_search_finds_what_a_pass_over_each_item_finds(make_trainer, kind, collaborative):
    trainer = make_trainer(kind, collaborative=collaborative)
    trainer.train()
    recommender = trainer.recommender()
    found = recommender.recommend(HISTORIES, k=12, num_beams=12)
    assert found.certified.all()
    prompt, csr, model = trainer.prompt, trainer.csr, trainer.model.eval()
    for user, history in enumerate(HISTORIES):
        scores = {}
        for row in range(12):
            rows, path = trainer.catalog.rows(history), prompt.encode_item(row)
            encoded = prompt.encode_history(rows)
            if kind == "t5":
                decoder = torch.tensor([[model.config.decoder_start_token_id, *path]])
                logits = model(input_ids=torch.tensor([encoded]), decoder_input_ids=decoder).logits[0]
            else:
                logits = model(input_ids=torch.tensor([encoded + path])).logits[0, len(encoded) - 1 :]
            node, total = torch.tensor([csr.root]), 0.0
            for place, token in enumerate(path):
                token = torch.tensor([token])
                total -= masked_softmax_loss(logits[place : place + 1], token, csr.children(node), 1.0)[0].item()
                node = csr.step(node, token)
            scores[100 + row] = total
        expected = torch.tensor([scores[item] for item in found.item_ids[user]])
        torch.testing.assert_close(torch.from_numpy(found.scores[user]), expected, rtol=1e-4, atol=1e-4)
        alone = recommender.recommend([history], k=12, num_beams=12)
        assert alone.item_ids[0] == found.item_ids[user]


def test_generate_lists_what_the_search_lists(make_trainer):
    trainer = make_trainer()
    recommender = trainer.recommender()
    history = HISTORIES[0]
    prompt = torch.tensor([trainer.prompt.encode_history(trainer.catalog.rows(history))])
    found = trainer.model.eval().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=[recommender.logits_processor(prompt.shape[1])],
        num_beams=11,
        num_return_sequences=3,
        max_new_tokens=trainer.csr.max_depth,
        do_sample=False,
        length_penalty=0.0,
        repetition_penalty=1.0,
        eos_token_id=trainer.prompt.separator_ids[-1],
        pad_token_id=0,
    )
    listed = recommender.recommend([history], k=4, num_beams=11).item_ids[0]
    titles = [trainer.catalog.text(trainer.catalog.row(item)) for item in listed]
    written = [trainer.processing_class.decode(row[prompt.shape[1] :]).split("\n")[0] for row in found]
    assert written == list(dict.fromkeys(titles))[:3]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_folder_brings_the_tokens_along_and_is_trained_further(make_trainer, tiny_lm, tmp_path, adapter):
    base = tmp_path / "base"
    tiny_lm("llama").save_pretrained(base)
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if adapter else None
    trainer = make_trainer("llama", peft_config=config, collaborative="both")
    if adapter:
        trainer.model.peft_config["default"].base_model_name_or_path = str(base)
    trainer.train()
    trainer.save_model()
    expected = trainer.recommender().recommend(HISTORIES, k=12)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    loaded = load_recommender(moved, device="cpu")
    found = loaded.recommend(HISTORIES, k=12)
    assert found.item_ids == expected.item_ids
    torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(expected.scores), rtol=1e-5, atol=1e-5)
    weights = moved / ("adapter_model.safetensors" if adapter else "model.safetensors")
    with safe_open(weights, framework="pt") as file:
        assert any("item_tokens.items.0.weight" in name for name in file.keys())  # noqa: SIM118
    listed = json.loads((moved / "recommender.json").read_text())["files"]
    assert "item_tokens/sequence_model/model.safetensors" in listed
    further = make_trainer(model=str(moved), folder="further")
    assert further.prompt.sha256 == trainer.prompt.sha256
    trained = [weight for name, weight in further.model.named_parameters() if "item_tokens" in name]
    assert any(weight.requires_grad for weight in trained)
    further.train()


def test_a_damaged_sequence_model_is_named(make_trainer, tmp_path):
    make_trainer().save_model()
    path = tmp_path / "run" / "item_tokens" / "settings.json"
    path.write_text(path.read_text().replace("state", "both"))
    with pytest.raises(ValueError, match="settings.json is not as it was saved"):
        load_recommender(tmp_path / "run")


@pytest.mark.parametrize("adapter", [False, True])
def test_an_interrupted_run_resumes_to_the_same_weights(make_trainer, adapter):
    settings = {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_num_beams": 0,
        "cold_item_rate": 0.3,
        "curriculum": True,
    }
    if adapter:
        settings["peft_config"] = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    whole = make_trainer("llama", folder="whole", **settings)
    start = [weight.clone() for weight in whole.model.parameters()]
    whole.train()
    resumed = make_trainer("llama", folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    moved = 0
    for one, other, first in zip(whole.model.parameters(), resumed.model.parameters(), start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        moved += not torch.equal(one, first)
    assert moved > 5


def test_items_are_hidden_by_step_and_item_alone(make_trainer):
    trainer = make_trainer(cold_item_rate=0.5)
    start = ItemTokens.of(trainer.model).vocab_size
    ids = torch.tensor([[3, start + FIRST + 4, 5, start + 4, start + 6, start + 7, start + USER]])
    assert len({tuple(trainer._hiding.hide(ids, step, 20)[0].tolist()) for step in range(20)}) > 4
    for step in range(20):
        hidden = trainer._hiding.hide(ids, step, 20)[0]
        assert hidden[0] == 3 and hidden[2] == 5 and hidden[6] == start + USER
        assert (hidden[1] == start + FIRST + UNKNOWN_ROW) == (hidden[3] == start + UNKNOWN_ROW)
        assert torch.equal(hidden, trainer._hiding.hide(ids.repeat(3, 1), step, 20)[2])


def test_a_curriculum_shows_tokens_in_a_growing_share_of_steps():
    steps = 2_000
    shown = [Hiding(400, 0.0, True, seed=3).shows_any(step, steps) for step in range(steps)]
    assert not shown[0]
    for part in range(4):  # four deviations of a share of 500 draws are at most .09
        assert sum(shown[part * 500 : (part + 1) * 500]) / 500 == pytest.approx((part + 0.5) / 4, abs=0.09)
    assert shown[:200] != [Hiding(400, 0.0, True, seed=4).shows_any(step, steps) for step in range(200)]


def test_a_step_of_text_alone_tells_nothing_of_any_item(make_trainer):
    trainer = make_trainer(curriculum=True, logging_steps=1, max_steps=6)
    trainer.train()
    shown = [trainer._hiding.shows_any(step, 6) for step in range(6)]
    logged = [entry["collaborative"] for entry in trainer.state.log_history if "collaborative" in entry]
    assert logged == [float(one) for one in shown] and 0 < sum(shown) < 6
    batch = trainer.data_collator([trainer.train_dataset[0]])
    start = ItemTokens.of(trainer.model).vocab_size
    hidden = trainer._hiding.hide(batch["input_ids"], 0, 6)
    read = ItemTokens.of(trainer.model).knowledge.read(hidden, start)
    assert len(read.places) == 7 and not len(read.known_items) and not len(read.known_users)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_projector_is_trained_alone_under_a_frozen_language_model(make_trainer, adapter):
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if adapter else None
    trainer = make_trainer("llama", freeze_language_model=True, peft_config=config)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all("item_tokens." in name for name in moved)


def test_items_outside_of_training_are_unknown_and_counted(make_trainer, caplog):
    trainer = make_trainer(rows=ROWS.select([1, 2, 3, 4, 5]))
    known = ItemTokens.of(trainer.model).knowledge.known
    assert known.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert "1 of 12 items do not occur in the training rows" in caplog.text


class TestWhatIsRefused:
    def test_a_sequence_model_of_another_catalog(self, make_trainer):
        other = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, catalog_sha256="0" * 64))
        with pytest.raises(ValueError, match="`sequence_model`, which was made for another catalog"):
            make_trainer(sequence_model=other)
        with pytest.raises(ValueError, match="has 12 items, but `sequence_model` was made for 7"):
            make_trainer(sequence_model=SASRecModel(SASRecConfig(num_items=7)))

    def test_tokens_without_a_sequence_model_and_the_reverse(self, make_trainer, sequence_model):
        with pytest.raises(ValueError, match="`sequence_model` and `collaborative` go together"):
            make_trainer(sequence_model=None)
        with pytest.raises(ValueError, match="`sequence_model` and `collaborative` go together"):
            make_trainer(collaborative=None, user_token=False)

    def test_a_user_without_items(self, tmp_path):
        with pytest.raises(ValueError, match="`user_token` needs `collaborative`"):
            MSLConfig(str(tmp_path), user_token=True, use_cpu=True)

    @pytest.mark.parametrize("steps", [{"max_steps": 1}, {"num_train_epochs": 0}])
    def test_a_curriculum_without_steps(self, tmp_path, steps):
        with pytest.raises(ValueError, match="`curriculum` needs at least 2 steps"):
            MSLConfig(str(tmp_path), collaborative="item", curriculum=True, use_cpu=True, **steps)

    @pytest.mark.parametrize(
        ("setting", "value"), [("cold_item_rate", 0.5), ("curriculum", True), ("freeze_language_model", True)]
    )
    def test_hiding_what_is_not_there(self, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path, setting, value):
        with pytest.raises(ValueError, match=f"`{setting}` is .*, but there are no collaborative tokens"):
            args = MSLConfig(str(tmp_path), use_cpu=True, **{setting: value})
            MSLTrainer(tiny_lm(), args, train_dataset=ROWS, processing_class=bpe_tokenizer, catalog=tiny_catalog)

    def test_new_tokens_for_a_model_that_has_some(self, make_trainer, sequence_model, tmp_path):
        make_trainer().save_model()
        with pytest.raises(ValueError, match="but `model` has them already"):
            make_trainer(model=str(tmp_path / "run"), folder="b", collaborative="item", sequence_model=sequence_model)


@pytest.fixture
def aligned(sequence_model):
    """Joint vectors of items and texts; the items 8 and up have no events."""
    from hf_rec.models.a_llmrec.model import ALLMRecModel

    texts = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    return ALLMRecModel.from_parts(sequence_model, texts, seen_items=range(8), joint_size=6)


class TestJointVectors:
    def test_items_without_events_are_known_by_their_text(self, make_trainer, aligned, tmp_path):
        trainer = make_trainer(collaborative="joint", sequence_model=aligned, freeze_language_model=True)
        knowledge = ItemTokens.of(trainer.model).knowledge
        assert knowledge.known.all() and knowledge.item_size == 6
        torch.testing.assert_close(knowledge.table, aligned.joint_vectors())
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        changed = {
            name.split(".")[0]
            for name, value in trainer.model.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert changed == {"item_tokens"}
        trainer.save_model()
        found = load_recommender(tmp_path / "run", device="cpu").recommend(HISTORIES, k=4)
        assert found.item_ids == trainer.recommender().recommend(HISTORIES, k=4).item_ids

    def test_a_model_that_writes_titles_learns_to_read_them(self, make_trainer, aligned, tmp_path):
        titles = make_trainer(folder="titles", collaborative=None, user_token=False, sequence_model=None)
        titles.train()
        titles.save_model()
        settings = {"collaborative": "joint", "user_token": True, "sequence_model": aligned, "max_steps": 0}
        trainer = make_trainer(model=str(tmp_path / "titles"), **settings)
        prompt = trainer.prompt
        assert prompt.item_token_start is not None and prompt.user_token
        assert prompt.encode_items() == titles.prompt.encode_items()
        kept = [token for token in prompt.encode_history([3, 9]) if token < prompt.item_token_start]
        assert kept == titles.prompt.encode_history([3, 9])
        for name, value in titles.model.state_dict().items():
            torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=0, atol=0)
