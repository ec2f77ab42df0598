import numpy as np
import pytest

from hf_rec.evaluation.protocol import protocol_key
from hf_rec.evaluation.validation import validation_metrics


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "full/search=exact/seen=keep"),
        ({"num_beams": 20, "seen": "mask", "split_rule": "loo"}, "full/search=beam20/seen=mask/split=loo"),
        (
            {"candidates": "candidates=1+19/file=1a2b3c4d", "split_rule": "time"},
            "candidates=1+19/file=1a2b3c4d/split=time",
        ),
    ],
)
def test_the_key_names_every_rule_that_is_known(settings, key):
    assert protocol_key(**settings) == key


@pytest.mark.parametrize("wrong", [{"seen": "hide"}, {"split_rule": "a/b"}, {"split_rule": ""}])
def test_a_rule_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        protocol_key(**wrong)


def test_a_trainer_logs_its_metrics_with_the_protocol_they_were_measured_under():
    nll, ranks = np.array([1.0, 2.0, 6.0]), (np.array([0, 1, 50]), np.zeros(3, dtype=np.int64))
    found = validation_metrics(nll, ranks, num_beams=20, seen="mask", warm=np.array([True, True, False]))
    assert found["nll"] == pytest.approx(3) and found["nll_warm"] == pytest.approx(1.5)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    assert found["protocol"] == "full/search=beam20/seen=mask"


def test_what_was_not_ranked_has_no_protocol_and_no_warm_targets_no_mean():
    assert validation_metrics(np.array([1.0]), warm=np.array([False])) == {"nll": 1.0}
