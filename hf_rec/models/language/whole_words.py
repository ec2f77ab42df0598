"""
A T5 whose encoder knows which tokens belong to one item: P5's whole-word embeddings
(https://huggingface.co/papers/2203.13366).

All tokens of the n-th item of the history get the n-th of some extra vectors, on top of their own. Which item a token
is of is counted from the tokens that end items, so training, evaluation and serving cannot differ in it.

Shapes: B rows · T tokens · H hidden size.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.models.t5.modeling_t5 import T5Stack


class WholeWordT5Config(T5Config):
    """
    Settings of a T5 with whole-word embeddings, on top of those of [`~transformers.T5Config`].

    Parameters:
        word_end_token_id (`int`, *optional*, defaults to `1`):
            Token that ends each item of a history, such as the separator of its [`Prompt`].
        max_words (`int`, *optional*, defaults to `512`):
            Items that have a vector of their own; all later ones share the last of them.
    """

    model_type = "whole_word_t5"
    word_end_token_id: int = 1
    max_words: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.max_words < 1:
            raise ValueError(f"`max_words` must be at least 1, got {self.max_words}.")


class WholeWordEncoder(T5Stack):
    """The encoder of a T5, which adds the vector of its item to each token."""

    config: WholeWordT5Config

    def __init__(self, config: WholeWordT5Config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.max_words, config.d_model)
        self.post_init()

    def word_index(self, input_ids: Tensor) -> Tensor:
        """
        Which item each token is of, from 0; the token that ends an item is of it.

        Example, where 9 ends items: `[4, 5, 9, 6, 9]` gives `[0, 0, 0, 1, 1]`.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`): Tokens.
        """
        ends = (input_ids == self.config.word_end_token_id).long()
        return (ends.cumsum(dim=1) - ends).clamp(max=self.config.max_words - 1)

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **inputs: Any) -> Any:
        """As of a T5 encoder. `inputs_embeds` of shape `(B, T, H)` are taken as they are."""
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) + self.word_embeddings(self.word_index(input_ids))
            input_ids = None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **inputs)


class WholeWordT5Model(T5ForConditionalGeneration):
    """[`~transformers.T5ForConditionalGeneration`] with whole-word embeddings in its encoder."""

    config_class = WholeWordT5Config
    config: WholeWordT5Config

    def __init__(self, config: WholeWordT5Config):
        super().__init__(config)
        encoder_config = copy.deepcopy(config)
        encoder_config.is_decoder = False
        encoder_config.use_cache = False
        self.encoder = WholeWordEncoder(encoder_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WholeWordEncoder):  # as large as the embeddings of tokens
            init.normal_(module.word_embeddings.weight, mean=0.0, std=self.config.initializer_factor)


AutoConfig.register(WholeWordT5Config.model_type, WholeWordT5Config)
AutoModelForSeq2SeqLM.register(WholeWordT5Config, WholeWordT5Model)
