"""
Losses of a next-item recommender over the scores of items: full softmax, sampled softmaxes and pairwise losses.

Shapes: P labelled positions · N items · K negatives a position · d width of a user vector. Unit: nats a position.
Scores may have any float dtype; exponentials are summed in float32. A negative score of `-inf` is no negative: that is
how a sampled item that happens to be the target is left out.

| loss | formula | full softmax when |
|---|---|---|
| [`cross_entropy`] | -log e^{s+} / sum_i e^{s_i} | always |
| [`ce_tight`] | the same over the items with s_i >= s+ - eta * abs(s+) | eta is large |
| [`sampled_softmax`] | -log e^{s+} / (e^{s+} + sum_K e^{s-}) | the negatives are all other items |
| [`scaled_cross_entropy`] | -log e^{s+} / (e^{s+} + alpha * sum_K e^{s-}) | on average, at alpha = N / K |
| [`bce`], [`bpr`], [`nce`], [`neg`] | logistic losses of the target against K negatives | never |
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_rec.losses.all_scores import (
    ACCELERATOR_CHUNK_ELEMENTS,
    CPU_CHUNK_ELEMENTS,
    in_autocast_dtype,
    loss_of_all_scores,
)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """
    Full softmax loss from the scores of all items. [`chunked_cross_entropy`] is the same without `N` scores a
    position.

    Args:
        scores (`torch.Tensor` of shape `(P, N)`): Scores of all items.
        targets (`torch.Tensor` of shape `(P,)`): Column of each target.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32.
    """
    return F.cross_entropy(scores.float(), targets, reduction="none")


def ce_tight(scores: Tensor, targets: Tensor, eta: float) -> Tensor:
    """
    Full softmax loss over the items that score within reach of the target (https://huggingface.co/papers/2402.06216).

    Args:
        scores (`torch.Tensor` of shape `(P, N)`): Scores of all items.
        targets (`torch.Tensor` of shape `(P,)`): Column of each target.
        eta (`float`): Items with `s_i < s+ - eta * abs(s+)` are left out; the threshold gets no gradient. At least 0.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32. Never above [`cross_entropy`].
    """
    scores = scores.float()
    return cross_entropy(
        scores.masked_fill(_out_of_reach(scores.detach(), targets, _check_eta(eta)), -torch.inf), targets
    )


def scaled_cross_entropy(positive: Tensor, negative: Tensor, alpha: float) -> Tensor:
    """
    Scaled cross-entropy: a sampled softmax whose negatives count `alpha` times (SCE,
    https://huggingface.co/papers/2402.06216).

    Args:
        positive (`torch.Tensor` of shape `(P,)`): Scores of the targets.
        negative (`torch.Tensor` of shape `(P, K)`): Scores of the negatives.
        alpha (`float`): Weight of each negative, greater than 0. `N / K` makes the sum an unbiased estimate of the
            full one.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32.
    """
    positive = positive.float()
    everything = torch.cat([positive[:, None], negative.float() + _log_alpha(alpha)], dim=1)
    return everything.logsumexp(dim=1) - positive


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """Softmax loss of the target against its negatives alone: [`scaled_cross_entropy`] with `alpha = 1`."""
    return scaled_cross_entropy(positive, negative, alpha=1.0)


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """
    Binary cross-entropy: `softplus(-s+)` plus the mean over negatives of `softplus(s-)`.

    Args:
        positive (`torch.Tensor` of shape `(P,)`): Scores of the targets.
        negative (`torch.Tensor` of shape `(P, K)`): Scores of the negatives; usually K = 1.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32.
    """
    negative = negative.float()
    return F.softplus(-positive.float()) + F.softplus(negative).sum(dim=1) / _num_negatives(negative)


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking: the mean over negatives of `softplus(-(s+ - s-))`. Shapes as in [`bce`]."""
    negative = negative.float()
    return F.softplus(negative - positive.float()[:, None]).sum(dim=1) / _num_negatives(negative)


def nce(positive: Tensor, negative: Tensor, num_items: int, c: float = 10.0) -> Tensor:
    """
    Noise contrastive estimation with uniform noise: `softplus(-(s+ + C)) + sum_K softplus(s- + C)`, `C = log(N / K) -
    c`.

    Args:
        positive (`torch.Tensor` of shape `(P,)`): Scores of the targets.
        negative (`torch.Tensor` of shape `(P, K)`): Scores of the negatives.
        num_items (`int`): N, the items that the noise draws from.
        c (`float`, *optional*, defaults to `10.0`): Log of the partition function that the scores are to have.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32.
    """
    shift = math.log(num_items / negative.shape[1]) - c
    return F.softplus(-(positive.float() + shift)) + F.softplus(negative.float() + shift).sum(dim=1)


def neg(positive: Tensor, negative: Tensor) -> Tensor:
    """Negative sampling as in word2vec: `softplus(-s+) + sum_K softplus(s-)`. Shapes as in [`bce`]."""
    return F.softplus(-positive.float()) + F.softplus(negative.float()).sum(dim=1)


def chunked_cross_entropy(
    vectors: Tensor,
    items: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    eta: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """
    Sum of [`cross_entropy`] (or [`ce_tight`]) over positions, with the scores of a few positions in memory at a time.

    The gradient is computed in the forward pass, chunk by chunk, so that no score is ever computed twice or kept. Peak
    memory is the gradient of `items` and two chunks of scores, at a million items as at a thousand.

    Args:
        vectors (`torch.Tensor` of shape `(P, d)`): User vectors at the labelled positions.
        items (`torch.Tensor` of shape `(N, d)`): Item vectors; a score is their dot product.
        targets (`torch.Tensor` of shape `(P,)`): Row of each target in `items`.
        bias (`torch.Tensor` of shape `(N,)`, *optional*): Added to the scores of every position.
        eta (`float`, *optional*): Reach of [`ce_tight`]; all items count without it.
        chunk_size (`int`, *optional*): Positions scored at a time. Default: about 4 MiB of scores on a CPU (what a
            core's cache holds), 512 MiB on an accelerator.

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    if eta is not None:
        _check_eta(eta)
    return loss_of_all_scores(vectors, items, bias, partial(_softmax_chunk, eta=eta), (targets,), chunk_size)


def chunked_scaled_cross_entropy(
    vectors: Tensor,
    negatives: Tensor,
    positive: Tensor,
    same: tuple[Tensor, Tensor] | None = None,
    offset: Tensor | None = None,
    alpha: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """
    Sum of [`scaled_cross_entropy`] over positions that share their negatives, a few positions at a time.

    As in [`chunked_cross_entropy`], the gradient is computed in the forward pass and no `(P, K)` matrix is kept.

    Args:
        vectors (`torch.Tensor` of shape `(P, d)`): User vectors at the labelled positions.
        negatives (`torch.Tensor` of shape `(K, d)`): Item vectors of the negatives.
        positive (`torch.Tensor` of shape `(P,)`): Scores of the targets.
        same (`tuple` of `torch.Tensor` of shapes `(P,)` and `(K,)`, *optional*): Ids of the targets and of the
            negatives; where they are the same, the negative does not count for the position.
        offset (`torch.Tensor` of shape `(K,)`, *optional*): Added to the scores of the negatives of every position:
            their bias, or minus log of how often they are drawn.
        alpha (`float`, *optional*, defaults to `1.0`): Weight of each negative, greater than 0.
        chunk_size (`int`, *optional*): Positions scored at a time. Default: about 1 MiB of scores on a CPU, 512 MiB on
            an accelerator.

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    offset = vectors.new_full((len(negatives),), _log_alpha(alpha)) if offset is None else offset + _log_alpha(alpha)
    if chunk_size is None:
        elements = CPU_CHUNK_ELEMENTS // 4 if vectors.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
        chunk_size = max(elements // max(len(negatives), 1), 16)
    vectors, negatives = in_autocast_dtype(vectors, negatives)
    targets, ids = (None, None) if same is None else same
    return _ChunkedScaledCrossEntropy.apply(
        vectors, negatives, positive.float(), offset.float(), targets, ids, chunk_size
    )


class _ChunkedScaledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        negatives: Tensor,
        positive: Tensor,
        offset: Tensor,
        targets: Tensor | None,
        ids: Tensor | None,
        chunk_size: int,
    ) -> Tensor:
        needs_grad = any(ctx.needs_input_grad[:4])
        grads = [torch.empty_like(vectors), torch.zeros_like(negatives), torch.empty_like(positive)]
        grads.append(torch.zeros_like(offset))
        total = vectors.new_zeros((), dtype=torch.float32)
        with torch.autocast(vectors.device.type, enabled=False):
            for rows in (slice(start, start + chunk_size) for start in range(0, len(vectors), chunk_size)):
                scores = (vectors[rows] @ negatives.t()).float() + offset
                if ids is not None and targets is not None:
                    # Not -inf: a position without any negative left would be NaN
                    scores.masked_fill_(ids == targets[rows, None], torch.finfo(scores.dtype).min)
                probabilities = torch.softmax(scores, dim=1)
                log_sum = scores.amax(dim=1) - probabilities.amax(dim=1).log()
                gap = log_sum - positive[rows]
                total += F.softplus(gap).sum()
                if not needs_grad:
                    continue
                share = torch.sigmoid(gap)  # of the negatives in the softmax
                grads[2][rows] = -share
                grad = probabilities.mul_(share[:, None])
                grads[3] += grad.sum(dim=0)
                grad = grad.to(vectors.dtype)
                grads[0][rows] = grad @ negatives
                grads[1] += grad.t() @ vectors[rows]
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        grads = [grad * grad_output.to(grad.dtype) if needs else None for grad, needs in needed]
        return *grads, None, None, None


def _softmax_chunk(scores: Tensor, buffer: Tensor, targets: Tensor, eta: float | None) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk and its gradient (in the buffer)."""
    if eta is not None:
        scores.masked_fill_(_out_of_reach(scores, targets, eta), -torch.inf)
    torch.softmax(scores, dim=1, out=buffer)
    # log sum exp = top score - log of its probability: one pass fewer than logsumexp, and no overflow
    log_sum = scores.amax(dim=1) - buffer.amax(dim=1).log()
    loss = (log_sum - scores.gather(1, targets[:, None]).squeeze(1)).sum()
    buffer[torch.arange(len(targets), device=targets.device), targets] -= 1
    return loss, buffer


def _out_of_reach(scores: Tensor, targets: Tensor, eta: float) -> Tensor:
    target = scores.gather(1, targets[:, None])
    # The slack keeps the target itself, and items that tie with it, inside when eta * abs(s+) is lost to rounding
    return scores < target - eta * target.abs() - 1e-8


def _log_alpha(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(
            f"`alpha` must be greater than 0, got {alpha}. Use the number of items over that of negatives, or 1."
        )
    return math.log(alpha)


def _check_eta(eta: float) -> float:
    if not eta >= 0:
        raise ValueError(f"`eta` must be at least 0, got {eta}. A large value makes the loss a full softmax.")
    return eta


def _num_negatives(negative: Tensor) -> Tensor:
    return (negative > -torch.inf).sum(dim=1).clamp(min=1)
