import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.evaluation.fit_weights import fit_weights, weight_grid
from hf_rec.metrics.ranking import metric_values, rank_bounds
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders import ranks_by_weight
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


@pytest.fixture(scope="module")
def language(tiny_catalog, bpe_tokenizer, tiny_lm):
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    csr = ItemTrie.build(prompt.encode_items()).csr()
    return LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, csr)


@pytest.fixture(scope="module")
def sequence(tiny_catalog):
    torch.manual_seed(0)
    config = SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.9)
    return SequenceRecommender(SASRecModel(config), tiny_catalog)


@pytest.fixture(scope="module")
def popularity(tiny_catalog):
    return PopularityRecommender(tiny_catalog, [{"history": [0, 1, 1], "target": 5, "supervise_from": 0}])


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 12, size=rng.integers(0, 6)).tolist() for _ in range(40)]
    return Dataset.from_list(
        [{"user_id": str(u), "history": h, "target": int(rng.integers(0, 12))} for u, h in enumerate(histories)]
    )


class TestFitWeights:
    @pytest.mark.parametrize("seen", ["keep", "mask"])
    @pytest.mark.parametrize("names", ["language sequence", "sequence popularity", "popularity language sequence"])
    def test_values_are_those_of_all_scores_under_each_weight(self, request, rows, seen, names, monkeypatch):
        # So narrow a search that most paths are not in its list
        monkeypatch.setattr(ranks_by_weight, "_BEAMS", 2)
        monkeypatch.setattr(ranks_by_weight, "_READ_AT_ONCE", 1)
        parts = [request.getfixturevalue(name) for name in names.split()]
        fit = fit_weights(parts, rows, "ndcg@3", seen=seen, batch_size=7)
        histories = [[100 + item for item in history] for history in rows["history"]]
        for weights, values in list(zip(fit.grid.tolist(), fit.values, strict=True))[:: len(fit.grid) // 10]:
            scores = FusedRecommender(parts, weights).score_all(histories)
            for row, history in enumerate(rows["history"]):
                scores[row, history] = scores[row, history] if seen == "keep" else -np.inf
            better, tied = rank_bounds(scores, np.array(rows["target"]))
            expected = metric_values(better, tied, "ndcg@3")
            hidden = [target in history for target, history in zip(rows["target"], rows["history"], strict=True)]
            expected[np.array(hidden) & (seen == "mask")] = 0
            np.testing.assert_allclose(values, expected, atol=1e-9)

    def test_the_language_model_is_searched_once_for_a_row(self, language, sequence, rows, monkeypatch):
        searched = []
        search = LanguageModelRecommender.search
        monkeypatch.setattr(
            LanguageModelRecommender,
            "search",
            lambda self, rows, *args: searched.extend(rows) or search(self, rows, *args),
        )
        fit_weights([language, sequence], rows)
        assert len(searched) == len(rows)

    def test_the_best_weight_is_never_below_a_recommender_alone(self, language, sequence, rows):
        fit = fit_weights([language, sequence], rows, "hit_rate@2")
        means = fit.values.mean(axis=1)
        assert means[fit.best()] == means.max() and means[fit.best()] >= max(means[0], means[-1])
        assert fit.grid[0].tolist() == [1, 0] and fit.grid[-1].tolist() == [0, 1]

    def test_buckets_by_length(self, language, sequence, rows):
        fit = fit_weights([language, sequence], rows)
        summary = fit.summary(["LM", "SASRec"], first=[0, 2, 4])
        assert [entry["from"] for entry in summary["by_length"]] == [0, 2, 4]
        assert [entry["lengths"] for entry in summary["by_length"]] == ["0 to 1", "2 to 3", "4 and more"]
        lengths = np.array([len(history) for history in rows["history"]])
        assert [entry["rows"] for entry in summary["by_length"]] == np.histogram(lengths, [0, 2, 4, 99])[0].tolist()
        for entry, chosen in zip(summary["by_length"], fit.buckets([0, 2, 4]), strict=True):
            means = fit.values[:, chosen].mean(axis=1)
            assert entry["value"] == pytest.approx(means.max()) and entry["value"] >= entry["value_at_best"]
            assert entry["weights"] == entry["grid"][np.argmax([point["value"] for point in entry["grid"]])]["weights"]
        assert fit.quartiles()[0] == 0 and len(fit.quartiles()) <= 4

    def test_refusals(self, language, sequence, rows):
        with pytest.raises(ValueError, match="no rows"):
            fit_weights([language, sequence], rows.select([]))
        with pytest.raises(ValueError, match="recall@10"):
            fit_weights([language, sequence], rows, "recall@10")


@pytest.mark.parametrize("num_parts, size", [(2, 21), (3, 66), (5, 126)])
def test_weights_of_a_grid_sum_to_1_and_are_all_there_are(num_parts, size):
    grid = weight_grid(num_parts)
    assert grid.shape == (size, num_parts) and len({tuple(row) for row in grid.tolist()}) == size
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    assert grid.min() == 0 and grid[0].tolist() == [1] + [0] * (num_parts - 1)
