"""
An LM head of which the rows of some tokens are trained (PEFT's trainable tokens), on a few columns at a time.

Shapes: V vocabulary size · U chosen columns · H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def trainable_tokens(head: nn.Module) -> nn.Module | None:
    """The part of a head that holds its trained rows, where it is one whose other rows are a plain matrix."""
    layer = getattr(head, "token_adapter", None)
    if not hasattr(layer, "trainable_tokens_delta"):
        return None
    assert layer is not None
    base = layer.get_base_layer()
    return layer if type(base) is nn.Linear and base.bias is None else None


@dataclass(frozen=True)
class TokenColumns:
    """
    The head as one matrix without a bias.

    Attributes:
        base (`torch.Tensor` of shape `(V, H)`): Rows of all tokens before training.
        trained (`list[tuple[torch.Tensor, torch.Tensor]]`): Of each active adapter, token ids and the rows that they
            have instead.
    """

    base: Tensor
    trained: list[tuple[Tensor, Tensor]]
    bias: None = None

    @classmethod
    def of(cls, layer: Any, adapters: list[str]) -> "TokenColumns":
        """Of what [`trainable_tokens`] found, with some adapters active."""
        base = layer.get_base_layer().weight
        active = [] if layer.disable_adapters or layer.merged else adapters
        ids = [torch.tensor(layer.token_indices[name], device=base.device) for name in active]
        return cls(base, list(zip(ids, (layer.trainable_tokens_delta[name] for name in active), strict=True)))

    @property
    def weight(self) -> Tensor:
        """The whole matrix."""
        weight = self.base
        for ids, rows in self.trained:
            weight = weight.index_copy(0, ids, rows.to(weight.dtype))
        return weight

    def rows(self, columns: Tensor) -> Tensor:
        """Rows of the matrix, `(U, H)`, in float32."""
        weight = self.base.index_select(0, columns).float()
        for ids, rows in self.trained:
            place = torch.full((len(self.base),), -1, device=ids.device)
            place[ids] = torch.arange(len(ids), device=ids.device)
            place = place.index_select(0, columns)
            weight = torch.where((place >= 0)[:, None], rows[place.clamp(min=0)].float(), weight)
        return weight
