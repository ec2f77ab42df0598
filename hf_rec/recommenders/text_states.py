"""
Hidden states that a language model has for texts: that of the last token, or the mean over all tokens.

Shapes: N texts · T tokens of the longest in a batch · H hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_rec.data.collators import right_padded
from hf_rec.data.prompts.item_paths import resolve_separator
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.recommenders.prompt_vectors import ACCELERATOR_TOKENS, CPU_TOKENS, token_batches
from hf_rec.search.model_inputs import is_encoder_decoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pooling = Literal["last", "mean"]


class TextStates:
    """
    Reads texts with a language model. Each begins with the BOS token (a newline where the tokenizer has none), and
    what a text spells is never a control token.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal LM, with or without its head. It need not be in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase"):
        if not isinstance(model, PreTrainedModel) or is_encoder_decoder(model):
            raise ValueError(
                f"Texts are read by a causal language model, got a {type(model).__name__}. Give a model of one "
                "sequence, such as a Llama or a GPT-2; merge an adapter into it first (`merge_and_unload`)."
            )
        self.model: PreTrainedModel = model.base_model  # without its head
        self.tokenizer = tokenizer
        self._encoder = PlainTextEncoder(tokenizer)
        start = tokenizer.bos_token_id
        self._start = resolve_separator(tokenizer, self._encoder, "\n") if start is None else [start]
        self._most = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def width(self) -> int:
        """H."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    def tokens(self, texts: Sequence[str], most: int | None = None) -> list[tuple[int, ...]]:
        """Token ids of each text, the first token included; of a longer text the first `most`."""
        found = [(*self._start, *ids)[:most] for ids in self._encoder.encode_batch(list(texts))]
        longest = max(map(len, found), default=0)
        if self._most is not None and longest > self._most:
            raise ValueError(
                f"A text of {longest} tokens does not fit into the {self._most} positions of the "
                f"{type(self.model).__name__}. Use a model with more, or shorter texts."
            )
        return found

    @torch.no_grad()
    def vectors(self, tokens: Sequence[tuple[int, ...]], pooling: Pooling = "last") -> Tensor:
        """
        States of the last layer.

        Args:
            tokens (sequence of `tuple[int, ...]`): As [`~TextStates.tokens`] gives them.
            pooling (`str`, *optional*, defaults to `"last"`): `"last"` for the state of the last token, `"mean"` for
                the mean over the tokens of the text itself: the state of a BOS token says nothing of it, and is large.

        Returns:
            `torch.FloatTensor` of shape `(N, H)`: On the device of the model.
        """
        device = self.model.device
        vectors = torch.empty(len(tokens), self.width, device=device)
        lengths = np.array(list(map(len, tokens)), dtype=np.int64)
        budget = CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
        with evaluation_mode(self.model):
            for places in token_batches(lengths, budget):
                ids, mask = (part.to(device) for part in right_padded([list(tokens[place]) for place in places], 0))
                states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
                rows = torch.from_numpy(places).to(device)
                if pooling == "last":
                    vectors[rows] = states[torch.arange(len(places), device=device), mask.sum(dim=1) - 1]
                else:
                    first = (mask.sum(dim=1, keepdim=True) - 1).clamp(max=len(self._start))
                    own = mask * (
                        torch.arange(mask.shape[1], device=device) >= first
                    )  # a text without tokens: the BOS
                    vectors[rows] = (states * own.unsqueeze(2)).sum(dim=1) / own.sum(dim=1, keepdim=True)
        return vectors
