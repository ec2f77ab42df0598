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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hf_rec.models.language.compact_head import CompactHead


if TYPE_CHECKING:
    from hf_rec.search.live_beams import Extension

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

    def feed(self, extension: "Extension", users: Tensor, columns: Tensor | None) -> Tensor:
        """
        Extend prefixes, and forget all others.

        Args:
            extension ([`Extension`]): What each beam appends to which prefix of the last call.
            users (`torch.LongTensor` of shape `(R,)`): User of each beam, ascending.
            columns (`torch.LongTensor` of shape `(C,)`, *optional*): Columns of the head; `None` for all.

        Returns:
            `torch.Tensor` of shape `(R, C)`: Logits after the last token of each beam, float32.
        """
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

    def feed(self, extension: "Extension", users: Tensor, columns: Tensor | None) -> Tensor:
        """
        Extend prefixes; see [`Prefixes.feed`].

        Example, of one user whose two beams append 1 token and 3: `sizes` is `[1, 3]`, `first` `[0, 1]`, the user's
        row of `owner` `[0, 1, 1, 1]`, and logits are wanted at the places `first + sizes - 1 = [0, 3]`.
        """
        parents, tokens, width = extension.parents, extension.tokens, extension.most_tokens
        self._drop_ended_users(users, extension.num_users)
        rows = torch.searchsorted(self.cached_users, users)
        real = tokens != NO_TOKEN
        sizes = real.sum(dim=1)
        per_user = torch.zeros_like(self.cached_users).index_add_(0, rows, sizes)
        ends = sizes.cumsum(0)
        first = ends - sizes - (per_user.cumsum(0) - per_user)[rows]  # place of a beam's first token in its user's row
        offset = torch.arange(tokens.shape[1], device=tokens.device)
        place = torch.where(real, first[:, None] + offset, width)  # filler goes to a column that is cut off
        flat = (rows[:, None] * (width + 1) + place).flatten()

        def by_user(values: Tensor, filler: int) -> Tensor:
            """Values of the tokens `(R, S)` in the rows of their users, `(U, Q)`."""
            table = tokens.new_full((len(self.cached_users) * (width + 1),), filler)
            return table.scatter_(0, flat, values.flatten()).view(-1, width + 1)[:, :width].contiguous()

        lengths, slots = self.beam_lengths[parents], self.slots[parents]
        owner = by_user(torch.arange(len(rows), device=rows.device)[:, None].expand_as(tokens), -1)
        positions = by_user(lengths[:, None] + offset, 0)
        logits = self._forward(
            by_user(tokens, 0), self._mask(slots, owner), positions, rows * width + first + sizes - 1, columns
        )
        chunk = owner[rows] == torch.arange(len(rows), device=rows.device)[:, None]
        self.slots = torch.cat([slots, chunk], dim=1)
        self.beam_lengths = lengths + sizes
        return logits

    def _mask(self, slots: Tensor, owner: Tensor) -> Tensor:
        """
        Who attends to what, `(U, 1, Q, T + F + Q)`: the prompt, the beam's own slots, and its tokens up to here.

        Example, of one user with a prompt of 1 token, one slot that beam 0 has fed, and `owner` `[0, 1, 1]`: the rows
        of the mask are `[1, 1, 1, 0, 0]` for beam 0, and `[1, 0, 0, 1, 0]` and `[1, 0, 0, 1, 1]` for beam 1.
        """
        width = owner.shape[1]
        prompt = self.attention_mask[self.cached_users].bool()[:, None].expand(-1, width, -1)
        fed = slots[owner.clamp(min=0)] & (owner >= 0)[:, :, None]
        causal = torch.ones(width, width, dtype=torch.bool, device=owner.device).tril_()
        own = (owner[:, :, None] == owner[:, None, :]) & causal  # filler attends to filler, so that no row is empty
        mask = torch.cat([prompt, fed, own], dim=2)[:, None]
        if not self.additive:
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def _drop_ended_users(self, users: Tensor, num_users: int) -> None:
        # Copying the cache costs about as much as one pass over the rows that would be dropped.
        if 2 * num_users > len(self.cached_users):
            return
        ended = torch.ones_like(self.cached_users, dtype=torch.uint8)
        ended.index_fill_(0, torch.searchsorted(self.cached_users, users), 0)
        live = ended.argsort(stable=True)[:num_users]
        self.cache.reorder_cache(live)
        self.cached_users = self.cached_users[live]


class RowPrefixes(Prefixes):
    """One cache row a beam, copied where a beam branches."""

    feeds_chains = False

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor):
        super().__init__(model, DynamicCache(config=model.config), input_ids, attention_mask)
        self.row_mask, self.beam_lengths = self.attention_mask, self.lengths

    def feed(self, extension: "Extension", users: Tensor, columns: Tensor | None) -> Tensor:
        """Extend prefixes by one token each; see [`Prefixes.feed`]."""
        parents, tokens = extension.parents, extension.tokens
        self.cache.reorder_cache(parents)
        self.row_mask = torch.cat([self.row_mask[parents], torch.ones_like(tokens)], dim=1)
        positions = self.beam_lengths[parents]
        self.beam_lengths = positions + 1
        chosen = torch.arange(len(parents), device=tokens.device)
        return self._forward(tokens, self.row_mask, positions[:, None], chosen, columns)
