import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rec.cli import main as cli
from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, SUPERVISE_FROM, TARGET, TIMESTAMP, USER_ID, sequence_features
from hf_rec.data.catalog import Catalog
from hf_rec.data.prepare import load_prepared, prepare
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.shuffling import shuffle_histories, write_shuffled
from hf_rec.diagnostics.diagnose import diagnose
from hf_rec.diagnostics.markdown import to_markdown
from hf_rec.diagnostics.order import order_sensitivity, shuffled_training, user_vectors
from hf_rec.diagnostics.other_domain import moved_to, transfer
from hf_rec.diagnostics.ranked_targets import RankSettings, paired_change, rank_rows
from hf_rec.diagnostics.slices import by_events_given, by_history_length, by_warmth
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.exact import ExactRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


N = 30
SETTINGS = RankSettings(k=5)


def make_rows(count=40, seed=0, lengths=(0, 7)):
    """The next number in a circle of thirty, so that the newest event says everything."""
    generator = np.random.default_rng(seed)
    histories = [generator.integers(0, N, generator.integers(*lengths)).tolist() for _ in range(count)]
    return Dataset.from_dict(
        {
            USER_ID: [f"u{row}" for row in range(count)],
            HISTORY: histories,
            HISTORY_TIMESTAMPS: [list(range(len(history))) for history in histories],
            TARGET: [(history[-1] + 1) % N if history else 0 for history in histories],
            TIMESTAMP: [99] * count,
            SUPERVISE_FROM: [1] * count,
        },
        features=sequence_features(),
    )


@pytest.fixture(scope="module")
def catalog():
    return Catalog.from_records([{"item_id": row, "title": f"film {row}"} for row in range(N)])


class NextNumber(ExactRecommender):
    """Knows the rule; its user vector is the newest event."""

    def _score_all_rows(self, histories, timestamps):
        scores = np.zeros((len(histories), N), dtype=np.float32)
        for user, history in enumerate(histories):
            scores[user, (history[-1] + 1) % N if history else 0] = 1
        return scores

    def user_vectors(self, histories):
        return np.eye(N)[[history[-1] if history else 0 for history in histories]]


class BagOfItems(ExactRecommender):
    """Scores by the set of items, whatever their order."""

    def _score_all_rows(self, histories, timestamps):
        scores = np.tile(np.arange(N, dtype=np.float32), (len(histories), 1))
        for user, history in enumerate(histories):
            scores[user, history] += 100
        return scores

    def user_vectors(self, histories):
        return np.array([np.bincount(history, minlength=N) for history in histories])


class TestShuffling:
    def test_items_are_permuted_and_all_else_stays(self):
        rows = make_rows()
        shuffled = shuffle_histories(rows, seed=1)
        assert [sorted(history) for history in shuffled[HISTORY]] == [sorted(history) for history in rows[HISTORY]]
        assert shuffled[HISTORY] != rows[HISTORY] and shuffled.features == rows.features
        for name in (USER_ID, HISTORY_TIMESTAMPS, TARGET):
            assert list(shuffled[name]) == list(rows[name])

    def test_a_row_depends_on_seed_and_number_alone(self):
        rows = make_rows()
        assert list(shuffle_histories(rows)[HISTORY])[:9] == list(shuffle_histories(rows.select(range(9)))[HISTORY])
        assert list(shuffle_histories(rows, 1)[HISTORY]) != list(shuffle_histories(rows, 2)[HISTORY])

    def test_a_prepared_folder_is_copied_with_shuffled_training_histories(self, tmp_path):
        prepare("demo", tmp_path / "data", num_users=30, seed=0)
        write_shuffled(tmp_path / "data", tmp_path / "copy", seed=3)
        catalog, splits, card = load_prepared(tmp_path / "copy")
        _, original, _ = load_prepared(tmp_path / "data")
        assert card["shuffled"] == {"split": "train", "seed": 3}
        assert list(splits["test"][HISTORY]) == list(original["test"][HISTORY])
        assert list(splits["train"][HISTORY]) != list(original["train"][HISTORY])
        with pytest.raises(FileExistsError, match="`out`"):
            write_shuffled(tmp_path / "data", tmp_path / "copy")


class TestOrder:
    def test_a_model_that_reads_a_bag_of_items_does_not_change(self, catalog):
        found = order_sensitivity(BagOfItems(catalog), make_rows(), SETTINGS)
        assert found["ndcg"]["change"]["mean"] == 0 and found["ndcg"]["p_value"] == 1
        assert found["overlap"]["mean"] == 1
        assert found["cosine"]["mean"] == pytest.approx(1)

    def test_a_model_that_reads_the_newest_event_loses_where_it_moved(self, catalog):
        rows = make_rows()
        found = order_sensitivity(NextNumber(catalog), rows, SETTINGS)
        can_change = np.array([len(set(history)) > 1 for history in rows[HISTORY]])
        shuffled = shuffle_histories(rows)
        stays = np.array([a[-1:] == b[-1:] for a, b in zip(rows[HISTORY], shuffled[HISTORY], strict=True)])
        assert found["can_change"] == pytest.approx(can_change.mean())
        assert found["hit_rate"]["before"] == 1
        assert found["cosine"]["mean"] == pytest.approx(stays.mean())
        assert found["of_these"]["cosine"]["mean"] == pytest.approx(stays[can_change].mean())
        assert found["ndcg"]["change"]["high"] < 0 and found["ndcg"]["p_value"] < 0.01
        assert found["ndcg"]["relative_change"] == pytest.approx(found["ndcg"]["after"] - 1)

    def test_popularity_has_no_vectors_and_does_not_change(self, catalog):
        rows = make_rows()
        found = order_sensitivity(PopularityRecommender(catalog, rows), rows, SETTINGS)
        assert "cosine" not in found and found["overlap"]["mean"] == 1

    def test_lists_of_a_language_model_are_compared(self, tiny_catalog, bpe_tokenizer, tiny_lm):
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        trie = ItemTrie.build(prompt.encode_items()).csr()
        recommender = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie)
        rows = make_rows(4, lengths=(3, 5)).map(lambda row: {HISTORY: [item % 12 for item in row[HISTORY]], TARGET: 0})
        found = order_sensitivity(recommender, rows, RankSettings(k=3))
        assert 0 <= found["overlap"]["mean"] < 1 and "cosine" not in found

    def test_the_vectors_of_a_sequence_model_are_its_own(self, tiny_catalog):
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8))
        rows = make_rows(5).map(lambda row: {HISTORY: [item % 12 for item in row[HISTORY]]})
        vectors = user_vectors(SequenceRecommender(model, tiny_catalog), rows)
        assert vectors.shape == (5, 8)

    def test_a_model_trained_on_shuffled_histories_is_compared_on_the_same_rows(self, catalog):
        rows = make_rows()
        found = shuffled_training(rank_rows(NextNumber(catalog), rows, SETTINGS), BagOfItems(catalog), rows, SETTINGS)
        assert found["hit_rate"]["before"] == 1 > found["hit_rate"]["after"]
        assert 0 < found["overlap"]["mean"] < 1

    def test_a_change_from_zero_has_no_relative_value(self):
        assert paired_change(np.zeros(3), np.ones(3), ["a", "b", "c"])["relative_change"] is None


class TestSlices:
    def test_rows_are_counted_once_by_the_length_of_their_history(self, catalog):
        rows = make_rows()
        found = by_history_length(rank_rows(NextNumber(catalog), rows, SETTINGS), rows, 5)
        assert sum(part["rows"] for part in found) == len(rows)
        assert [(part["from"], part["to"]) for part in found] == [(0, 0), (1, 1), (2, 4), (5, 9)]
        assert all(part["ndcg"]["mean"] == 1 for part in found)

    def test_the_newest_events_are_given_alone(self, catalog):
        rows = make_rows(lengths=(1, 7))
        found = by_events_given(NextNumber(catalog), rows, [0, 1, 3], SETTINGS)
        assert [part["events"] for part in found] == [0, 1, 3]
        assert [part["hit_rate"]["mean"] == 1 for part in found] == [False, True, True]
        with pytest.raises(ValueError, match="`lengths`"):
            by_events_given(NextNumber(catalog), rows, [-1], SETTINGS)

    def test_targets_and_users_are_told_apart_by_training(self, catalog):
        rows = make_rows()
        ranked = rank_rows(NextNumber(catalog), rows, SETTINGS)
        found = by_warmth(ranked, rows, set(range(15)), {"u0", "u1"}, 5)
        assert found["warm_items"]["rows"] + found["cold_items"]["rows"] == len(rows)
        assert found["warm_items"]["rows"] == sum(target < 15 for target in rows[TARGET])
        assert found["warm_users"]["rows"] == 2
        assert "cold_items" not in by_warmth(ranked, rows, set(range(N)), set(), 5)


class TestOtherDomain:
    def test_a_language_model_moves_to_another_catalog(self, tiny_catalog, bpe_tokenizer, tiny_lm, catalog):
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        trie = ItemTrie.build(prompt.encode_items()).csr()
        recommender = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie, tau=2.0)
        assert moved_to(recommender, catalog).tau == 2.0
        found = transfer(recommender, catalog, make_rows(), make_rows(4), RankSettings(k=3))
        assert found["items"] == N and found["hit_rate"]["chance"] == pytest.approx(3 / N)

    def test_a_model_that_knows_numbers_cannot_move(self, catalog):
        with pytest.raises(ValueError, match="knows its items by number"):
            moved_to(NextNumber(catalog), catalog)


class TestFiles:
    def test_everything_stands_in_both_files(self, catalog, tmp_path):
        rows = make_rows()
        found = diagnose(
            NextNumber(catalog),
            rows,
            make_rows(10),
            tmp_path,
            name="next",
            split_rule="time",
            settings=SETTINGS,
            lengths=[1],
            trained_on_shuffled=BagOfItems(catalog),
        )
        assert found["protocol"] == "full/search=exact/seen=keep/split=time"
        assert json.loads((tmp_path / "diagnostics.json").read_text()) == json.loads(json.dumps(found))
        text = (tmp_path / "diagnostics.md").read_text()
        assert text.strip() == to_markdown(found).strip()
        for part in ("## Order", "rows with an order", "trained on shuffled", "newest 1 given", "cold users"):
            assert part in text

    def test_the_command_diagnoses_a_control(self, tmp_path, capsys):
        prepare("demo", tmp_path / "data", num_users=30, seed=0)
        words = ["diagnose", "--control", "last-item", "--data", tmp_path / "data", "--out", tmp_path / "out"]
        assert cli.main([*map(str, words), "--limit", "10"]) == 0
        assert "## Order" in capsys.readouterr().out
        assert cli.main([*map(str, words), "--split", "tset"]) == 2
        assert "`--split` must be one of train, validation, test" in capsys.readouterr().err

    def test_wrong_settings_are_named(self):
        with pytest.raises(ValueError, match="`k`"):
            RankSettings(k=0)
        with pytest.raises(ValueError, match="`seen`"):
            RankSettings(seen="hide")
