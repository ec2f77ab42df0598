"""
Rows of other users as examples for a history (LLM-CF, https://huggingface.co/papers/2403.17688): the stored rows, and
the search for those most like it.

Shapes: R stored rows · E newest events of each · Q histories · S positions of a history · M examples of a history · N
items · T width of a text vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_rec.columns import PADDING_ITEM


_SIMILARITIES_AT_ONCE = 2**24  # stored rows times histories compared at a time: 64 MiB
_MOST_RECENT = 1e-5  # what the order of the rows adds to a similarity, so that of equals the later row is taken


class ExampleIndex(nn.Module):
    """
    Stored rows: what somebody had, and what came next. They are saved with the weights.

    Two histories are alike by the cosine of their sets of items, each item weighted by how few stored rows hold it
    (the log of the inverse share). An example shares an item with the history, and what came next in it is new to the
    history. So a user's own earlier rows are none: what came next there, the user has.

    Args:
        num_rows (`int`): R.
        length (`int`): E.
        text_size (`int`): T, 0 for no texts.
        num_items (`int`): N.
    """

    histories: Tensor  # (R, E), padded with -1 on the left
    targets: Tensor  # (R,)
    times: Tensor  # (R,) when the target was chosen
    texts: Tensor  # (R, T)

    def __init__(self, num_rows: int, length: int, text_size: int, num_items: int):
        super().__init__()
        self.num_items = num_items
        self.register_buffer("histories", torch.full((num_rows, length), PADDING_ITEM, dtype=torch.int32))
        self.register_buffer("targets", torch.zeros(num_rows, dtype=torch.int32))
        self.register_buffer("times", torch.zeros(num_rows, dtype=torch.int64))
        self.register_buffer("texts", torch.zeros(num_rows, text_size))
        self._bags: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @torch.no_grad()
    def find(
        self,
        histories: Tensor,
        num_examples: int,
        before: Tensor | None = None,
        users: Tensor | None = None,
        users_of_rows: Tensor | None = None,
    ) -> Tensor:
        """
        The stored rows most like each history, best first.

        Args:
            histories (`torch.Tensor` of shape `(Q, S)`): Catalog rows, padded with -1.
            num_examples (`int`): M.
            before (`torch.Tensor` of shape `(Q,)`, *optional*): Rows of that time or later are no examples. Default:
                all rows lie in the past.
            users (`torch.Tensor` of shape `(Q,)`), users_of_rows (`torch.Tensor` of shape `(R,)`, *optional*):
                Numbers of users; a row of the same user is no example.

        Returns:
            `torch.Tensor` of shape `(Q, M)`: Numbers of rows, -1 where there are no more.
        """
        found = torch.full((len(histories), num_examples), -1, dtype=torch.int64, device=histories.device)
        if not len(self):
            return found
        at_once = max(_SIMILARITIES_AT_ONCE // max(len(self), self.num_items), 1)
        for start in range(0, len(histories), at_once):
            part = slice(start, start + at_once)
            similarity = self._similarity(histories[part])  # (R, Q)
            if before is not None:
                similarity.masked_fill_(self.times[:, None] >= before[part], 0)
            if users is not None and users_of_rows is not None:
                similarity.masked_fill_(users_of_rows[:, None] == users[part], 0)
            best = similarity.t().contiguous().topk(min(num_examples, len(self)), dim=1)
            found[part, : best.indices.shape[1]] = best.indices.masked_fill(best.values <= 0, -1)
        return found

    def _similarity(self, histories: Tensor) -> Tensor:
        """Cosine up to a factor of each history, plus the order of the rows; 0 where a row is no example: `(R, Q)`."""
        items, starts, weights, item_weight = self._rows_as_bags()
        table = torch.zeros(self.num_items + 1, len(histories), device=histories.device)
        rows = torch.where(histories >= 0, histories, self.num_items)
        table.scatter_(0, rows.t(), 1.0)
        table[-1] = 0  # padding
        known = table.index_select(0, self.targets.long()) > 0  # what came next is not new
        lengths = (table * item_weight[:, None].square()).sum(dim=0).sqrt().clamp(min=1e-12)
        table *= item_weight[:, None] / lengths
        similarity = F.embedding_bag(items, table, starts, mode="sum", per_sample_weights=weights)
        order = torch.linspace(0, _MOST_RECENT, len(self), device=histories.device)
        return torch.where((similarity > 0) & ~known, similarity + order[:, None], 0)

    def _rows_as_bags(self) -> tuple[Tensor, ...]:
        """Distinct items of all rows end to end, where each row starts, and weights: of the entries, of the items."""
        if self._bags is not None and self._bags[0].device == self.histories.device:
            return self._bags
        histories = self.histories.long().sort(dim=1).values
        first = torch.ones_like(histories, dtype=torch.bool)
        first[:, 1:] = histories[:, 1:] != histories[:, :-1]
        first &= histories >= 0
        items, counts = histories[first], first.sum(dim=1)
        shared_by = torch.bincount(items, minlength=self.num_items + 1).float()
        item_weight = ((1 + len(self)) / (1 + shared_by)).log() + 1
        row = torch.repeat_interleave(torch.arange(len(self), device=items.device), counts)
        squares = torch.zeros(len(self), device=items.device).index_add_(0, row, item_weight[items].square())
        weights = item_weight[items] / squares.sqrt()[row]
        bags = items, counts.cumsum(0) - counts, weights, item_weight
        self._bags = bags  # of several threads each would make the same
        return bags

    def fill(self, histories: Tensor, targets: Tensor, times: Tensor, texts: Tensor | None) -> None:
        """Take the rows to store; shapes as those of the attributes."""
        self.histories.copy_(histories)
        self.targets.copy_(targets)
        self.times.copy_(times)
        if texts is not None:
            self.texts.copy_(texts)
        self._bags = None

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._bags = None
