"""
Whether a model may compute the prompt once for all answers of a row, decided before it is done.

A mask of one's own is the only thing that keeps the answers of a packed row apart. A model may not take one, may go
wrong without a word beyond its attention window, or may carry a state past the mask. What the configuration does not
tell is tried out.
"""

import inspect

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import nn
from transformers.utils import logging

from hf_rec.columns import ATTENTION_MASK, POSITION_IDS
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.packed_rows import TOLERANCE, TOLERANCE_HALF, attention_mask, attention_window, mask_dtype
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.trie_logits import vocabulary_logits


logger = logging.get_logger(__name__)

# The start-up probe: this much of a row's prompt, this many of its answers, and this much of each
_PROBE = {"prompt_tokens": 32, "num_answers": 4, "answer_tokens": 16}
_PROBE_LENGTH = _PROBE["prompt_tokens"] + _PROBE["num_answers"] * _PROBE["answer_tokens"]


class PromptSharing:
    """
    Says of each batch whether it runs as packed rows.

    The first batch is also the start-up probe: a small part of it runs both ways on the real model, and all processes
    go by the worst difference any of them finds.

    Args:
        wanted (`bool`): Whether prompts are to be shared at all.
        autocast (`bool`): Whether the model runs in mixed precision, where rounding differs more.
    """

    def __init__(self, wanted: bool, autocast: bool):
        self.wanted = wanted
        self.autocast = autocast
        self.works: bool | None = None
        self.window: int | None = None

    def __call__(
        self, model: nn.Module, head: CompactHead | None, batch: PackedAnswers, accelerator: Accelerator
    ) -> bool:
        """
        Args:
            model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
            head ([`CompactHead`] or `None`): Its compact head.
            batch ([`PackedAnswers`]): What is to run.
            accelerator (`accelerate.Accelerator`): Unwraps the model; gathers over processes.
        """
        if self.works is None:
            base = accelerator.unwrap_model(model)
            base = base.get_base_model() if is_peft_model(base) else base
            self.window = attention_window(base.config)
            reason = refusal(base) if self.wanted else "`shared_prefix` is False"
            if reason is None:
                reason = self._probe(model, head, batch, accelerator, base)
            self.works = reason is None
            if reason is not None:
                logger.warning(f"The prompt is computed anew for each answer (slower, same numbers): {reason}.")
        length = batch.input_ids.shape[1]
        if self.works and self.window is not None and length > self.window:
            logger.warning_once(
                f"Rows that with all their answers exceed the attention window of {self.window} tokens are computed "
                "with the prompt repeated (slower, same numbers)."
            )
            return False
        return self.works

    def _probe(
        self,
        model: nn.Module,
        head: CompactHead | None,
        batch: PackedAnswers,
        accelerator: Accelerator,
        base: nn.Module,
    ) -> str | None:
        """What speaks against packed rows."""
        gap, error = float("inf"), None
        with evaluation_mode(model):
            try:
                gap = probe_gap(model, head, batch, base.config._attn_implementation)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as caught:
                error = caught
        gap = float(accelerator.gather(torch.tensor([gap], device=accelerator.device)).max())
        half = self.autocast or base.dtype in (torch.bfloat16, torch.float16)
        if gap <= (TOLERANCE_HALF if half else TOLERANCE):  # false for NaN
            return None
        if error is not None:
            return f"{type(base).__name__} cannot run packed rows ({error})"
        return f"{type(base).__name__} gives other log-probabilities for packed rows, by {gap:.2g} nats a token"


def refusal(model: nn.Module) -> str | None:
    """Why the configuration of a model says that it cannot run packed rows; `None` where it does not say so."""
    implementation, window = model.config._attn_implementation, attention_window(model.config)
    if implementation not in ("sdpa", "eager"):
        return f"`attn_implementation` is {implementation!r}, and only 'sdpa' and 'eager' take a mask of one's own"
    if POSITION_IDS not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no `position_ids`"
    if window is not None and window < _PROBE_LENGTH:
        return f"the attention window of {type(model).__name__} is {window} tokens"
    return None


@torch.no_grad()
def probe_gap(model: nn.Module, head: CompactHead | None, batch: PackedAnswers, implementation: str) -> float:
    """
    Mean absolute difference between the two ways in the log-probabilities of a few answer tokens, in nats.

    Args:
        model (`torch.nn.Module`): The causal LM in eval mode, as the trainer calls it.
        head ([`CompactHead`] or `None`): Its compact head.
        batch ([`PackedAnswers`]): Any real batch.
        implementation (`str`): Kind of attention mask, `"sdpa"` or `"eager"`.
    """
    small = batch.beginnings(**_PROBE)
    found = []
    for packed in (True, False):
        inputs, targets = small.select(packed)
        if packed:
            inputs[ATTENTION_MASK] = attention_mask(small.answers, implementation, mask_dtype(model))
        logits = vocabulary_logits(model, head, inputs, targets.positions).float()
        found.append(logits.log_softmax(1).gather(1, targets.tokens[:, None]))
    return float((found[0] - found[1]).abs().mean())
