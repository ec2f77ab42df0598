"""What preference training logs of each row."""

import torch
from torch import Tensor


REWARD_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def reward_metrics(rewards: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    """
    Rewards, margins, accuracies and log-probabilities.

    Args:
        rewards (`torch.Tensor` of shape `(B, 1 + K)`): `beta * log(pi / pi_ref)`, the chosen answer first; `-inf`
            where a row has fewer answers.
        log_probs (`torch.Tensor` of shape `(B, 1 + K)`): Of the policy.

    Returns:
        `dict[str, torch.Tensor]`: Values of shape `(B,)`; NaN where they have no meaning, as without rejected answers.
        `rewards/margins` is the distance of the chosen answer to the best rejected one, and `rewards/accuracies` says
        whether it is above all of them.
    """
    chosen, rejected = rewards[:, 0], rewards[:, 1:]
    absent = rejected == -torch.inf
    num_rejected = (~absent).sum(1)
    margins = torch.where(num_rejected > 0, chosen - rejected.amax(1), torch.nan)
    values = (
        chosen,
        rejected.masked_fill(absent, 0.0).sum(1) / num_rejected,
        margins,
        torch.where(margins.isnan(), margins, (margins > 0).float()),
        log_probs[:, 0],
        log_probs[:, 1:].masked_fill(absent, 0.0).sum(1) / num_rejected,
    )
    return dict(zip(REWARD_METRICS, values, strict=True))
