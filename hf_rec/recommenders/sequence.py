"""
Sequence models under the contract of all recommenders: every item is scored, so each list is certainly the best.

How items that never occur in training rank: like all others, by their score, and none is left out. A softmax over all
items, or over sampled ones, lowers their scores for the users of each step, and nothing ever raises them; but it does
not say for whom an item might be right, so the place of such an item means little. Results report targets of this kind
("cold") apart; `allow` and `exclude` keep them out of a list.

Shapes: U users · k places of a list · N items · d width of a user vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import PADDING_ITEM
from hf_rec.data.catalog import Catalog
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, RawId, Times
from hf_rec.recommenders.exact import ExactRecommender, ranked


class SequenceRecommender(ExactRecommender):
    """
    A sequence model that scores all items for a history.

    A score is the dot product of user and item vector, plus the item's bias where the model has one: the number that
    the losses of [`~hf_rec.trainers.sequential.trainer.SequentialTrainer`] work on. Items of equal score are listed in
    row order, so those for an empty history (whose vector is zero in most models) come as they stand in the catalog.

    Args:
        model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): The model. It need not be in eval mode.
        catalog ([`Catalog`]): The items that it was trained on.
        batch_size (`int`, *optional*, defaults to `512`): Histories worked on at a time; fewer where the catalog is
            large, so that no more than 64 MiB of scores are held.
    """

    kind = "sequence"

    def __init__(self, model: SequencePreTrainedModel, catalog: Catalog, batch_size: int = 512):
        super().__init__(catalog, batch_size)
        catalog.check_made_for(model.config.num_items, model.config.catalog_sha256)
        self.model = model

    def user_vectors(self, histories: Sequence[Sequence[RawId]], batch_size: int | None = None) -> np.ndarray:
        """The vector of each user after the history: float32 of shape `(U, d)`."""
        rows = self._history_rows(histories, None)
        vectors = np.zeros((len(rows), self.model.item_vectors().shape[1]), dtype=np.float32)
        for users in self._batches(rows, self._users_at_once(batch_size, 1, None), "Encoding"):
            vectors[users] = self._encode([rows[user] for user in users]).float().cpu().numpy()
        return vectors

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        return self._scores(histories, timestamps).cpu().numpy()

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        return ranked(self._scores(histories, timestamps), k, allowed)

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        items = torch.zeros((len(candidates), max(map(len, candidates))), dtype=torch.long)
        for user, rows in enumerate(candidates):
            items[user, : len(rows)] = torch.tensor(rows, dtype=torch.long)
        with torch.no_grad():
            vectors = self._encode(histories, timestamps)
            scores = self.model.score_items(vectors, items.to(vectors.device)).float().cpu().numpy()
        return [scores[user, : len(rows)] for user, rows in enumerate(candidates)]

    @torch.no_grad()
    def _scores(self, histories: list[list[int]], timestamps: Times | None) -> Tensor:
        return self.model.score_items(self._encode(histories, timestamps)).float()

    @torch.no_grad()
    def _encode(self, histories: list[list[int]], timestamps: Times | None = None) -> Tensor:
        newest = [history[-self.model.config.max_length :] for history in histories]
        width = max([1, *map(len, newest)])
        input_ids = torch.tensor([[PADDING_ITEM] * (width - len(history)) + history for history in newest])
        more = {}
        if self.model.reads_times and timestamps is not None:  # what came after the newest event is not known yet
            ends = [max(times, default=torch.iinfo(torch.int64).max - 1) + 1 for times in timestamps]
            more["before"] = torch.tensor(ends, device=self.model.device)
        with evaluation_mode(self.model):
            return self.model.user_vectors(input_ids.to(self.model.device), **more)
