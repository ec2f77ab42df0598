"""What SequentialConfig refuses."""

import pytest

from hf_rec.trainers.sequential.config import SequentialConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "softmax"}, "`loss_type` must be one of 'ce', 'ce_tight', 'sce'"),
        ({"alpha": 0.0}, "`alpha` must be greater than 0, got 0.0"),
        ({"alpha": -1.0}, "`alpha` must be greater than 0"),
        ({"num_negatives": 0}, "`num_negatives` must be at least 1"),
        ({"num_negative_sets": 0}, "`num_negative_sets` must be at least 1"),
        (
            {"num_negative_sets": 2, "share_negatives": False},
            "`num_negative_sets` must be 1 with `share_negatives=False`",
        ),
        ({"reach": -1.0}, "`reach` must be at least 0"),
        ({"shortest_prefix": 0}, "`shortest_prefix` must be at least 1"),
        ({"mask_ratio": 1.5}, "`mask_ratio` must be between 0 and 1"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be at least 1"),
        ({"negative_pool": "unseen"}, "`negative_pool` must be 'all' with `share_negatives=True`"),
        ({"log_q_correction": True}, "`log_q_correction` corrects nothing"),
        ({"item_optimizer": "lazy"}, "`item_optimizer='lazy'` needs a loss that samples"),
        ({"item_optimizer": "lazy", "loss_type": "sce", "weight_decay": 0.1}, "`weight_decay_form='decoupled'`"),
        ({"robust_weight": -1.0}, "`robust_weight` must be at least 0, got -1.0"),
        ({"robust_weight": 0.1, "robust_radius": 0.0}, "`robust_radius` must be greater than 0, got 0.0"),
        ({"robust_popularity_power": -0.1}, "`robust_popularity_power` must be at least 0"),
        (
            {"item_optimizer": "lazy", "loss_type": "sce", "robust_weight": 0.1},
            "`item_optimizer='lazy'` touches few items a step, `robust_weight` 0.1 all of them",
        ),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` must be False"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        SequentialConfig(str(tmp_path), use_cpu=True, **settings)
