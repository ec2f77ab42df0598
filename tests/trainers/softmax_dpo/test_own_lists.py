"""Self-play's lists: those of the model before its first step, kept with their hash, and what is drawn from them."""

import pytest
import torch
from datasets import Dataset

from hf_rec.columns import HISTORY, REJECTED, TARGET
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.own_lists import LIST_FOLDER
from hf_rec.trainers.softmax_dpo.rows import with_negatives
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer
from hf_rec.trainers.stored_lists import INDEX_FILE, TABLE_FILE, StoredLists
from hf_rec.trie.item_trie import ItemTrie


TWINS = {3: 4, 4: 3}  # films of one title
EVENTS = torch.randint(0, 12, (12, 4), generator=torch.Generator().manual_seed(0)).tolist()


def rows(count=12, **more):
    columns = {
        HISTORY: [event[: row % 4] for row, event in enumerate(EVENTS[:count])],
        TARGET: [event[row % 4] for row, event in enumerate(EVENTS[:count])],
    }
    return Dataset.from_dict(columns | more)


def settings(folder, **kwargs):
    defaults = {
        "max_steps": 2,
        "negatives": "own_lists",
        "list_length": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return SoftmaxDPOConfig(str(folder), **defaults | kwargs)


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
    def build(model=None, train=None, folder="run", catalog=tiny_catalog, eval_dataset=None, **kwargs):
        return SoftmaxDPOTrainer(
            tiny_lm() if model is None else model,
            args=settings(tmp_path / folder, **kwargs),
            train_dataset=rows() if train is None else train,
            eval_dataset=eval_dataset,
            processing_class=bpe_tokenizer,
            catalog=catalog,
        )

    return build


def rejected_items(trainer):
    """Catalog rows of the rejected answers of each row, the first one of those that share a title."""
    first = {tuple(trainer.prompt.encode_item(row)): row for row in reversed(range(12))}
    return [[first[tuple(answer)] for answer in row["rejected_ids"]] for row in trainer.train_dataset]


def test_the_lists_are_the_best_items_outside_the_history_by_brute_force(
    make_trainer, tiny_lm, bpe_tokenizer, tiny_catalog
):
    found = make_trainer()._own_lists
    prompt = Prompt(bpe_tokenizer, tiny_catalog, max_length=512)
    trie = ItemTrie.build(prompt.encode_items()).csr()
    plain = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie)
    histories = [[tiny_catalog.ids[item] for item in row[HISTORY]] for row in rows()]
    scores = plain.score(histories, tiny_catalog.ids)
    for row, listed, values in zip(rows(), found.lists, scores, strict=True):
        order = sorted(range(12), key=lambda item: (-values[item], item))
        assert listed == [item for item in order if item not in row[HISTORY]][:5]
    share = sum(target in listed for target, listed in zip(rows()[TARGET], found.lists, strict=True)) / 12
    assert (found.target_share, found.mean_length) == (share, 5.0)
    assert 0 < share < 1


def test_what_is_rejected_comes_from_the_list_and_is_neither_target_nor_history_nor_their_twin(make_trainer):
    trainer = make_trainer(num_negatives=4, list_length=11)
    for row, listed, rejected in zip(rows(), trainer._own_lists.lists, rejected_items(trainer), strict=True):
        taken = {row[TARGET], *row[HISTORY]}
        assert len(set(rejected)) == len(rejected) == 4
        assert not set(rejected) & (taken | {TWINS.get(item) for item in taken})
        assert set(rejected) <= set(listed) | {TWINS.get(item) for item in listed}


def test_draws_depend_on_the_seed_the_round_and_the_row_alone(make_trainer):
    first = rejected_items(make_trainer(list_length=10))
    assert rejected_items(make_trainer(list_length=10, folder="again")) == first
    assert rejected_items(make_trainer(list_length=10, folder="seed", seed=1)) != first
    assert rejected_items(make_trainer(list_length=10, folder="round", self_play_round=2)) != first
    assert rejected_items(make_trainer(list_length=10, folder="fewer", train=rows(8))) == first[:8]


def test_a_list_that_runs_out_gives_fewer_and_says_so(make_trainer, caplog):
    seen = [[item for item in range(12) if item not in (3, 4, 7, 9)]] * 4  # 3 and 4 share a title
    few = Dataset.from_dict({HISTORY: seen, TARGET: [7] * 4})
    trainer = make_trainer(train=few, num_negatives=3, eval_dataset=None)
    assert [sorted(rejected) for rejected in rejected_items(trainer)] == [[3, 9]] * 4
    assert "4 of 4 rows have fewer than 3 negatives" in caplog.text
    trainer.train()
    all_but_one = Dataset.from_dict({HISTORY: [[item for item in range(12) if item != 7]], TARGET: [7]})
    with pytest.raises(ValueError, match="Row 0: no item is left beside target and history"):
        make_trainer(train=all_but_one, folder="none")


def test_a_list_of_the_target_and_its_twin_alone_is_filled_from_the_catalog_and_counted(make_trainer, caplog):
    first = make_trainer(list_length=4)
    lists = [list(listed) for listed in first._own_lists.lists]
    lists[5] = [rows()[TARGET][5]]
    groups = first.csr.row_leaf(12).numpy()
    kept = with_negatives(rows(), first.args, groups, None, is_train=True, own_lists=first._own_lists.lists)
    caplog.clear()
    drawn = with_negatives(rows(), first.args, groups, None, is_train=True, own_lists=lists)
    taken = {groups[item] for item in (rows()[TARGET][5], *rows()[HISTORY][5])}
    assert len(drawn[REJECTED][5]) == first.args.num_negatives
    assert not taken & {groups[item] for item in drawn[REJECTED][5]}
    assert drawn[REJECTED][:5] == kept[REJECTED][:5] and drawn[REJECTED][6:] == kept[REJECTED][6:]
    assert "1 of 12 rows have lists with nothing beside target and history" in caplog.text
    again = with_negatives(rows(), first.args, groups, None, is_train=True, own_lists=lists)
    assert again[REJECTED][5] == drawn[REJECTED][5]


def test_the_first_log_says_how_long_lists_are_and_how_many_hold_their_target(make_trainer):
    trainer = make_trainer()
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (first["lists/length"], first["lists/target"]) == (5.0, trainer._own_lists.target_share)
    assert "lists/length" not in second


def test_evaluation_rows_get_random_items(make_trainer):
    trainer = make_trainer(eval_dataset=rows(6))
    random = make_trainer(eval_dataset=rows(6), folder="random", negatives="random")
    assert list(trainer.eval_dataset["rejected_ids"]) == list(random.eval_dataset["rejected_ids"])


class TestKeptLists:
    def test_a_run_that_is_started_again_reads_the_lists_it_made(self, make_trainer, tmp_path, monkeypatch):
        first = make_trainer()
        monkeypatch.setattr(LanguageModelRecommender, "recommend", None)
        again = make_trainer()
        assert again._own_lists == first._own_lists
        assert rejected_items(again) == rejected_items(first)
        assert {path.name for path in (tmp_path / "run" / LIST_FOLDER).iterdir()} == {INDEX_FILE, TABLE_FILE}

    def test_a_table_without_its_index_does_not_count(self, make_trainer, tmp_path):
        first = make_trainer()
        (tmp_path / "run" / LIST_FOLDER / INDEX_FILE).unlink()
        (tmp_path / "run" / LIST_FOLDER / TABLE_FILE).write_bytes(b"torn")
        assert make_trainer()._own_lists == first._own_lists

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            (TABLE_FILE, lambda data: data[:-9], "lists.parquet is not as it was saved. Delete"),
            (INDEX_FILE, lambda data: data[:20], "The lists in .*own_lists are damaged"),
            (INDEX_FILE, lambda data: b"[]", "The lists in .*own_lists are damaged"),
        ],
    )
    def test_damaged_lists_are_refused(self, make_trainer, tmp_path, name, damage, message):
        make_trainer()
        path = tmp_path / "run" / LIST_FOLDER / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=message):
            make_trainer()

    def test_lists_of_other_weights_rows_or_settings_are_refused(self, make_trainer, tiny_lm):
        make_trainer()
        with pytest.raises(ValueError, match="others of these than the run has: `model`. Delete"):
            make_trainer(tiny_lm(seed=1))
        with pytest.raises(ValueError, match="others of these than the run has: `rows`"):
            make_trainer(train=rows(8))
        with pytest.raises(ValueError, match="others of these than the run has: `tau`, `list_length`"):
            make_trainer(tau=2.0, list_length=6)


class TestBadInput:
    def test_a_list_no_longer_than_the_negatives_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`list_length` must be greater than `num_negatives`, 3, got 3"):
            settings(tmp_path, list_length=3)
        with pytest.raises(ValueError, match="`self_play_round` must be at least 1, got 0"):
            settings(tmp_path, self_play_round=0)

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            (rows().to_iterable_dataset(), "needs a `train_dataset` that is a `datasets.Dataset` with"),
            (Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]}), "with `history` and `target`, .* got"),
            (rows(**{REJECTED: [[1]] * 12}), "cannot go with a column `rejected`"),
            (rows(0), "has no rows"),
            (Dataset.from_dict({HISTORY: [[0]], TARGET: [12]}), "`target` must hold catalog rows"),
        ],
    )
    def test_rows_without_lists_are_refused(self, make_trainer, train, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(train=train)

    def test_without_items_there_are_no_lists(self, make_trainer):
        with pytest.raises(ValueError, match="need `catalog`, whose rows they are"):
            make_trainer(catalog=None, scoring="full_vocab")


def test_what_is_said_about_lists_is_counted_by_hand():
    found = StoredLists.of([[1, 2], [3], []], Dataset.from_dict({HISTORY: [[], [], []], TARGET: [2, 4, 5]}))
    assert found.target_share == pytest.approx(1 / 3)
    assert found.mean_length == 1.0
