import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_rec.columns import sequence_features
from hf_rec.data.catalog import Catalog
from hf_rec.evaluation.full import compare_runs, evaluate_recommender
from hf_rec.evaluation.run_files import read_metrics, read_predictions
from hf_rec.metrics.beyond_accuracy import LIST_METRICS, ListMetric
from hf_rec.metrics.ranking import METRICS, NOT_LISTED, RankMetric, rank_bounds, ranking_metrics
from hf_rec.report import write_report


TITLES = ["Alien", "Heat", "Heat", "Ran", "Up", "Heat"]
FULL = "full/search=exact/seen=keep/split=loo/"


def make_catalog():
    return Catalog.from_records([{"item_id": f"i{row}", "title": title} for row, title in enumerate(TITLES)])


def make_rows(pairs):
    """Rows from (user, history, target)."""
    rows = [
        {
            "user_id": user,
            "history": history,
            "history_timestamps": list(range(len(history))),
            "target": target,
            "timestamp": 9,
            "supervise_from": 1,
        }
        for user, history, target in pairs
    ]
    return Dataset.from_list(rows, features=sequence_features())


class ScoresEverything:
    """Gives the same scores to every history."""

    def __init__(self, scores):
        self.catalog, self.scores = make_catalog(), np.array(scores, dtype=np.float32)

    def score_all(self, histories, timestamps=None):
        assert timestamps is None or [len(times) for times in timestamps] == [len(items) for items in histories]
        return np.tile(self.scores, (len(histories), 1))


class ListsOnly:
    """The same scores, seen through lists of k items, ties in row order; items of one title must have one score."""

    trie = SimpleNamespace(row_leaf=lambda num_rows: np.array([0, 1, 1, 2, 3, 1]))

    def __init__(self, scores):
        self.catalog, self.scores, self.calls = make_catalog(), np.array(scores, dtype=np.float32), []

    def recommend(self, histories, k=10, exclude=None, allow=None, timestamps=None, num_beams=None, batch_size=None):
        self.calls.append((k, num_beams, batch_size))
        item_ids, scores = [], np.full((len(histories), k), -np.inf, dtype=np.float32)
        for row, _ in enumerate(histories):
            order = np.argsort(-self.scores, kind="stable").tolist()
            order = [item for item in order if not exclude or f"i{item}" not in exclude[row]][:k]
            item_ids.append([f"i{item}" for item in order])
            scores[row, : len(order)] = self.scores[order]
        return SimpleNamespace(item_ids=item_ids, scores=scores, certified=np.array([len(h) > 1 for h in histories]))


def evaluate(recommender, pairs, out_dir, **kwargs):
    kwargs = {"ks": (1, 2), "name": "fake"} | kwargs
    return evaluate_recommender(recommender, make_rows(pairs), out_dir, **kwargs)


PAIRS = [("a", [0, 3], 1), ("b", [4], 5), ("c", [], 0), ("a", [3, 1], 4)]


class TestRanks:
    def test_exact_ranks_and_title_ranks_by_hand(self, tmp_path):
        # Ran 3, Heat (rows 1, 2, 5) 2, Alien 1, Up 0.
        metrics = evaluate(ScoresEverything([1, 2, 2, 3, 0, 2]), PAIRS, tmp_path / "run", ks=(2, 4))
        table = read_predictions(tmp_path / "run").to_pydict()
        assert table["better"] == [1, 1, 4, 5] and table["tied"] == [2, 2, 0, 0]
        assert table["title_better"] == [1, 1, 4, 5] and table["title_tied"] == [0, 0, 0, 0]
        assert table["item_rows"][0] == [3, 1, 2, 5] and table["item_ids"][0] == ["i3", "i1", "i2", "i5"]
        assert table["scores"][0] == [3.0, 2.0, 2.0, 2.0]
        assert table["user_id"] == ["a", "b", "c", "a"]
        assert table["target_row"] == [1, 5, 0, 4] and table["target"] == ["i1", "i5", "i0", "i4"]
        assert table["certified"] == [True] * 4 and table["warm"] == [None] * 4
        found = {key: value["mean"] for key, value in metrics["metrics"].items()}
        assert found[FULL + "hit_rate@2"] == pytest.approx((1 / 3 + 1 / 3) / 4)
        assert found[FULL + "hit_rate@4"] == pytest.approx(2 / 4)
        assert found[FULL + "level=title/hit_rate@2"] == pytest.approx(2 / 4)
        assert found[FULL + "level=title/ndcg@2"] == pytest.approx(2 / math.log2(3) / 4)

    def test_lists_give_the_exact_ranks_of_what_they_hold(self, tmp_path):
        # A list of two ends inside the three items called Heat: the order of rows must not decide which is a hit.
        scores = [1, 2, 2, 3, 0, 2]
        exact = evaluate(ScoresEverything(scores), PAIRS, tmp_path / "exact")
        listed = evaluate(ListsOnly(scores), PAIRS, tmp_path / "lists")
        assert list(listed["metrics"])[0] == "full/search=beam20/seen=keep/split=loo/ndcg@1"
        assert [value["mean"] for value in listed["metrics"].values()] == pytest.approx(
            [value["mean"] for value in exact["metrics"].values()]
        )
        table = read_predictions(tmp_path / "lists").to_pydict()
        assert table["better"] == [1, 1, NOT_LISTED, NOT_LISTED] and table["tied"] == [2, 2, 0, 0]
        assert table["certified"] == [True, False, False, True] and listed["certified_share"] == 0.5

    def test_masking_seen_items_moves_targets_up_and_makes_seen_targets_misses(self, tmp_path):
        pairs = [("a", [3], 1), ("b", [3, 1, 2], 5), ("c", [4, 0], 4)]
        for recommender in (ScoresEverything([1, 2, 2, 3, 0, 2]), ListsOnly([1, 2, 2, 3, 0, 2])):
            metrics = evaluate(recommender, pairs, tmp_path / "run", seen="mask", ks=(1, 3))
            table = read_predictions(tmp_path / "run").to_pydict()
            assert table["better"] == [0, 0, NOT_LISTED] and table["tied"] == [2, 0, 0]
            assert table["title_tied"] == [0, 0, 0]
            assert metrics["counts"]["targets_in_history"] == 1
            assert metrics["protocol"] == f"full/search={metrics['search']}/seen=mask/split=loo"

    def test_constant_scores_have_the_hit_rate_of_chance(self, tmp_path):
        metrics = evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run")
        assert metrics["metrics"][FULL + "hit_rate@2"]["mean"] == pytest.approx(2 / 6)
        assert metrics["counts"]["tied_targets"] == 4

    @pytest.mark.parametrize("kind", [ScoresEverything, ListsOnly])
    def test_nan_ranks_last_and_is_counted(self, kind, tmp_path):
        metrics = evaluate(kind([np.nan, 2, 2, 3, 0, 2]), PAIRS, tmp_path / "run", ks=(6,))
        table = read_predictions(tmp_path / "run").to_pydict()
        assert metrics["counts"]["nan_scores"] == 4
        assert table["better"] == [1, 1, NOT_LISTED, 4]

    def test_short_lists_are_counted(self, tmp_path):
        metrics = evaluate(ListsOnly([1, 2, 2, 3, 0, 2]), PAIRS, tmp_path / "run", seen="mask", ks=(5,))
        assert metrics["counts"]["short_lists"] == 2
        assert metrics["counts"]["empty_histories"] == 1

    def test_beams_and_batches_reach_the_recommender(self, tmp_path):
        recommender = ListsOnly([1, 2, 2, 3, 0, 2])
        metrics = evaluate(recommender, PAIRS * 50, tmp_path / "run", num_beams=7, batch_size=3)
        assert recommender.calls == [(2, 7, 3)] * 2
        assert metrics["search"] == "beam7"

    def test_items_that_share_a_title_but_no_leaf_are_not_taken_for_tied(self, tmp_path):
        recommender = ListsOnly([1, 2, 2, 3, 0, 2])
        recommender.trie = None
        evaluate(recommender, PAIRS, tmp_path / "run")
        assert read_predictions(tmp_path / "run")["better"].to_pylist() == [1, NOT_LISTED, NOT_LISTED, NOT_LISTED]
        assert read_predictions(tmp_path / "run")["title_better"].to_pylist() == [1, 1, NOT_LISTED, NOT_LISTED]


class TestFiles:
    def test_metrics_file_tells_what_was_measured(self, tmp_path):
        rows = DatasetDict({"validation": make_rows(PAIRS)})
        cost = {"training_rows": 10, "seconds": 1.5, "seed": 3}
        recommender = ScoresEverything([1, 2, 2, 3, 0, 2])
        metrics = evaluate_recommender(
            recommender,
            rows,
            tmp_path / "run",
            split="validation",
            ks=(2, 1),
            name="fake",
            warm_items=[1, 4],
            cost=cost,
        )
        assert metrics == read_metrics(tmp_path / "run")
        assert metrics["name"] == "fake" and metrics["split"] == "validation" and metrics["ks"] == [1, 2]
        assert metrics["rows"] == 4 and metrics["users"] == 3 and metrics["items"] == 6 and metrics["cost"] == cost
        assert metrics["catalog_sha256"] == recommender.catalog.sha256
        assert metrics["slices"]["warm"]["rows"] == 2 and metrics["slices"]["cold"]["share"] == 0.5
        assert metrics["slices"]["warm"]["metrics"][FULL + "hit_rate@2"]["mean"] == pytest.approx(1 / 6)
        value = metrics["metrics"][FULL + "ndcg@2"]
        assert value["low"] <= value["mean"] <= value["high"]
        assert metrics["beyond_accuracy"][FULL + "coverage@2"] == pytest.approx(2 / 6)
        assert read_predictions(tmp_path / "run")["warm"].to_pylist() == [True, False, False, True]

    @pytest.mark.parametrize("ids", [["b", "a", "f", "d", "c", "e"], [12, 7, 30, 4, 9, 1]])
    def test_pandas_alone_computes_our_hit_rate_from_the_file(self, ids, tmp_path):
        import pandas

        recommender = ScoresEverything([9, 2, 3, 8, 1, 4])
        recommender.catalog = Catalog.from_records([{"item_id": item_id, "title": f"{item_id}"} for item_id in ids])
        metrics = evaluate(recommender, PAIRS, tmp_path / "run", ks=(2, 4))
        table = pandas.read_parquet(tmp_path / "run" / "predictions.parquet")
        for k in (2, 4):
            hits = [target in items[:k] for target, items in zip(table["target"], table["item_ids"], strict=True)]
            assert np.mean(hits) == metrics["metrics"][f"{FULL}hit_rate@{k}"]["mean"]
        assert np.mean(hits) == 0.5
        assert [ids[row] for row in table["target_row"]] == table["target"].tolist()

    def test_a_training_folder_keeps_its_files_and_no_partial_folder_stays(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "trainer_state.json").write_text("{}")
        for _ in range(2):
            evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run")
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            "metrics.json",
            "predictions.parquet",
            "trainer_state.json",
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_a_failing_write_leaves_no_folder(self, tmp_path):
        with pytest.raises(TypeError):
            evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run", cost={"seed": object()})
        with pytest.raises(ValueError, match="not JSON compliant"):
            evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run", cost={"seconds": math.nan})
        assert list(tmp_path.iterdir()) == []

    def test_changed_or_foreign_files_are_refused(self, tmp_path):
        evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run")
        with open(tmp_path / "run" / "predictions.parquet", "ab") as file:
            file.write(b"x")
        with pytest.raises(ValueError, match="has changed since"):
            read_predictions(tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="hf-rec evaluate"):
            read_metrics(tmp_path / "other")
        (tmp_path / "run" / "metrics.json").write_text(json.dumps({"ndcg": 1}))
        with pytest.raises(ValueError, match="measure the model again"):
            read_metrics(tmp_path / "run")
        (tmp_path / "run" / "metrics.json").write_text("{")
        with pytest.raises(ValueError, match="is no JSON"):
            read_metrics(tmp_path / "run")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ks": ()}, "`ks`"),
            ({"ks": (0,)}, "`ks`"),
            ({"seen": "hide"}, "`seen` must be 'keep' or 'mask', got 'hide'"),
            ({"num_beams": 0}, "`num_beams`"),
            ({"split_rule": "a/b"}, "`split_rule`"),
            ({"name": ""}, "`name`"),
        ],
    )
    def test_bad_arguments_are_named_before_anything_runs(self, change, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run", **change)
        assert not (tmp_path / "run").exists()

    def test_rows_that_do_not_fit_are_named(self, tmp_path):
        recommender = ScoresEverything([0] * 6)
        with pytest.raises(ValueError, match="targets 9..9, but the catalog of the recommender has 6 items"):
            evaluate(recommender, [("a", [0], 9)], tmp_path / "run")
        with pytest.raises(ValueError, match=r"lacks the columns \['history'\]"):
            rows = make_rows(PAIRS).remove_columns("history")
            evaluate_recommender(recommender, rows, tmp_path / "run", name="fake")
        with pytest.raises(ValueError, match="no rows"):
            rows = make_rows(PAIRS).select([])
            evaluate_recommender(recommender, rows, tmp_path / "run", name="fake")
        with pytest.raises(ValueError, match=r"`split` must be one of \['train'\], got 'test'"):
            rows = DatasetDict({"train": make_rows(PAIRS)})
            evaluate_recommender(recommender, rows, tmp_path / "run", name="fake")


class TestOneListEach:
    def test_a_metric_that_is_added_to_the_list_reaches_files_tests_and_tables(self, tmp_path, monkeypatch):
        first_place = RankMetric(lambda better, tied, k: (np.asarray(better) == 0) / (np.asarray(tied) + 1.0), "P")
        monkeypatch.setitem(METRICS, "first_place", first_place)
        share = ListMetric("Share of the first item", lambda counts, popularity: float(counts[0] / counts.sum()))
        monkeypatch.setitem(LIST_METRICS, "first_item", share)
        evaluate(ScoresEverything([9, 2, 3, 8, 1, 4]), PAIRS, tmp_path / "a", name="a")
        metrics = evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "b", name="b")
        assert metrics["metrics"][FULL + "first_place@2"]["mean"] == pytest.approx(1 / 6)
        page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report").read_text()
        assert "P@2" in page and "Share of the first item" in page
        (found,) = compare_runs([tmp_path / "a", tmp_path / "b"], "first_place@2")
        assert found.difference == pytest.approx(1 / 6 - 1 / 4)


class TestCompareRuns:
    PAIRS = [(f"u{number // 2}", [0], number % 6) for number in range(60)]

    def test_differences_are_paired_and_corrected_over_metrics(self, tmp_path):
        evaluate(ScoresEverything([0, 0, 0, 0, 0, 0]), self.PAIRS, tmp_path / "chance", name="chance")
        evaluate(ScoresEverything([9, 2, 3, 8, 1, 4]), self.PAIRS, tmp_path / "model", name="model")
        metrics = ["hit_rate@2", "level=title/ndcg@2"]
        first, second = compare_runs([tmp_path / "chance", tmp_path / "model"], metrics)
        assert (first.name, first.baseline, first.metric) == ("model", "chance", "hit_rate@2")
        assert first.baseline_mean == pytest.approx(2 / 6) and first.mean == pytest.approx(2 / 6)
        assert first.difference == pytest.approx(0.0) and first.low < 0.0 < first.high
        assert first.p_value > 0.9 and first.p_holm == 1.0
        assert second.metric == "level=title/ndcg@2" and second.p_holm == pytest.approx(min(1.0, 2 * second.p_value))

    def test_seeds_of_one_method_are_averaged_row_by_row(self, tmp_path):
        for seed, scores in enumerate([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]]):
            evaluate(ScoresEverything(scores), self.PAIRS, tmp_path / f"s{seed}", name="model", cost={"seed": seed})
        evaluate(ScoresEverything([6, 5, 4, 3, 2, 1]), self.PAIRS, tmp_path / "base", name="base")
        (found,) = compare_runs([str(tmp_path / "base"), [tmp_path / "s0", tmp_path / "s1"]], "ndcg@1")
        assert found.mean == pytest.approx(1 / 6) and found.baseline_mean == pytest.approx(1 / 6)
        assert found.name == "model"

    def test_runs_that_cannot_be_paired_are_refused(self, tmp_path):
        same = ScoresEverything([0] * 6)
        evaluate(same, self.PAIRS, tmp_path / "a")
        evaluate(same, self.PAIRS[::-1], tmp_path / "b")
        evaluate(same, self.PAIRS, tmp_path / "c", seen="mask")
        evaluate(same, self.PAIRS, tmp_path / "d")
        with pytest.raises(ValueError, match=r"b was measured with other \(user, target\) rows than .*a"):
            compare_runs([tmp_path / "a", tmp_path / "b"])
        with pytest.raises(ValueError, match="`seen` 'mask' against 'keep'"):
            compare_runs([tmp_path / "a", tmp_path / "c"])
        with pytest.raises(ValueError, match="needs lists of 10 items, but .* holds 2"):
            compare_runs([tmp_path / "a", tmp_path / "d"], "ndcg@10")
        with pytest.raises(ValueError, match="at least one other run"):
            compare_runs([tmp_path / "a"])


def test_processes_that_do_not_know_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were launched"):
        evaluate(ScoresEverything([0] * 6), PAIRS, tmp_path / "run")


def _evaluate_in_each_process(out_dir):
    from accelerate import PartialState

    PartialState._reset_state()  # forked from a process that may have made one
    pairs = [(f"u{number}", [0] * (number % 3), number % 6) for number in range(7)]
    metrics = evaluate(ListsOnly([1, 2, 2, 3, 0, 2]), pairs, out_dir)
    assert PartialState().num_processes == metrics["evaluation"]["processes"] == 2
    assert metrics["rows"] == 7


@pytest.mark.distributed
def test_two_processes_write_what_one_writes(tmp_path):
    from accelerate import debug_launcher

    debug_launcher(_evaluate_in_each_process, args=(str(tmp_path / "two"),), num_processes=2)
    pairs = [(f"u{number}", [0] * (number % 3), number % 6) for number in range(7)]
    evaluate(ListsOnly([1, 2, 2, 3, 0, 2]), pairs, tmp_path / "one")
    assert read_predictions(tmp_path / "one").equals(read_predictions(tmp_path / "two"))
    assert read_metrics(tmp_path / "one")["metrics"] == read_metrics(tmp_path / "two")["metrics"]


def test_a_language_model_is_ranked_as_its_scores_say(tmp_path, tiny_catalog, bpe_tokenizer, tiny_lm):
    """As many beams as leaves: ranks from lists of four are those from the scores of all twelve items."""
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.recommenders.language_model import LanguageModelRecommender
    from hf_rec.trie.item_trie import ItemTrie

    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    trie = ItemTrie.build(prompt.encode_items()).csr()
    recommender = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie)
    histories = [[row % 12, (5 * row) % 12] for row in range(24)]
    rows = make_rows([(f"u{row}", history, row % 12) for row, history in enumerate(histories)])
    metrics = evaluate_recommender(recommender, rows, tmp_path / "run", ks=(1, 4), name="lm", num_beams=12)
    scores = recommender.score([[100 + row for row in history] for history in histories], tiny_catalog.ids)
    expected = ranking_metrics(*rank_bounds(np.stack(scores).round(4), np.arange(24) % 12), (1, 4))
    found = {key.rpartition("/")[2]: value["mean"] for key, value in metrics["metrics"].items() if "level" not in key}
    assert found == pytest.approx(expected, abs=1e-9)
    assert metrics["search"] == "beam12" and metrics["certified_share"] == 1.0


def test_nan_scores_of_a_language_model_are_counted_and_none_of_its_lists_is_certified(
    tmp_path, tiny_catalog, bpe_tokenizer, tiny_lm
):
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.recommenders.language_model import LanguageModelRecommender
    from hf_rec.trie.item_trie import ItemTrie

    prompt, model = Prompt(bpe_tokenizer, tiny_catalog), tiny_lm()
    trie = ItemTrie.build(prompt.encode_items()).csr()
    recommender = LanguageModelRecommender(model, bpe_tokenizer, tiny_catalog, prompt, trie)
    recommender.recommend([[100]])  # its cache has been tried before the weights break
    model.transformer.ln_f.weight.data.fill_(math.nan)
    metrics = evaluate_recommender(recommender, make_rows([("u", [1], 2), ("v", [], 3)]), tmp_path / "run", name="lm")
    assert metrics["counts"]["nan_scores"] > 0 and metrics["certified_share"] == 0
    assert read_predictions(tmp_path / "run")["better"].to_pylist() == [NOT_LISTED] * 2
