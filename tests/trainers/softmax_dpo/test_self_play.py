"""Rounds of self-play: what a round starts from, and how a run that was cut off goes on."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_rec import load_recommender
from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.evaluation.cost import read_cost
from hf_rec.hub import save_recommender
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.reference import describe_reference
from hf_rec.trainers.softmax_dpo.self_play import train_rounds
from hf_rec.trie.item_trie import ItemTrie


EVENTS = torch.randint(0, 12, (12, 3), generator=torch.Generator().manual_seed(0)).tolist()
ROWS = Dataset.from_dict({HISTORY: [event[:2] for event in EVENTS], TARGET: [event[2] for event in EVENTS]})


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_lm, bpe_tokenizer, tiny_catalog):
    folder = tmp_path_factory.mktemp("start")
    prompt = Prompt(bpe_tokenizer, tiny_catalog, max_length=200)
    trie = ItemTrie.build(prompt.encode_items())
    items = {"catalog": tiny_catalog, "prompt": prompt, "trie": trie, "tokenizer": bpe_tokenizer}
    save_recommender(folder, kind="language_model", model=tiny_lm(), **items)
    return folder


def arguments(folder, **kwargs):
    defaults = {
        "max_steps": 3,
        "negatives": "own_lists",
        "list_length": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return SoftmaxDPOConfig(str(folder), **defaults | kwargs)


def play(start, folder, num_rounds=2, callbacks=None, peft_config=None, **kwargs):
    args = arguments(folder, **kwargs)
    return train_rounds(start, args, num_rounds, train_dataset=ROWS, callbacks=callbacks, peft_config=peft_config)


def lists_of(folder):
    return json.loads((folder / "own_lists" / "lists.json").read_text())["sha256"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder, other):
    for name, weight in weights(other).items():
        assert torch.equal(weights(folder)[name], weight), name


@pytest.fixture(scope="module")
def played(tmp_path_factory, start):
    """Two rounds, not interrupted."""
    folder = tmp_path_factory.mktemp("played")
    trainer, cost = play(start, folder)
    assert cost == read_cost(folder)
    return folder


def test_a_round_starts_from_the_model_of_the_round_before_and_so_does_its_reference(played, start):
    references = [
        describe_reference(load_recommender(folder, device="cpu").model, None, has_new_adapter=False)["sha256"]
        for folder in (start, played / "round-1")
    ]
    assert references[0] != references[1]
    for folder, sha256 in zip((played / "round-1", played / "round-2"), references, strict=True):
        assert json.loads((folder / "reference.json").read_text())["sha256"] == sha256
    logs = json.loads((played / "round-2" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert logs[0]["loss"] == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-5)  # as far as its reference
    assert logs[0]["lists/length"] == 6.0


def test_other_weights_make_other_lists(played):
    assert lists_of(played / "round-1") != lists_of(played / "round-2")


def test_the_folder_of_the_run_is_the_model_of_the_last_round(played):
    assert_same_weights(played, played / "round-2")
    assert len(load_recommender(played, device="cpu").recommend([[100, 101]], k=3).item_ids[0]) == 3
    seconds = [read_cost(played / name)["seconds"] for name in ("round-1", "round-2")]
    assert read_cost(played)["seconds"] == pytest.approx(sum(seconds))


def test_a_seed_gives_the_same_rounds_again_and_another_seed_others(played, start, tmp_path):
    play(start, tmp_path / "again", num_rounds=1)
    assert_same_weights(tmp_path / "again", played / "round-1")
    play(start, tmp_path / "other", num_rounds=1, seed=7)
    one, other = (weights(folder)["transformer.wte.weight"] for folder in (tmp_path / "again", tmp_path / "other"))
    assert not torch.equal(one, other)


def test_finished_rounds_are_not_trained_again_and_more_can_follow(played, start, tmp_path):
    play(start, tmp_path, num_rounds=1)
    before = (tmp_path / "round-1" / "model.safetensors").stat().st_mtime_ns
    play(start, tmp_path, num_rounds=2)
    assert (tmp_path / "round-1" / "model.safetensors").stat().st_mtime_ns == before
    assert_same_weights(tmp_path, played)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    trainer, cost = play(start, tmp_path, num_rounds=2)
    assert trainer is None and cost == read_cost(tmp_path)
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed <= {tmp_path / "cost.json"}


class Killed(TrainerCallback):
    """Ends the process, as it were, in a step of a round."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if args.self_play_round == self.number and state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("number", "step"), [(1, 0), (2, 2)])
def test_a_run_that_was_cut_off_goes_on_in_its_round_with_the_same_lists(played, start, tmp_path, number, step):
    with pytest.raises(KeyboardInterrupt):
        play(start, tmp_path, number, callbacks=[Killed(number, step)])
    lists = lists_of(tmp_path / f"round-{number}")
    play(start, tmp_path, number, resume_from_checkpoint="last")
    assert lists_of(tmp_path / f"round-{number}") == lists == lists_of(played / f"round-{number}")
    assert_same_weights(tmp_path, played / f"round-{number}")


def test_an_adapter_is_made_in_the_first_round_and_trained_on(start, tmp_path):
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    play(start, tmp_path, peft_config=lora, max_steps=1)
    kinds = [json.loads((tmp_path / name / "reference.json").read_text())["kind"] for name in ("round-1", "round-2")]
    assert kinds == ["base", "adapter"]
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert load_recommender(tmp_path, device="cpu").catalog.ids[0] == 100


class TestBadInput:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_rounds": 0}, "`num_rounds` must be at least 1, got 0"),
            ({"negatives": "random"}, "Rounds of self-play need `negatives='own_lists'`, got 'random'"),
            ({"self_play_round": 2}, "`self_play_round` must be left out, got 2"),
            ({"resume_from_checkpoint": "run/checkpoint-1"}, "`resume_from_checkpoint` must be 'last'"),
            ({"push_to_hub": True}, "`push_to_hub` must be False"),
        ],
    )
    def test_settings_that_rounds_have_no_place_for_are_refused(self, start, tmp_path, kwargs, message):
        with pytest.raises(ValueError, match=message):
            play(start, tmp_path, **kwargs)
        assert not list(tmp_path.iterdir())

    def test_fewer_rounds_than_there_are_are_refused(self, played, start):
        with pytest.raises(ValueError, match="`num_rounds` is 1, but there is .*round-2"):
            play(start, played, num_rounds=1)

    def test_finished_rounds_of_another_start_or_with_other_settings_are_refused(self, played, start):
        with pytest.raises(ValueError, match="round-1 is a round that started from another model"):
            play(played / "round-1", played)
        with pytest.raises(
            ValueError, match=r"round-1 is a round with other settings: `beta` \(1.0 there, 0.1 here\)"
        ):
            play(start, played, beta=0.1)
