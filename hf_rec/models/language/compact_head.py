"""
The LM head of a causal LM, on chosen positions and chosen columns only.

A trie-masked loss or search needs the logits of a few tokens at a few positions, while `model(...)` computes all
`[B, T, V]`. Here the head selects inside its own forward, so the hooks of DDP, ZeRO and FSDP, the scaling and
soft-capping that some models apply to their logits, and LoRA on the head all do what they do without us.

Shapes: B rows · T tokens · P chosen positions · U chosen columns · V vocabulary size · H hidden size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from hf_rec.models.language.token_columns import TokenColumns, trainable_tokens


logger = logging.get_logger(__name__)

_ATTRIBUTE = "_hf_rec_compact_head"


@dataclass(frozen=True)
class _Selection:
    """What one call of the model wants of its head."""

    positions: Tensor
    blocks: list[tuple[int, Tensor | None]]  # number of positions and columns of each
    flat: bool


# A selection belongs to the thread that runs the model, so that calls in other threads do not see it.
_SELECTIONS: "ContextVar[Mapping[CompactHead, _Selection]]" = ContextVar("_SELECTIONS", default=MappingProxyType({}))
_INSTALLING = Lock()


def _output_linears(head: nn.Module) -> list[Any] | None:
    """The linear layers that write vocabulary columns; None where `head` is something we cannot see through."""
    if type(head) is nn.Linear:
        return [head]
    tokens = trainable_tokens(head)
    if tokens is not None:
        return [tokens]
    modules_to_save = getattr(head, "modules_to_save", None)  # PEFT: one full copy of the head per adapter
    if isinstance(modules_to_save, nn.ModuleDict) and hasattr(head, "original_module"):
        return _joined([head.original_module, *modules_to_save.values()])
    if hasattr(head, "lora_B") and hasattr(head, "base_layer"):  # PEFT: base(x) + lora_B(lora_A(x)) * scaling
        if getattr(head, "lora_variant", None):  # DoRA and others look at whole weight rows
            return None
        return _joined([head.base_layer, *head.lora_B.values()])
    return None


def _has_bias_outside(model: nn.Module) -> bool:
    """Whether a model adds a bias to its logits after the head, where whole rows are expected."""
    return any(name.endswith("final_logits_bias") for name, _ in model.named_buffers())


def _joined(parts: list[nn.Module]) -> list[Any] | None:
    """The linear layers of all parts; None where one of them is closed to us."""
    linears: list[Any] = []
    for part in parts:
        inner = _output_linears(part)
        if inner is None:
            return None
        linears += inner
    return linears


class CompactHead:
    """
    Switch on a causal LM's output layer. Outside [`~CompactHead.select`] the layer behaves as before.

    Example:

    ```python
    head = CompactHead.install(model)
    with head.select(positions, columns):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[0]  # (P, U)
    ```
    """

    def __init__(self, layer: nn.Module, linears: list[Any]):
        self.vocab_size = linears[0].out_features
        self.linears = linears
        layer.register_forward_pre_hook(self._select_positions)
        for linear in linears:
            if not isinstance(linear, nn.Linear):
                linear.forward_adapters = partial(self._select_token_columns, linear, linear.forward_adapters)
                continue
            # accelerate's device hooks keep the layer's own forward as `_old_forward` and call it from theirs
            name = "_old_forward" if hasattr(linear, "_hf_hook") else "forward"
            setattr(linear, name, partial(self._select_columns, linear))

    @classmethod
    def install(cls, model: nn.Module) -> "CompactHead | None":
        """
        Get the compact head of a model, made at the first call.

        Args:
            model (`torch.nn.Module`): A causal LM or a `PeftModel` over one, not wrapped by DDP or the like.

        Returns:
            [`CompactHead`] or `None`: `None`, with one log line, where the output layer cannot be wrapped (a quantized
            head, DoRA on the head, a bias of the logits outside of it as in BART). Use plain logits then.
        """
        layer = model.get_output_embeddings()
        linears = None if layer is None or _has_bias_outside(model) else _output_linears(layer)
        if linears is None:
            logger.warning_once(
                f"The output layer of {type(model).__name__} is a {type(layer).__name__}, which cannot be computed on "
                "a few columns: whole rows of logits are computed instead (slower, same numbers)."
            )
            return None
        with _INSTALLING:
            present = layer.__dict__.get(_ATTRIBUTE)
            if present is None or present.linears != linears:
                present = cls(layer, linears)
                object.__setattr__(layer, _ATTRIBUTE, present)
        return present

    @contextmanager
    def select(self, positions: Tensor, columns: Tensor | None) -> Iterator["CompactHead"]:
        """
        Within this context `model(...).logits` has shape `(1, P, U)`, in float32 where columns are chosen.

        The selection holds for calls in the same thread (`contextvars`), so any number of threads may use one head.

        Args:
            positions (`torch.Tensor` of shape `(P,)`): Flat indices into the `B * T` positions the head is given.
            columns (`torch.Tensor` of shape `(U,)` or `None`): Token ids; `None` for all `V`.
        """
        with self._selected(_Selection(positions, [(positions.numel(), columns)], flat=False)):
            yield self

    @contextmanager
    def select_blocks(self, blocks: list[tuple[Tensor, Tensor]]) -> Iterator["CompactHead"]:
        """
        Within this context `model(...).logits` has shape `(1, 1, P1 * U1 + P2 * U2 + ...)`: the blocks, laid end to
        end, in float32.

        Positions that need the same columns share a block, so that no position pays for the columns of another block.

        Args:
            blocks (`list[tuple[torch.Tensor, torch.Tensor]]`): Positions `(P,)` and columns `(U,)` of each block.
        """
        positions = torch.cat([positions for positions, _ in blocks])
        sizes = [(part.numel(), columns) for part, columns in blocks]
        with self._selected(_Selection(positions, sizes, flat=True)):
            yield self

    @contextmanager
    def _selected(self, selection: _Selection) -> Iterator[None]:
        token = _SELECTIONS.set({**_SELECTIONS.get(), self: selection})
        try:
            yield
        finally:
            _SELECTIONS.reset(token)

    @torch.compiler.disable  # a compiled graph would keep the first answer for ever
    def _selection(self) -> _Selection | None:
        """The selection of this call; `None` for the whole head, as ever."""
        return _SELECTIONS.get().get(self)

    def _select_positions(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        selection = self._selection()
        if selection is None:
            return inputs
        hidden = inputs[0]
        _refuse_shards(hidden)
        return (hidden.flatten(0, -2).index_select(0, selection.positions)[None], *inputs[1:])

    def _select_columns(self, linear: nn.Linear, hidden: Tensor) -> Tensor:
        selection = self._selection()
        if selection is None:
            return F.linear(hidden, linear.weight, linear.bias)
        return self._selected_columns(selection, linear, hidden)

    def _select_token_columns(
        self, layer: nn.Module, whole: Callable[..., Tensor], hidden: Tensor, adapters: list[str]
    ) -> Tensor:
        selection = self._selection()
        if selection is None:
            return whole(hidden, adapters)
        return self._selected_columns(selection, TokenColumns.of(layer, adapters), hidden)

    def _selected_columns(self, selection: _Selection, linear: nn.Linear | TokenColumns, hidden: Tensor) -> Tensor:
        _refuse_shards(linear.base if isinstance(linear, TokenColumns) else linear.weight)
        parts = hidden.split([num_rows for num_rows, _ in selection.blocks], dim=1)
        outputs = [
            _linear_on(linear, part, columns) for part, (_, columns) in zip(parts, selection.blocks, strict=True)
        ]
        if not selection.flat:
            return outputs[0]
        return torch.cat([output.flatten() for output in outputs])[None, None]


def _refuse_shards(tensor: Tensor) -> None:
    """FSDP and ZeRO make weights whole before a layer runs; under tensor parallelism a process keeps its columns."""
    if isinstance(tensor, DTensor):
        raise ValueError(
            "The output layer is split over processes by a tensor-parallel plan, so that chosen columns cannot be "
            "computed. Load the model without `tp_plan` and `tp_size`; to shard its weights use FSDP or ZeRO-3."
        )


def _linear_on(linear: nn.Linear | TokenColumns, hidden: Tensor, columns: Tensor | None) -> Tensor:
    """
    Some columns of a linear layer, in float32: they are few, and logits of size 16 to 32 lie .125 apart in bfloat16.
    """
    if columns is None:
        return F.linear(hidden, linear.weight, linear.bias)
    bias = None if linear.bias is None else linear.bias.index_select(0, columns).float()
    with torch.autocast(hidden.device.type, enabled=False):
        if isinstance(linear, TokenColumns):
            return F.linear(hidden.float(), linear.rows(columns), bias)
        return F.linear(hidden.float(), linear.weight.index_select(0, columns).float(), bias)
