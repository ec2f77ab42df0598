"""The robust loss of DROS beside any other loss of a sequence model."""

import numpy as np
import torch
from torch import Tensor

from hf_rec.losses.robust import chunked_robust_loss, item_shares
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.trainers.sequential.aided_config import AidedConfig


class RobustLoss:
    """
    Sums the robust loss of DROS.

    Args:
        args ([`AidedConfig`]): `robust_radius`, `robust_popularity_power`.
        counts (`np.ndarray` of shape `[N]`, *optional*): How often each item occurs in training. A stream has none.
    """

    def __init__(self, args: AidedConfig, counts: np.ndarray | None):
        if counts is None:
            raise ValueError(
                f"`robust_weight` is {args.robust_weight}, but a robust loss needs the counts of a whole data set; a "
                "stream has none. Set it to 0, or load the data set."
            )
        self.radius = args.robust_radius
        self.shares = item_shares(torch.from_numpy(counts), args.robust_popularity_power)

    def __call__(
        self, model: SequencePreTrainedModel, vectors: Tensor, listed: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): Gives item vectors and biases.
            vectors (`torch.Tensor` of shape `(P, d)`): The user at each labelled position.
            listed (`torch.Tensor` of shape `(P, K)`): The items each of which is a target there, padded with -1.
            weights (`torch.Tensor` of shape `(P, K)`, *optional*): Of each of them. Default: 1.

        Returns:
            `torch.Tensor`: Sum over positions and targets, float32.
        """
        self.shares = self.shares.to(vectors.device)  # once: the table is as long as the catalog
        return chunked_robust_loss(
            vectors, model.item_vectors(), listed, self.shares, self.radius, model.item_bias(), weights
        )
