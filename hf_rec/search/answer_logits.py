"""
Logits of a few answers behind prompts that begin alike: what is known of a user is read once, whatever follows it.

Shapes: U users · E endings of all users, ordered by user · T tokens of the longest beginning · S tokens of the longest
ending · C columns of the head.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_rec.models.language.compact_head import CompactHead
from hf_rec.search.cache_probe import open_tree
from hf_rec.search.live_beams import Extension
from hf_rec.search.prefix_cache import NO_TOKEN
from hf_rec.trie.csr import TrieCSR


logger = logging.get_logger(__name__)

TOKENS_AT_ONCE = 4096  # behind the beginning of one user: bounds the mask, which has a row for each of them
_ROWS_AT_ONCE = 32  # whole prompts in one pass


def answer_logits(
    model: nn.Module,
    beginnings: Sequence[list[int]],
    endings: Sequence[Sequence[list[int]]],
    columns: Tensor,
    probe: TrieCSR,
    shared: bool = True,
) -> list[Tensor]:
    """
    Logits after each ending of each beginning.

    Args:
        model (`torch.nn.Module`): A causal LM in eval mode, or a `PeftModel` over one.
        beginnings (`list[list[int]]`): U prompts, each of at least one token.
        endings (`list[list[list[int]]]`): For each beginning at least one ending of at least one token.
        columns (`torch.LongTensor` of shape `(C,)`): Tokens whose logits are wanted.
        probe ([`TrieCSR`]): Some tokens of the model, to try its cache out with.
        shared (`bool`, *optional*, defaults to `True`): Whether to read beginnings once, where the model can.

    Returns:
        `list[torch.Tensor]`: For each user float32 logits of shape `(endings of the user, C)`.
    """
    parts: list[list[Tensor]] = [[] for _ in beginnings]
    for users, chosen in _portions(endings):
        own = [list(beginnings[user]) for user in users]
        shares = shared and any(len(part) > 1 for part in chosen)
        found = _behind_shared(model, own, chosen, columns, probe) if shares else None
        if found is None:
            found = _whole_prompts(model, own, chosen, columns)
        for user, logits in zip(users, found.split(list(map(len, chosen))), strict=True):
            parts[user].append(logits)
    return [torch.cat(logits) for logits in parts]


def _portions(endings: Sequence[Sequence[list[int]]]) -> Iterator[tuple[list[int], list[Sequence[list[int]]]]]:
    """Users and some endings of each, in order, so that no user has too many tokens in one pass."""
    rest: dict[int, Sequence[list[int]]] = dict(enumerate(endings))
    while rest:
        portion = {}
        for user, left in list(rest.items()):
            ends = list(accumulate(map(len, left)))
            count = max(1, sum(end <= TOKENS_AT_ONCE for end in ends))
            portion[user], rest[user] = left[:count], left[count:]
            if not rest[user]:
                del rest[user]
        yield list(portion), list(portion.values())


def _behind_shared(
    model: nn.Module,
    beginnings: list[list[int]],
    endings: list[Sequence[list[int]]],
    columns: Tensor,
    probe: TrieCSR,
) -> Tensor | None:
    """Logits `(E, C)` from one row a user; `None` where the model cannot do that."""
    input_ids, attention_mask = _left_padded(beginnings, columns.device)
    flat = list(chain.from_iterable(endings))
    prefixes = open_tree(model, input_ids, attention_mask, probe, max(map(len, flat)))
    if prefixes is None:
        logger.warning_once(
            f"{type(model).__name__} computes the prompt anew for each candidate (slower, same numbers): its cache "
            "cannot be shared."
        )
        return None
    prefixes.read_prompts(columns)
    users = torch.arange(len(endings), device=columns.device)
    users = users.repeat_interleave(torch.tensor(list(map(len, endings)), device=columns.device))
    most = max(sum(map(len, own)) for own in endings)
    tokens = _right_padded(flat, NO_TOKEN).to(columns.device)
    return prefixes.feed(Extension(users, tokens, most, len(endings)), users, columns)


def _whole_prompts(
    model: nn.Module, beginnings: list[list[int]], endings: list[Sequence[list[int]]], columns: Tensor
) -> Tensor:
    """The same from one row an ending, padded on the right, where causal attention does not look."""
    rows = [start + end for start, own in zip(beginnings, endings, strict=True) for end in own]
    head, found = CompactHead.install(model), []
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        input_ids = _right_padded(part, 0).to(columns.device)
        lengths = torch.tensor(list(map(len, part)), device=columns.device)
        last = torch.arange(len(part), device=columns.device) * input_ids.shape[1] + lengths - 1
        if head is None:
            logits = model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)[last][:, columns]
        else:
            with head.select(last, columns):
                logits = model(input_ids=input_ids, use_cache=False).logits[0]
        found.append(logits.float())
    return torch.cat(found)


def _left_padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask`, `(U, T)`."""
    flipped = _right_padded([row[::-1] for row in rows], NO_TOKEN).flip(1).to(device)
    return flipped.clamp(min=0), (flipped != NO_TOKEN).long()


def _right_padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
