"""
Preference losses over one chosen and K rejected answers (S-DPO, https://huggingface.co/papers/2406.09215).

Shapes: B examples · K most rejected answers of any example. Unit: nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """
    Softmax-DPO: the cross-entropy of the chosen answer among the implicit rewards of all K + 1 answers.

    With the reward `r = beta * log(pi / pi_ref)` of each answer it is `log(1 + sum_k exp(r_k - r_chosen))`, Eq. 10 of
    the paper. One rejected answer gives DPO, `-log sigmoid(r_chosen - r_1)`.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`): `log pi - log pi_ref` of the chosen answers, any dtype.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`): The same of the rejected ones; `-inf` where an example
            has fewer than K.
        beta (`float`): Strength of the pull towards the reference, greater than 0.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32: Loss of each example; `log(K + 1)` where policy and reference agree.
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be greater than 0, got {beta}. The paper uses 1.0.")
    if rejected_logratios.ndim != 2 or rejected_logratios.shape[1] == 0:
        raise ValueError(
            "`rejected_logratios` must have the shape (B, K) with at least one rejected answer, got "
            f"{tuple(rejected_logratios.shape)}."
        )
    rewards = beta * torch.cat([chosen_logratios[:, None].float(), rejected_logratios.float()], dim=1)
    chosen = torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)
    return F.cross_entropy(rewards, chosen, reduction="none")
