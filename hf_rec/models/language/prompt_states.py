"""
Hidden states at the end of prompts: prompts of about equal length are read together, and what all begin with is read
once.

Shapes: B prompts · T tokens of the longest, prefix apart · P tokens of the prefix · H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_layers import GradientCheckpointingLayer


PADDING_SHARE = 0.06  # of a group of prompts, at most
CPU_GROUP_TOKENS, ACCELERATOR_GROUP_TOKENS = 256, 2048  # a smaller group does not fill the device: not split further
SHARED_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
)  # of a cache: keys and values by position, which rows can share


@dataclass(frozen=True)
class Prefix:
    """
    What prompts begin with.

    Attributes:
        words (`torch.Tensor` of shape `(1, P, H)`): Its embeddings.
        cache (`DynamicCache` or `None`): Its keys and values; `None` where each prompt must read it for itself.
    """

    words: Tensor
    cache: DynamicCache | None

    @classmethod
    def read(cls, model: PreTrainedModel, prefix_ids: Tensor) -> "Prefix":
        """
        Args:
            model ([`~transformers.PreTrainedModel`]): Causal LM without its head.
            prefix_ids (`torch.LongTensor` of shape `(P,)`): At least one token.
        """
        words = model.get_input_embeddings()(prefix_ids[None])
        cache = DynamicCache(config=model.config)
        recomputed = any(is_checkpointed(module) and module.training for module in model.modules())
        if recomputed or any(type(layer) not in SHARED_LAYERS for layer in cache.layers):
            return cls(words, None)
        return cls(words, model(inputs_embeds=words, past_key_values=cache, use_cache=True).past_key_values)

    def shared(self, num_rows: int, model: PreTrainedModel) -> DynamicCache:
        """A cache that begins with the prefix in each of `num_rows` rows; this one stays as it is."""
        if self.cache is None:
            raise ValueError("This prefix keeps no cache: each prompt must read it for itself.")
        cache = DynamicCache(config=model.config)
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys.expand(num_rows, -1, -1, -1), layer.values.expand(num_rows, -1, -1, -1), number)
        return cache


def last_states(
    model: PreTrainedModel, words: Tensor, attention_mask: Tensor, prefix: Prefix, constant: int = 0
) -> Tensor:
    """
    Last-layer hidden states at the last token of each prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal LM without its head.
        words (`torch.Tensor` of shape `(B, T, H)`): Embeddings of right-padded prompts.
        attention_mask (`torch.LongTensor` of shape `(B, T)`): 1 at real tokens.
        prefix ([`Prefix`]): What comes before each.
        constant (`int`, *optional*, defaults to `0`): Tokens that all prompts have and that no trained weight has a
            part in, from the left: they are read without keeping anything for a gradient.

    Returns:
        `torch.Tensor` of shape `(B, H)`.
    """
    num_rows, past = len(words), prefix.words.shape[1]
    cache, last = None, attention_mask.sum(dim=1) - 1
    mask = torch.cat([attention_mask.new_ones(num_rows, past), attention_mask], dim=1)
    if prefix.cache is None:
        words = torch.cat([prefix.words.expand(num_rows, -1, -1), words], dim=1)
        last = last + past
    else:
        cache = prefix.shared(num_rows, model)
        if constant and torch.is_grad_enabled():
            known = {"inputs_embeds": words[:, :constant].detach(), "attention_mask": mask[:, : past + constant]}
            with torch.no_grad():
                model(**known, past_key_values=cache, use_cache=True)
            words, last = words[:, constant:], last - constant
    outputs = model(inputs_embeds=words, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
    return outputs.last_hidden_state[torch.arange(num_rows, device=words.device), last]


def length_groups(lengths: list[int], on_cpu: bool) -> list[list[int]]:
    """
    Rows in groups of about equal length, longest first.

    At most `PADDING_SHARE` of a group is padding, unless it would be too small to fill the device.
    """
    least = CPU_GROUP_TOKENS if on_cpu else ACCELERATOR_GROUP_TOKENS
    groups: list[list[int]] = []
    longest, real = 0, 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        size = longest * (len(groups[-1]) + 1) if groups else 0
        if not groups or (size > least and size - real - lengths[row] > PADDING_SHARE * size):
            groups.append([])
            longest, real = lengths[row], 0
        groups[-1].append(row)
        real += lengths[row]
    return groups


def is_checkpointed(module: nn.Module) -> bool:
    """Whether a module is a layer that computes its activations again in the backward pass."""
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
