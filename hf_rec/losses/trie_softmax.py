"""
Softmax losses over the tokens an item trie allows (MSL, https://huggingface.co/papers/2504.04178).

Shapes: N labelled positions · V vocabulary size · C most children of any of the N trie nodes · E children of all N
nodes, laid end to end. Unit: nats. Every sum of exponentials is taken in float32, whatever the dtype of the logits.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rec.columns import NO_CHILD


def masked_softmax_loss(logits: Tensor, targets: Tensor, children: Tensor, tau: float = 1.0) -> Tensor:
    """
    Masked softmax loss of each target against its siblings in the trie: `-tau * log P_valid(target)`.

    This is the plain form, for tests and for small vocabularies; [`ragged_softmax_loss`] is the same number without a
    row of `V` logits.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): Next-token scores, any float dtype.
        targets (`torch.Tensor` of shape `(N,)`): Token ids, each present in its own row of `children`.
        children (`torch.Tensor` of shape `(N, C)`): Allowed token ids, short rows filled with `-1`.
        tau (`float`, *optional*, defaults to `1.0`): Temperature, greater than 0. It divides the logits and multiplies
            the loss, so that the gradient with respect to the logits is `P_valid - onehot`.

    Returns:
        `torch.Tensor` of shape `(N,)`: Loss per position, exactly 0 where the trie leaves one choice.
    """
    scores = logits.gather(1, children.clamp(min=0)).float() / tau
    scores = scores.masked_fill(children == NO_CHILD, -torch.inf)
    target_scores = logits.gather(1, targets[:, None]).squeeze(1).float() / tau
    return tau * (scores.logsumexp(dim=1) - target_scores)


def segment_logsumexp(values: Tensor, offsets: Tensor) -> Tensor:
    """
    Log-sum-exp of each segment of a flat tensor, differentiable.

    Args:
        values (`torch.Tensor` of shape `(E,)`): Any float dtype; summed in float32.
        offsets (`torch.Tensor` of shape `(N + 1,)`): Segment n is `values[offsets[n]:offsets[n + 1]]`.

    Returns:
        `torch.Tensor` of shape `(N,)`, float32: `-inf` for an empty segment.
    """
    values = values.float()
    lengths = offsets.diff()
    segment = torch.repeat_interleave(lengths, output_size=values.numel())
    top = values.detach().new_full(lengths.shape, -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    top = top.masked_fill(top == -torch.inf, 0.0)
    sums = torch.zeros_like(top).index_add(0, segment, (values - top[segment]).exp())
    return sums.log() + top


def ragged_softmax_loss(values: Tensor, offsets: Tensor, target_values: Tensor, tau: float = 1.0) -> Tensor:
    """
    Masked softmax loss from the logits of the allowed tokens alone; equals [`masked_softmax_loss`].

    Args:
        values (`torch.Tensor` of shape `(E,)`): Logits of the children of each position's trie node, end to end.
        offsets (`torch.Tensor` of shape `(N + 1,)`): Where each position's children begin.
        target_values (`torch.Tensor` of shape `(N,)`): Logit of each target.
        tau (`float`, *optional*, defaults to `1.0`): Temperature, greater than 0.

    Returns:
        `torch.Tensor` of shape `(N,)`: Loss per position in nats times `tau`.
    """
    return tau * segment_logsumexp(values / tau, offsets) - target_values.float()


def _rows_cross_entropy(logits: Tensor, targets: Tensor, tau: float) -> Tensor:
    scores = logits.float() if tau == 1 else logits.float() / tau
    return tau * F.cross_entropy(scores, targets, reduction="none")


def token_cross_entropy(logits: Tensor, targets: Tensor, tau: float = 1.0, chunk_size: int = 1024) -> Tensor:
    """
    Cross-entropy over the whole vocabulary (plain SFT, LML), with float32 copies of `chunk_size` rows at a time.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): Next-token scores, any float dtype.
        targets (`torch.Tensor` of shape `(N,)`): Token ids.
        tau (`float`, *optional*, defaults to `1.0`): Temperature; divides the logits and multiplies the loss.
        chunk_size (`int`, *optional*, defaults to `1024`): Rows in float32 at a time; the backward pass recomputes
            them.

    Returns:
        `torch.Tensor` of shape `(N,)`: Loss per position.
    """
    chunks = zip(logits.split(chunk_size), targets.split(chunk_size), strict=True)
    if logits.shape[0] <= chunk_size or not logits.requires_grad:
        parts = [_rows_cross_entropy(*rows, tau) for rows in chunks]
    else:
        parts = [checkpoint(_rows_cross_entropy, *rows, tau, use_reentrant=False) for rows in chunks]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


class SFTParts(NamedTuple):
    """Plain SFT (LML) taken apart, per position: `invalid_loss + valid_loss` is its cross-entropy."""

    invalid_loss: Tensor  # (N,) -log of the probability mass on valid tokens: "this is not a title at all"
    valid_loss: Tensor  # (N,) -log P_valid(target), which is the masked softmax loss at tau 1
    invalid_gradient: Tensor  # (N,) half the L1 norm of the first part's gradient with respect to the logits, 0 to 1
    valid_gradient: Tensor  # (N,) half the L1 norm of the second part's gradient, 0 to 1


def sft_parts(logits: Tensor, targets: Tensor, children: Tensor) -> SFTParts:
    """
    The two parts of plain SFT's loss and how much gradient each sends to the logits (paper, section 3.2).

    With q the probability mass on valid tokens, the L1 norm of the gradient is `2 (1 - q)` for the part that pushes
    mass from invalid to valid tokens, and `2 (1 - P_valid(target))` for the part that tells items apart.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): Next-token scores.
        targets (`torch.Tensor` of shape `(N,)`): Token ids, each present in its own row of `children`.
        children (`torch.Tensor` of shape `(N, C)`): Allowed token ids, short rows filled with `-1`.

    Returns:
        [`SFTParts`]: Four tensors of shape `(N,)`, float32.
    """
    valid_loss = masked_softmax_loss(logits, targets, children)
    total_loss = _rows_cross_entropy(logits, targets, 1.0)
    invalid_loss = (total_loss - valid_loss).clamp(min=0.0)
    return SFTParts(invalid_loss, valid_loss, -torch.expm1(-invalid_loss), -torch.expm1(-valid_loss))


def adaptive_temperature(
    positive_mean: float | Tensor,
    valid_mean: float | Tensor,
    valid_variance: float | Tensor,
    num_valid: float | Tensor,
    eta: float,
    tau_max: float = 5.0,
) -> Tensor:
    """
    Temperature at which a positive among `num_valid` Gaussian logits has a probability of about `eta`.

    With D = positive_mean - valid_mean and L = log(num_valid * eta), it is the larger root of
    `L tau^2 - D tau + valid_variance / 2 = 0`. The paper's Eq. 11 and 12 print the other root, which drives the
    probability of the positive to 1 and its gradient to 0; the released code takes this one.

    Args:
        positive_mean (`float` or `torch.Tensor`): Mean logit of the targets.
        valid_mean (`float` or `torch.Tensor`): Mean logit of all valid tokens.
        valid_variance (`float` or `torch.Tensor`): Variance of the logits of all valid tokens, at least 0.
        num_valid (`float` or `torch.Tensor`): Number of valid tokens a position.
        eta (`float`): Wanted probability, between 0 and 1.
        tau_max (`float`, *optional*, defaults to `5.0`): Returned where no temperature can be found: `num_valid * eta
            <= 1` or `D <= 0`.

    Returns:
        `torch.Tensor`, float64: The temperature; not clamped otherwise. A negative discriminant (the positive cannot
        be that improbable) counts as 0.
    """
    positive_mean, valid_mean, valid_variance, num_valid = (
        torch.as_tensor(value, dtype=torch.float64) for value in (positive_mean, valid_mean, valid_variance, num_valid)
    )
    gap = positive_mean - valid_mean
    log_ratio = (num_valid * eta).log()
    root = (gap**2 - 2.0 * valid_variance * log_ratio).clamp(min=0.0).sqrt()
    solvable = (log_ratio > 0) & (gap > 0)
    tau = (gap + root) / (2.0 * torch.where(solvable, log_ratio, 1.0))
    return torch.where(solvable, tau, torch.full_like(tau, tau_max))
