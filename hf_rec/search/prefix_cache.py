"""
The attention cache of a beam search, in which all beams of a user share the keys and values of the user's prompt.

[`TreePrefixes`] keeps one cache row a user: every token fed so far, of any beam, has a slot in it, and each beam
attends to the slots of its own prefix (tree attention). Nothing is copied when beams branch, die or swap places, and
the prompt is read once a step, not once a beam. [`RowPrefixes`] keeps one cache row a beam, for models that cannot do
this.

Shapes: U users · T prompt tokens, left padded · R live beams, ordered by user · S tokens fed to a beam at once, -1
after the last · Q most tokens fed to one user at once · F slots fed since the prompt · C columns of the head, V for
`None`.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hf_rec.models.language.compact_head import CompactHead


NO_TOKEN = -1


def base_model(model: nn.Module) -> Any:
    """The causal LM itself; `model` may be a `PeftModel` over it, whose forward hides the arguments."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Prefixes:
    """What both caches share: the prompt's own pass, and the head on chosen positions and columns."""

    feeds_chains: bool  # whether a beam may be fed several tokens at once

    def __init__(self, model: nn.Module, cache: DynamicCache, input_ids: Tensor, attention_mask: Tensor):
        self.model = model
        self.cache = cache
        self.head = CompactHead.install(model)
        parameters = inspect.signature(base_model(model).forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.takes_logits_to_keep = "logits_to_keep" in parameters
        self.options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if "output_router_logits" in parameters:  # the loss that a configuration may ask for has no meaning here
            self.options["output_router_logits"] = False
        self.input_ids = input_ids
        self.attention_mask = attention_mask.long()
        self.lengths = self.attention_mask.sum(dim=1)  # next position of each user, then of each beam
        self.num_forwards = 0

    def read_prompts(self, columns: Tensor | None) -> Tensor:
        """Logits after each prompt, float32 of shape `(U, C)`."""
        num_users, num_tokens = self.input_ids.shape
        last = torch.arange(1, num_users + 1, device=self.input_ids.device) * num_tokens - 1
        positions = (self.attention_mask.cumsum(dim=1) - 1).clamp_(min=0)
        return self._forward(self.input_ids, self.attention_mask, positions, last, columns)

    def feed(self, parents: Tensor, users: Tensor, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """Extend prefixes, and forget all others; see [`TreePrefixes.feed`]."""
        raise NotImplementedError

    def _forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, chosen: Tensor, columns: Tensor | None
    ) -> Tensor:
        inputs = {"input_ids": tokens, "attention_mask": mask, **self.options}
        if self.takes_positions:
            inputs["position_ids"] = positions
        self.num_forwards += 1
        if self.head is not None:
            with self.head.select(chosen, columns):
                return self.model(**inputs).logits[0].float()
        if self.takes_logits_to_keep:  # positions of the rows together, for a model that keeps them for every row
            width = tokens.shape[1]
            keep, column = torch.unique(chosen % width, return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=keep).logits[chosen // width, column]
        else:
            logits = self.model(**inputs).logits.flatten(0, 1)[chosen]
        return (logits if columns is None else logits[:, columns]).float()


class TreePrefixes(Prefixes):
    """One cache row a user; a beam is a set of slots in it."""

    feeds_chains = True

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor):
        # Layers that know of their window would drop slots, while it is positions that it counts
        super().__init__(model, DynamicCache(), input_ids, attention_mask)
        self.additive = model.config.get_text_config(decoder=True)._attn_implementation == "eager"
        self.cached_users = torch.arange(input_ids.shape[0], device=input_ids.device)
        self.slots = torch.zeros(input_ids.shape[0], 0, dtype=torch.bool, device=input_ids.device)
        self.beam_lengths = self.lengths

    def feed(self, parents: Tensor, users: Tensor, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """
        Extend prefixes, and forget all others.

        Args:
            parents (`torch.LongTensor` of shape `(R,)`): Row of the prefix that each beam extends, in the last call.
            users (`torch.LongTensor` of shape `(R,)`): User of each beam, ascending.
            tokens (`torch.LongTensor` of shape `(R, S)`): Tokens to append, at least one each, `-1` after the last.
            columns (`torch.LongTensor` of shape `(C,)`, *optional*): Columns of the head; `None` for all.

        Returns:
            `torch.Tensor` of shape `(R, C)`: Logits after the last token of each beam, float32.
        """
        self._drop_ended_users(users)
        rows = torch.searchsorted(self.cached_users, users)
        sizes = (tokens != NO_TOKEN).sum(dim=1)
        per_user = torch.zeros_like(self.cached_users).index_add_(0, rows, sizes)
        width = int(per_user.max())
        ends = sizes.cumsum(0)
        first = ends - sizes - (per_user.cumsum(0) - per_user)[rows]  # place of a beam's first token in its user's row
        beam, offset = (tokens != NO_TOKEN).nonzero(as_tuple=True)
        row, place = rows[beam], first[beam] + offset

        shape = (len(self.cached_users), width)
        input_ids = tokens.new_zeros(shape)
        input_ids[row, place] = tokens[beam, offset]
        positions = tokens.new_zeros(shape)
        lengths = self.beam_lengths[parents]
        positions[row, place] = lengths[beam] + offset
        slots = self.slots[parents]
        owner = tokens.new_full(shape, -1)
        owner[row, place] = beam
        mask = self._mask(row, place, beam, slots, owner)
        logits = self._forward(input_ids, mask, positions, rows * width + first + sizes - 1, columns)

        chunk = owner[rows] == torch.arange(len(rows), device=rows.device)[:, None]
        self.slots = torch.cat([slots, chunk], dim=1)
        self.beam_lengths = lengths + sizes
        return logits

    def _mask(self, row: Tensor, place: Tensor, beam: Tensor, slots: Tensor, owner: Tensor) -> Tensor:
        """Who attends to what, `(U, 1, Q, T + F + Q)`: the prompt, the beam's own slots, and its tokens up to here."""
        num_rows, width = owner.shape
        prompt = self.attention_mask[self.cached_users].bool()[:, None].expand(-1, width, -1)
        fed = slots.new_zeros(num_rows, width, slots.shape[1])
        fed[row, place] = slots[beam]
        causal = torch.ones(width, width, dtype=torch.bool, device=owner.device).tril_()
        own = (owner[:, :, None] == owner[:, None, :]) & causal  # filler attends to filler, so that no row is empty
        mask = torch.cat([prompt, fed, own], dim=2)[:, None]
        if not self.additive:
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def _drop_ended_users(self, users: Tensor) -> None:
        live = torch.isin(self.cached_users, users)
        # Copying the cache costs about as much as one pass over the rows that would be dropped.
        if 2 * int(live.sum()) <= len(self.cached_users):
            self.cache.reorder_cache(live.nonzero().squeeze(1))
            self.cached_users = self.cached_users[live]


class RowPrefixes(Prefixes):
    """One cache row a beam, copied where a beam branches."""

    feeds_chains = False

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor):
        super().__init__(model, DynamicCache(config=model.config), input_ids, attention_mask)
        self.row_mask, self.beam_lengths = self.attention_mask, self.lengths

    def feed(self, parents: Tensor, users: Tensor, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """Extend prefixes by one token each; see [`TreePrefixes.feed`]."""
        self.cache.reorder_cache(parents)
        self.row_mask = torch.cat([self.row_mask[parents], torch.ones_like(tokens)], dim=1)
        positions = self.beam_lengths[parents]
        self.beam_lengths = positions + 1
        chosen = torch.arange(len(parents), device=tokens.device)
        return self._forward(tokens, self.row_mask, positions[:, None], chosen, columns)
