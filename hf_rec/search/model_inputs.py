"""
What a search hands to its model beside the tokens of the beams, for decoders and for encoder-decoder models.

A decoder reads the prompt and the paths in one sequence. An encoder-decoder model reads the prompt in its encoder,
once a user; its decoder reads a start token and then the paths, and looks at the prompt through cross-attention.

Shapes: U users · T prompt tokens · N tokens that all paths begin with · D tokens that the decoder reads before it
branches: T + N, or 1 + N behind an encoder · B rows of a batch.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from hf_rec.models.language.relative_positions import RelativePositions


def base_model(model: nn.Module) -> Any:
    """The language model itself; `model` may be a `PeftModel` over it, whose forward hides the arguments."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model reads prompts in an encoder of their own."""
    return bool(getattr(base_model(model).config, "is_encoder_decoder", False))


def decoder_start_token(config: PreTrainedConfig) -> int:
    """Token before every answer of an encoder-decoder model."""
    token: int | None = getattr(config, "decoder_start_token_id", None)
    if token is None:
        raise ValueError(
            "`decoder_start_token_id` is not set in the configuration of the model, so nobody knows what its decoder "
            "begins with. Set it; for T5 it is the `pad_token_id`."
        )
    return token


class ModelInputs:
    """
    Inputs of a decoder.

    Args:
        model (`torch.nn.Module`): The model, or a `PeftModel` over it.
        input_ids, attention_mask (`torch.LongTensor` of shape `(U, T)`): Prompts, left padded.
        start (`torch.LongTensor` of shape `(N,)`): Tokens that all paths begin with.
        layer_types (`bool`): Whether the cache drops what the layers' attention windows do not reach.

    Attributes:
        cache ([`~transformers.Cache`]): Keys and values.
        tokens, mask (`torch.LongTensor` of shape `(U, D)`): What the decoder reads before it branches.
    """

    cache: Any
    tokens: Tensor
    mask: Tensor

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: Tensor, layer_types: bool):
        base = base_model(model)
        parameters = inspect.signature(base.forward).parameters
        self.cache = DynamicCache(config=base.config) if layer_types else DynamicCache()
        self.tokens = torch.cat([input_ids, start.expand(len(input_ids), -1)], dim=1)
        self.mask = torch.cat([attention_mask, torch.ones_like(self.tokens[:, input_ids.shape[1] :])], dim=1).long()
        self.takes_positions = "position_ids" in parameters
        self.options: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if "output_router_logits" in parameters:  # the loss that a configuration may ask for has no meaning here
            self.options["output_router_logits"] = False

    def of(self, tokens: Tensor, mask: Tensor, positions: Tensor, users: Tensor) -> dict[str, Any]:
        """
        Arguments of the model.

        Args:
            tokens, positions (`torch.LongTensor` of shape `(B, S)`): What is fed, and where it stands in its sequence.
            mask (`torch.Tensor`): Of all that is in the cache after it: `(B, K)`, or `(B, 1, S, K)`.
            users (`torch.LongTensor` of shape `(B,)`): User of each row.
        """
        inputs = {"input_ids": tokens, "attention_mask": mask, **self.options}
        if self.takes_positions:
            inputs["position_ids"] = positions
        return inputs

    def idle(self) -> dict[str, Any]:
        """Arguments of a pass whose result nobody wants."""
        return {"input_ids": self.tokens[:1, :1], "use_cache": False}

    def take(self, outputs: Any) -> None:
        """Keep what later passes need of the outputs of the first one."""

    def at(self, queries: Tensor, keys: Tensor) -> AbstractContextManager[None]:
        """Within this context the model goes by these positions, where no argument of it says so."""
        return nullcontext()


class EncoderDecoderInputs(ModelInputs):
    """Inputs of an encoder-decoder model; prompts may be padded on either side that its positions allow."""

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: Tensor, layer_types: bool):
        base = base_model(model)
        own = DynamicCache(config=base.get_decoder().config) if layer_types else DynamicCache()
        self.cache = EncoderDecoderCache(own, DynamicCache())
        self.prompt_ids, self.prompt_mask = input_ids, attention_mask.long()
        first = start.new_tensor([decoder_start_token(base.config)])
        self.tokens = torch.cat([first, start]).repeat(len(input_ids), 1)
        self.mask = torch.ones_like(self.tokens)
        self.relative_positions = RelativePositions.install(base)
        self.states: Tensor | None = None  # of the encoder

    def of(self, tokens: Tensor, mask: Tensor, positions: Tensor, users: Tensor) -> dict[str, Any]:
        """Arguments of the model; see [`ModelInputs.of`]."""
        inputs = {
            "attention_mask": self.prompt_mask[users],
            "decoder_input_ids": tokens,
            "decoder_attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.states is None:
            return inputs | {"input_ids": self.prompt_ids}
        return inputs | {"encoder_outputs": BaseModelOutput(last_hidden_state=self.states[users])}

    def idle(self) -> dict[str, Any]:
        # The encoder runs once a search, in each process
        states = None if self.states is None else BaseModelOutput(last_hidden_state=self.states[:1])
        return {
            "attention_mask": self.prompt_mask[:1],
            "decoder_input_ids": self.tokens[:1, :1],
            "encoder_outputs": states,
            "use_cache": False,
        }

    def take(self, outputs: Any) -> None:
        self.states = outputs.encoder_last_hidden_state

    def at(self, queries: Tensor, keys: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.relative_positions is None else self.relative_positions.given(queries, keys)
