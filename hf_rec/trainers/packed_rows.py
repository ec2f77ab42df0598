"""
Rows end to end in one row of a batch, and what keeps them apart.

A mask of one's own, or sequence lengths, are the only thing that does. A model may not take them, may drop keys beyond
its attention window, or may carry a state past them. What its configuration does not tell is tried out.

Shapes: B rows of a batch · T tokens of each.
"""

import inspect

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_rec.columns import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, SEGMENTS
from hf_rec.data.collators import Layout, place
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.trie_logits import vocabulary_logits


SHARED = 0  # the segment that all others of its row see: a prompt before its answers
_WINDOW_NAMES = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
# Mean difference in nats a token that rounding explains
TOLERANCE, TOLERANCE_HALF = 1e-4, 0.1
_PROBE_ROWS, _PROBE_TOKENS = 4, 32


def attention_mask(segments: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """
    Mask under which a token sees what comes before it in its own segment, and segment 0 of its row.

    Args:
        segments (`torch.LongTensor` of shape `(B, T)`): Segment of each token; -1 for padding.
        implementation (`str`): `"sdpa"` takes a boolean mask; `"eager"` adds it to the attention scores.
        dtype (`torch.dtype`): Of the attention scores, for `"eager"`.

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)`: `True` or `0` where a query (row) sees a key (column).
    """
    query, key = segments[:, :, None], segments[:, None, :]
    order = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    # Padding sees padding, so that no row of the mask is empty
    seen = (order & ((key == SHARED) | (key == query)))[:, None]
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def mask_dtype(model: nn.Module) -> torch.dtype:
    """Float dtype of a model's embeddings, and so of its attention scores."""
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def attention_window(config: PretrainedConfig) -> int | None:
    """Tokens that the narrowest layer looks back, as far as the configuration tells; `None` for no limit."""
    values = [getattr(config.get_text_config(), name, None) for name in _WINDOW_NAMES]
    return min((value for value in values if isinstance(value, int) and value > 0), default=None)


class PackedRows:
    """
    Makes the inputs of a model from batches of packed rows, after a start-up probe: a few rows of the first batch run
    packed and one by one on the real model, and all processes go by the worst difference that any of them finds.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal LM.
        max_length (`int`): Most tokens of a row, as far as they are known beforehand.

    Raises:
        `ValueError`: Where the model cannot run packed rows, as far as its configuration and signature tell.
    """

    def __init__(self, model: PreTrainedModel, max_length: int):
        base = model.get_base_model() if is_peft_model(model) else model
        self.name = type(base).__name__
        self.implementation: str = base.config._attn_implementation
        self.window = attention_window(base.config)
        self.dtype = mask_dtype(base)
        self.layout: Layout = "one_row" if self.implementation.startswith("flash_attention") else "packed"
        self._probed = False
        if self.layout == "packed" and self.implementation not in ("sdpa", "eager"):
            self._refuse(f"its attention {self.implementation!r} takes no mask of one's own")
        if POSITION_IDS not in inspect.signature(base.forward).parameters:
            self._refuse("it takes no `position_ids`")
        self._check_length(max_length)

    def _check_length(self, length: int) -> None:
        """Refuse rows that are longer than the attention window: a mask of one's own stands in for the window's."""
        if self.layout == "packed" and self.window is not None and length > self.window:
            self._refuse(f"rows may have {length} tokens, and it looks back {self.window}")

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Arguments of the model.

        Args:
            batch (`dict[str, torch.Tensor]`): With `input_ids`, `position_ids` and `segments`, each `(B, T)`.
        """
        self._check_length(batch[INPUT_IDS].shape[1])
        return self._inputs(batch)

    def _inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = {INPUT_IDS: batch[INPUT_IDS], POSITION_IDS: batch[POSITION_IDS]}
        if self.layout == "packed":
            inputs[ATTENTION_MASK] = attention_mask(batch[SEGMENTS], self.implementation, self.dtype)
        return inputs

    def probe(
        self, model: nn.Module, head: CompactHead | None, batch: dict[str, Tensor], accelerator: Accelerator
    ) -> None:
        """
        Before the first batch, try out whether the model gives the same numbers packed and one by one.

        Args:
            model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
            head ([`CompactHead`] or `None`): Its compact head.
            batch (`dict[str, torch.Tensor]`): Any real batch.
            accelerator (`accelerate.Accelerator`): Gathers over processes.
        """
        if self._probed:
            return
        segments, tokens = batch[SEGMENTS].cpu().numpy(), batch[INPUT_IDS].cpu().numpy()
        names = [(row, name) for row in range(len(segments)) for name in np.unique(segments[row]) if name > SHARED]
        rows = [tokens[row][segments[row] == name][:_PROBE_TOKENS] for row, name in names[:_PROBE_ROWS]]
        gap, failure = float("inf"), None
        with evaluation_mode(model):
            try:
                gap = self._gap(model, head, rows, batch[INPUT_IDS].device)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                failure = error
        gap = float(accelerator.gather(torch.tensor([gap], device=accelerator.device)).max())
        half = accelerator.mixed_precision != "no" or self.dtype in (torch.bfloat16, torch.float16)
        if failure is not None:
            self._refuse(f"it cannot run packed rows ({failure})")
        if not gap <= (TOLERANCE_HALF if half else TOLERANCE):  # NaN too
            self._refuse(f"it gives other log-probabilities for packed rows, by {gap:.2g} nats a token")
        self._probed = True

    @torch.no_grad()
    def _gap(self, model: nn.Module, head: CompactHead | None, rows: list[np.ndarray], device: torch.device) -> float:
        """Mean absolute difference in the log-probabilities of all tokens of the vocabulary, in nats."""
        layouts: tuple[Layout, Layout] = ("one_row", "padded")  # whatever their lengths, the rows follow each other
        found = []
        for layout in layouts:
            lengths = np.array([len(row) for row in rows])
            batch_rows, starts, shape = place(lengths, layout)
            number = np.repeat(np.arange(len(rows)), lengths)
            columns = np.concatenate([np.arange(length) for length in lengths])
            positions = batch_rows[number] * shape[1] + starts[number] + columns
            values = {INPUT_IDS: np.concatenate(rows), POSITION_IDS: columns, SEGMENTS: number + 1}
            batch = {name: np.full(shape[0] * shape[1], -1 if name == SEGMENTS else 0) for name in values}
            for name in values:
                batch[name][positions] = values[name]
            tensors = {name: torch.from_numpy(flat.reshape(shape)).to(device) for name, flat in batch.items()}
            inputs = {INPUT_IDS: tensors[INPUT_IDS]} if layout == "padded" else self._inputs(tensors)
            logits = vocabulary_logits(model, head, inputs, torch.from_numpy(positions).to(device))
            found.append(logits.float().log_softmax(1))
        return float((found[0] - found[1]).abs().mean())

    def _refuse(self, reason: str) -> None:
        raise ValueError(f"`packing` must be False for {self.name}: {reason}.")
