"""Items of a row's own history in the ranking of evaluation: listed, or left out."""

import pytest
from datasets import Dataset

from hf_rec import MSLConfig, MSLTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer
from hf_rec.columns import HISTORY, TARGET


ROWS = Dataset.from_dict(
    {
        HISTORY: [[0, 1, 2, 5], [3], [7, 8, 9, 10, 11], [4, 3, 6], [], [1, 1, 2]],
        TARGET: [6, 4, 0, 5, 2, 1],  # the second shares its title with the history, the last stands in it
    }
)
METHODS = {"msl": (MSLTrainer, MSLConfig), "softmax_dpo": (SoftmaxDPOTrainer, SoftmaxDPOConfig)}


@pytest.fixture
def make(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
    def build(method, eval_dataset=ROWS, **settings):
        trainer, config = METHODS[method]
        options = {"eval_num_beams": None, "per_device_eval_batch_size": 4, "report_to": "none", "use_cpu": True}
        return trainer(
            tiny_lm("llama"),
            args=config(str(tmp_path), **options | settings),
            train_dataset=ROWS,
            eval_dataset=eval_dataset,
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
        )

    return build


@pytest.mark.parametrize("seen", ["keep", "mask"])
@pytest.mark.parametrize("method", METHODS)
def test_the_ranking_is_that_of_a_recommender_that_is_told_to_leave_them_out(make, tiny_catalog, method, seen):
    trainer = make(method, seen=seen)
    metrics = trainer.evaluate()
    histories = [[tiny_catalog.ids[item] for item in row] for row in ROWS[HISTORY]]
    exclude = histories if seen == "mask" else None
    found = trainer.recommender().recommend(histories, k=10, exclude=exclude, num_beams=20)
    hits = 0
    for items, target in zip(found.item_ids, ROWS[TARGET], strict=True):
        titles = list(dict.fromkeys(tiny_catalog.titles[tiny_catalog.row(item)] for item in items))
        hits += tiny_catalog.titles[target] in titles[:5]
    assert metrics["eval_hit_rate@5"] == pytest.approx(hits / len(ROWS))
    assert metrics["eval_protocol"] == f"full/search=beam20/seen={seen}"


def test_leaving_them_out_changes_the_ranks_and_not_the_likelihood(make):
    kept, masked = (make("msl", seen=seen).evaluate() for seen in ("keep", "mask"))
    assert kept["eval_nll"] == pytest.approx(masked["eval_nll"], rel=1e-6)
    assert kept["eval_mrr@10"] != pytest.approx(masked["eval_mrr@10"], rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_refused_where_there_is_nothing_to_leave_out(make, method):
    with pytest.raises(ValueError, match="`seen='mask'` changes nothing while `eval_num_beams` is 0"):
        make(method, seen="mask", eval_num_beams=0)
    tokens = make(method, eval_dataset=None).train_dataset
    with pytest.raises(ValueError, match="`seen='mask'` needs the column `history`"):
        make(method, eval_dataset=tokens, seen="mask")
