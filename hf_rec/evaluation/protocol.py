"""
The protocol: the rules under which targets are ranked. Numbers may be compared where it is the same.

`full/search=beam20/seen=keep/split=loo` says: all items of the catalog compete, the list comes from a beam search of
width 20 (`exact` where every item is scored), items of the history may be recommended, the split is leave-one-out.
docs/evaluation.md has all its parts.
"""

from typing import Literal, get_args


Seen = Literal["keep", "mask"]  # may a list hold items of its own history, or are they left out


def protocol_key(
    *,
    num_beams: int | None = None,
    seen: str = "keep",
    split_rule: str | None = None,
    candidates: str | None = None,
) -> str:
    """
    The protocol, the part of a key before the metric: `full/search=beam20/seen=keep/split=loo`.

    Args:
        num_beams (`int`, *optional*):
            Width of the beam search; without it every item is scored, and the search is `exact`.
        seen (`str`, *optional*, defaults to `"keep"`):
            `"keep"` where lists may hold items of their own history, `"mask"` where these are left out.
        split_rule (`str`, *optional*):
            How the split was made: `"loo"`, `"time"`, `"ready"`, ... Left out of the key where it is not known: a
            trainer is given rows, not a split.
        candidates (`str`, *optional*):
            Name of candidate lists, `"candidates=1+19/file=1a2b3c4d"`. It replaces `full`, `search=` and `seen=`, as
            the lists decide what competes.
    """
    if seen not in get_args(Seen):
        raise ValueError(f"`seen` must be 'keep' or 'mask', got {seen!r}.")
    if split_rule is not None and (not isinstance(split_rule, str) or not split_rule or "/" in split_rule):
        raise ValueError(f"`split_rule` must be a name without '/', as it is part of a key, got {split_rule!r}.")
    search = "exact" if num_beams is None else f"beam{num_beams}"
    parts = [f"full/search={search}/seen={seen}" if candidates is None else candidates]
    return "/".join(parts if split_rule is None else [*parts, f"split={split_rule}"])
