"""The robust loss of DROS in SequentialTrainer: what is added to which loss, and what its weights are made of."""

import pytest
import torch
from datasets import Dataset

from hf_rec import CaserConfig, CaserModel, SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, INPUT_IDS, LABEL_PLACES, LABELS, TARGET
from hf_rec.losses.robust import item_shares, robust_loss
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer


N = 20


def cycle(count, length=5, shift=0):
    walks = [[(start * 7 + step + shift) % N for step in range(length)] for start in range(count)]
    return Dataset.from_dict({HISTORY: [walk[:-1] for walk in walks], TARGET: [walk[-1] for walk in walks]})


@pytest.fixture
def make_trainer(tmp_path):
    def build(train=None, kind=(SASRecModel, SASRecConfig), **settings):
        torch.manual_seed(0)
        model = kind[0](kind[1](num_items=N, hidden_size=8, max_length=6, dropout=0.0))
        settings = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 0.03} | settings
        settings |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
        args = SequentialConfig(str(tmp_path / "run"), **settings)
        return SequentialTrainer(model, args, cycle(16) if train is None else train, cycle(9, length=4))

    return build


def loss_of(trainer):
    batch = trainer._train_collator(trainer.train_dataset.__getitems__([0, 1, 2, 3]))
    return trainer.compute_loss(trainer.model, dict(batch)), batch


@pytest.mark.parametrize("loss_type", ["ce", "ce_tight", "bce", "sce"])
def test_the_robust_loss_of_the_labels_is_added_to_any_loss(make_trainer, loss_type):
    settings = {"robust_weight": 0.4, "robust_radius": 0.8, "robust_popularity_power": 0.3}
    plain, _ = loss_of(make_trainer(loss_type=loss_type, num_negatives=3))
    trainer = make_trainer(loss_type=loss_type, num_negatives=3, **settings)
    found, batch = loss_of(trainer)
    hidden = trainer.model(batch[INPUT_IDS]).last_hidden_state.flatten(0, 1)[batch[LABEL_PLACES]]
    targets = batch[LABELS].flatten()[batch[LABEL_PLACES]]
    rows = cycle(16)
    events = [item for row in rows for item in [*row[HISTORY], row[TARGET]]]
    shares = item_shares(torch.tensor(events).bincount(minlength=N), 0.3)  # the rows of training, and no other
    expected = robust_loss(trainer.model.score_items(hidden), targets, shares, 0.8).mean()
    torch.testing.assert_close(found, plain + 0.4 * expected)


@pytest.mark.parametrize("kind", [(SASRecModel, SASRecConfig), (CaserModel, CaserConfig)])
def test_rows_and_prefixes_learn_with_it_and_log_it(make_trainer, kind):
    trainer = make_trainer(kind=kind, robust_weight=0.1)
    before = trainer.evaluate()["eval_ndcg@10"]
    trainer.train()
    assert trainer.evaluate()["eval_ndcg@10"] > before + 0.15
    assert len([entry for entry in trainer.state.log_history if "robust_loss" in entry]) == 30


def test_a_stream_has_no_counts_and_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"`robust_weight` is 0.1, but .* a stream has none"):
        make_trainer(cycle(16).to_iterable_dataset(), robust_weight=0.1)
