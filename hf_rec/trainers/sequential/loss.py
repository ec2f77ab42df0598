"""The loss of a sequence model at its labelled positions: which items are scored, and how."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rec.losses import item_softmax
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.trainers.sequential.config import FULL_LOSSES, SequentialConfig
from hf_rec.trainers.sequential.sampling import NegativeSampler


GATHERED_ELEMENTS = 2**24  # item vector entries gathered at once for negatives per position: 64 MiB


class ItemLoss:
    """
    Sums the loss that a [`SequentialConfig`] names.

    Args:
        args ([`SequentialConfig`]): `loss_type`, and how negatives are drawn.
        num_items (`int`): N.
        counts (`np.ndarray` of shape `[N]`, *optional*): How often each item occurs in training; for
            `popularity_power`.
    """

    def __init__(self, args: SequentialConfig, num_items: int, counts: np.ndarray | None = None):
        self.args = args
        self.num_items = num_items
        self.num_negatives = args.effective_num_negatives
        full = args.loss_type in FULL_LOSSES
        self.needs_seen = args.negative_pool == "unseen" and not full
        self.needs_positions = not full and (not args.share_negatives or args.num_negative_sets > 1)
        if full:
            return
        if self.num_negatives > num_items:
            raise ValueError(
                f"`num_negatives` must be at most the number of items, {num_items}, got {self.num_negatives}. "
                "With so few items, `loss_type='ce'` scores them all."
            )
        popularity = None
        if args.popularity_power:
            if counts is None:
                raise ValueError(
                    "`popularity_power` needs the counts of a whole data set; a stream has none. Set it to 0."
                )
            popularity = np.asarray(counts, dtype=np.float64) ** args.popularity_power
        self.sampler = NegativeSampler(num_items, self.num_negatives, args.negative_pool, popularity, args.seed)
        alpha = num_items / self.num_negatives if args.alpha is None else args.alpha
        self.alpha: float | None = {"sce": alpha, "ssm": 1.0}.get(args.loss_type)
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "sce": partial(item_softmax.scaled_cross_entropy, alpha=alpha),
            "ssm": item_softmax.sampled_softmax,
            "bce": item_softmax.bce,
            "bpr": item_softmax.bpr,
            "nce": partial(item_softmax.nce, num_items=num_items, c=args.nce_c),
            "neg": item_softmax.neg,
        }
        self.loss = losses[args.loss_type]

    def __call__(
        self,
        model: SequencePreTrainedModel,
        vectors: Tensor,
        targets: Tensor,
        positions: Tensor | None,
        step: int,
        seen: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): Gives item vectors and biases.
            vectors (`torch.Tensor` of shape `(P, d)`): The user at each labelled position.
            targets (`torch.Tensor` of shape `(P,)`): The item to be predicted there.
            positions (`torch.Tensor` of shape `(P,)`, *optional*): From
                [`~hf_rec.trainers.seeded_draws.position_keys`], where `needs_positions`.
            step (`int`): Optimizer steps taken.
            seen (`torch.Tensor` of shape `(P, S)`, *optional*): Items of the row of each position, padded with -1,
                where `needs_seen`.

        Returns:
            `torch.Tensor`: Sum over positions, float32.
        """
        if self.args.loss_type in FULL_LOSSES:
            eta = self.args.reach if self.args.loss_type == "ce_tight" else None
            return item_softmax.chunked_cross_entropy(vectors, model.item_vectors(), targets, model.item_bias(), eta)
        positive = (vectors * model.item_vectors(targets)).sum(dim=1)
        if (bias := model.item_bias(targets)) is not None:
            positive = positive + bias
        if self.args.share_negatives:
            return self._shared(model, vectors, positive, targets, positions, step)
        items = self.sampler.by_position(step, positions, targets, seen)
        negative = _scores_by_position(model, vectors, items)
        if self.args.log_q_correction:
            negative = negative - self.sampler.log_relative_frequency(items)
        return self._sum(positive, negative, targets, items)

    def _shared(
        self,
        model: SequencePreTrainedModel,
        vectors: Tensor,
        positive: Tensor,
        targets: Tensor,
        positions: Tensor | None,
        step: int,
    ) -> Tensor:
        """Positions are dealt among the sets of negatives; each set is one matrix product."""
        num_sets = self.args.num_negative_sets
        items = self.sampler.shared(step, vectors.device, num_sets)
        counts = [len(targets)]
        if num_sets > 1:
            chosen = self.sampler.set_of(step, positions, num_sets)
            order = chosen.argsort()
            vectors, positive, targets = vectors[order], positive[order], targets[order]
            counts = (chosen[:, None] == torch.arange(num_sets, device=chosen.device)).sum(dim=0).tolist()
        offset = self._offset(model, items)
        parts = (
            vectors.split(counts),
            positive.split(counts),
            targets.split(counts),
            items,
            model.item_vectors(items),
        )
        total = self._one_softmax if self.alpha is not None else self._one_set
        return sum(total(*part) for part in zip(*parts, offset, strict=True))

    def _one_softmax(
        self, vectors: Tensor, positive: Tensor, targets: Tensor, items: Tensor, item_vectors: Tensor, offset: Tensor
    ) -> Tensor:
        """`sce` and `ssm`, without a `(P, K)` matrix."""
        return item_softmax.chunked_scaled_cross_entropy(
            vectors, item_vectors, positive, (targets, items), offset, 1.0 if self.alpha is None else self.alpha
        )

    def _one_set(
        self, vectors: Tensor, positive: Tensor, targets: Tensor, items: Tensor, item_vectors: Tensor, offset: Tensor
    ) -> Tensor:
        return self._sum(positive, vectors @ item_vectors.t() + offset, targets, items)

    def _offset(self, model: SequencePreTrainedModel, items: Tensor) -> Tensor:
        """What is added to the scores of negatives, apart from the dot product."""
        bias = model.item_bias(items)
        offset = torch.zeros(items.shape, device=items.device) if bias is None else bias
        return offset - self.sampler.log_relative_frequency(items) if self.args.log_q_correction else offset

    def _sum(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        return self.loss(positive, negative.masked_fill(items == targets[:, None], -torch.inf)).sum()


def _scores_by_position(model: SequencePreTrainedModel, vectors: Tensor, items: Tensor) -> Tensor:
    """Scores `(P, K)`; the item vectors are gathered for some positions at a time, and again in the backward pass."""
    size = max(GATHERED_ELEMENTS // (items.shape[1] * vectors.shape[1]), 1)
    parts = [
        checkpoint(model.score_items, *part, use_reentrant=False)
        for part in zip(vectors.split(size), items.split(size), strict=True)
    ]
    return torch.cat(parts)
