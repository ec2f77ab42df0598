import types

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.evaluation.fit_temperature import fit_temperature, target_nll


class SoftmaxScorer:
    """Four items with fixed logits; P is their softmax at `tau`."""

    def __init__(self, logits):
        self.catalog = types.SimpleNamespace(ids=[10, 11, 12, 13])
        self.logits, self.tau = np.array(logits), 1.0

    def score(self, histories, candidates, timestamps=None, batch_size=None):
        values = self.logits / self.tau
        values = values - np.log(np.exp(values).sum())
        return [values[[self.catalog.ids.index(item) for item in items]] for items in candidates]


def rows(targets):
    return Dataset.from_dict({"history": [[0]] * len(targets), "target": targets})


def test_the_likelihood_is_the_mean_over_targets():
    scorer = SoftmaxScorer(np.log([1.0, 2.0, 3.0, 4.0]))
    assert target_nll(scorer, rows([3, 1])) == pytest.approx(-(np.log(0.4) + np.log(0.2)) / 2)


@pytest.mark.parametrize("true_tau", [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_that_made_the_targets(true_tau):
    logits = np.array([0.0, 1.0, 2.0, 4.0])
    probabilities = np.exp(logits / true_tau) / np.exp(logits / true_tau).sum()
    counts = np.round(probabilities * 1000).astype(int)
    scorer = SoftmaxScorer(logits)
    found = fit_temperature(scorer, rows(np.repeat(np.arange(4), counts).tolist()))
    assert found == pytest.approx(true_tau, rel=0.1)
    assert scorer.tau == found


def test_a_split_without_rows_is_refused():
    with pytest.raises(ValueError, match="`dataset`"):
        fit_temperature(SoftmaxScorer([0.0] * 4), rows([0]).select([]))
