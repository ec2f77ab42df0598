import json

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.evaluation.preferences import evaluate_preferences
from hf_rec.metrics.preference import auc, mean_user_auc
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.reranker import Reranker


ROWS = Dataset.from_dict(
    {
        "user_id": list("aabbbc"),
        "history": [[0], [0, 1], [], [3], [3, 4], [9]],
        "disliked": [[5], [], [], [6], [], [1, 2]],
        "target": [1, 2, 7, 4, 5, 0],
        "liked": [1, 0, 0, 1, 1, 0],
    }
)


def test_scores_are_those_of_the_rows_with_what_was_disliked(tiny_catalog, bpe_tokenizer, tiny_lm, tmp_path):
    prompt = RerankPrompt(bpe_tokenizer, tiny_catalog, "yes_no", ["Y", "N"], max_length=400)
    reranker = Reranker(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, batch_size=4)
    result = evaluate_preferences(reranker, ROWS, tmp_path / "out", name="judge")
    scores = [reranker.judge([row["history"]], [[row["target"]]], [row["disliked"]])[0][0] for row in ROWS]
    metrics = result["metrics"]
    assert metrics["rated/split=test/auc"]["mean"] == pytest.approx(auc(scores, ROWS["liked"]))
    expected = mean_user_auc(scores, ROWS["liked"], ROWS["user_id"])
    assert metrics["rated/split=test/user_auc"]["mean"] == pytest.approx(expected)
    assert json.loads((tmp_path / "out" / "preferences.json").read_text()) == result


def test_any_recommender_can_be_measured(tiny_catalog, tmp_path):
    popularity = PopularityRecommender(tiny_catalog, [{"history": [1, 4, 5], "target": 1, "supervise_from": 0}])
    result = evaluate_preferences(popularity, ROWS, tmp_path / "out", name="popularity")
    assert result["metrics"]["rated/split=test/auc"]["mean"] == 1.0


def test_rows_without_both_kinds_are_refused(tiny_catalog, tmp_path):
    popularity = PopularityRecommender(tiny_catalog, [{"history": [1], "target": 2, "supervise_from": 0}])
    likes = ROWS.filter(lambda row: row["liked"] == 1)
    with pytest.raises(ValueError, match="All 3 rows have `liked` = 1"):
        evaluate_preferences(popularity, likes, tmp_path / "out", name="popularity")
    with pytest.raises(ValueError, match="lacks .'liked'."):
        evaluate_preferences(popularity, ROWS.remove_columns("liked"), tmp_path / "out", name="popularity")
    assert not np.any([path.exists() for path in [tmp_path / "out"]])
