from pathlib import Path

import numpy as np
import pytest

from hf_rec.metrics.ranking import rank_bounds, ranking_metrics


evaluate = pytest.importorskip("evaluate")
MODULE = Path(__file__).parents[2] / "hf_rec" / "metrics" / "rec_ranking"


class TestEvaluateModule:
    def test_scores_give_the_numbers_of_the_library(self, tmp_path):
        scores = np.random.default_rng(0).integers(0, 3, size=(6, 20)).astype(float)
        target = np.arange(6)
        metric = evaluate.load(str(MODULE), cache_dir=str(tmp_path))
        metric.add_batch(predictions=scores[:4], references=target[:4])
        metric.add_batch(predictions=scores[4:], references=target[4:])
        assert metric.compute(ks=[5, 10]) == pytest.approx(ranking_metrics(*rank_bounds(scores, target), (5, 10)))

    def test_lists_are_read_in_their_order(self, tmp_path):
        metric = evaluate.load(str(MODULE), "lists", cache_dir=str(tmp_path))
        found = metric.compute(predictions=[[7, 3, 9], [1]], references=[3, 2], ks=[10])
        assert found == pytest.approx({"ndcg@10": 0.5 / np.log2(3), "hit_rate@10": 0.5, "mrr@10": 0.25})

    def test_an_unknown_configuration_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="'sampled'"):
            evaluate.load(str(MODULE), "sampled", cache_dir=str(tmp_path))
