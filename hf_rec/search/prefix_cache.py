"""
The attention cache of a beam search, in which all beams of a user share the keys and values of the user's prompt.

[`TreePrefixes`] keeps one cache row a user: every token fed so far, of any beam, has a slot in it, and each beam
attends to the slots of its own prefix (tree attention). Nothing is copied when beams branch, die or swap places, and
the prompt is read once a step, not once a beam. [`RowPrefixes`] keeps one cache row a beam, for models that cannot do
this.

Shapes: U users · T prompt tokens · D tokens that the decoder reads before it branches · R live beams, ordered by
user · S tokens fed to a beam at once, -1 after the last · Q most tokens fed to one user at once · F slots fed since
the prompt · C columns of the head, V for `None`.
"""

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_rec.models.language.compact_head import CompactHead
from hf_rec.search.model_inputs import EncoderDecoderInputs, ModelInputs, base_model, is_encoder_decoder


if TYPE_CHECKING:
    from hf_rec.search.live_beams import Extension

NO_TOKEN = -1


class Prefixes:
    """
    What both caches share: the prompt's own pass, and the head on chosen positions and columns.

    Args:
        model (`torch.nn.Module`): A language model, or a `PeftModel` over one.
        input_ids, attention_mask (`torch.LongTensor` of shape `(U, T)`): Prompts, left padded.
        start (`torch.LongTensor` of shape `(N,)`): Tokens that all paths begin with.
    """

    feeds_chains: bool  # whether a beam may be fed several tokens at once
    drops_by_window: bool  # whether layers may drop what their attention windows do not reach

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: Tensor):
        self.model = model
        kind = EncoderDecoderInputs if is_encoder_decoder(model) else ModelInputs
        self.inputs = kind(model, input_ids, attention_mask, start, self.drops_by_window)
        self.cache = self.inputs.cache
        self.head = CompactHead.install(model)
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(base_model(model).forward).parameters
        self.start_positions = (self.inputs.mask.cumsum(dim=1) - 1).clamp_(min=0)
        self.lengths = self.inputs.mask.sum(dim=1)  # next position of each user, then of each beam
        self.num_forwards = 0

    def read_prompts(self, columns: Tensor | None) -> Tensor:
        """Logits after each prompt, float32 of shape `(U, C)`."""
        num_users, num_tokens = self.inputs.tokens.shape
        users = torch.arange(num_users, device=self.lengths.device)
        last = (users + 1) * num_tokens - 1
        return self._forward(self.inputs.tokens, self.inputs.mask, self.start_positions, last, columns, users)

    def run_idle(self) -> None:
        """Run the model once, for other processes that search on with shards of its weights."""
        self.model(**self.inputs.idle())

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
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        chosen: Tensor,
        columns: Tensor | None,
        users: Tensor,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Logits at the places `chosen` of `tokens`; `keys` are the positions of a cache that beams share."""
        inputs = self.inputs.of(tokens, mask, positions, users)
        is_first, self.num_forwards = self.num_forwards == 0, self.num_forwards + 1
        selected = nullcontext() if self.head is None else self.head.select(chosen, columns)
        if self.head is None and self.takes_logits_to_keep:
            # Positions of the rows together, for a model that keeps them for every row
            keep, column = torch.unique(chosen % tokens.shape[1], return_inverse=True)
            inputs["logits_to_keep"] = keep
        with selected, nullcontext() if keys is None else self.inputs.at(positions, keys):
            outputs = self.model(**inputs)
        if is_first:
            self.inputs.take(outputs)
        if self.head is not None:
            return outputs.logits[0].float()
        if self.takes_logits_to_keep:
            logits = outputs.logits[chosen // tokens.shape[1], column]
        else:
            logits = outputs.logits.flatten(0, 1)[chosen]
        return (logits if columns is None else logits[:, columns]).float()


class TreePrefixes(Prefixes):
    """One cache row a user; a beam is a set of slots in it."""

    feeds_chains = True
    drops_by_window = False  # it would drop slots, while it is positions that a window counts

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: Tensor):
        super().__init__(model, input_ids, attention_mask, start)
        self.additive = model.config.get_text_config(decoder=True)._attn_implementation == "eager"
        self.cached_users = torch.arange(input_ids.shape[0], device=input_ids.device)
        self.slots = torch.zeros(input_ids.shape[0], 0, dtype=torch.bool, device=input_ids.device)
        self.beam_lengths = self.lengths
        self.key_positions = self.start_positions  # of all slots of the cached users

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
        self.key_positions = torch.cat([self.key_positions, positions], dim=1)
        logits = self._forward(
            by_user(tokens, 0),
            self._mask(slots, owner),
            positions,
            rows * width + first + sizes - 1,
            columns,
            self.cached_users,
            self.key_positions,
        )
        chunk = owner[rows] == torch.arange(len(rows), device=rows.device)[:, None]
        self.slots = torch.cat([slots, chunk], dim=1)
        self.beam_lengths = lengths + sizes
        return logits

    def _mask(self, slots: Tensor, owner: Tensor) -> Tensor:
        """
        Who attends to what, `(U, 1, Q, D + F + Q)`: the prompt, the beam's own slots, and its tokens up to here.

        Example, of one user with a prompt of 1 token, one slot that beam 0 has fed, and `owner` `[0, 1, 1]`: the rows
        of the mask are `[1, 1, 1, 0, 0]` for beam 0, and `[1, 0, 0, 1, 0]` and `[1, 0, 0, 1, 1]` for beam 1.
        """
        width = owner.shape[1]
        prompt = self.inputs.mask[self.cached_users].bool()[:, None].expand(-1, width, -1)
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
        self.cached_users, self.key_positions = self.cached_users[live], self.key_positions[live]


class RowPrefixes(Prefixes):
    """One cache row a beam, copied where a beam branches."""

    feeds_chains = False
    drops_by_window = True

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: Tensor):
        super().__init__(model, input_ids, attention_mask, start)
        self.row_mask, self.beam_lengths = self.inputs.mask, self.lengths

    def feed(self, extension: "Extension", users: Tensor, columns: Tensor | None) -> Tensor:
        """Extend prefixes by one token each; see [`Prefixes.feed`]."""
        parents, tokens = extension.parents, extension.tokens
        self.cache.reorder_cache(parents)
        self.row_mask = torch.cat([self.row_mask[parents], torch.ones_like(tokens)], dim=1)
        positions = self.beam_lengths[parents]
        self.beam_lengths = positions + 1
        chosen = torch.arange(len(parents), device=tokens.device)
        return self._forward(tokens, self.row_mask, positions[:, None], chosen, columns, users)
