"""
The live beams of a search and the tokens that may extend them, in flat tensors whose sizes the host knows.

A GPU waits whenever the host reads a number from it, so a step reads two: how much lives on ([`next_beams`]), and how
many columns the head needs ([`LiveBeams.columns`]).

Shapes: U users · R live beams of all users, ordered by user · E their children, ordered by beam · P most children of
one user · W places of a user in a table · S most tokens fed to a beam at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rec.search.prefix_cache import NO_TOKEN
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class LiveBeams:
    """
    Prefixes that a search goes on with, and their children.

    Example, of two beams of one user with 2 and 3 children, whose edges begin at 4 and 9: `sizes` is `[2, 3]`, `beam`
    `[0, 0, 1, 1, 1]`, `edge` `[4, 5, 9, 10, 11]`, and `place` `[0, 1, 2, 3, 4]`.

    Attributes:
        users, nodes (`torch.LongTensor` of shape `(R,)`): User and trie node of each beam.
        scores (`torch.FloatTensor` of shape `(R,)`): Its log-probability.
        sizes (`torch.LongTensor` of shape `(R,)`): Its children.
        beam, edge (`torch.LongTensor` of shape `(E,)`): Beam and trie edge of each child.
        place (`torch.LongTensor` of shape `(E,)`): Where each stands in a table `(U, P)` of children by user.
        starts (`torch.LongTensor` of shape `(U,)`): First child of each user.
        width (`int`): P.
    """

    users: Tensor
    nodes: Tensor
    scores: Tensor
    sizes: Tensor
    beam: Tensor
    edge: Tensor
    place: Tensor
    starts: Tensor
    width: int

    @classmethod
    def at(
        cls, trie: TrieCSR, users: Tensor, nodes: Tensor, scores: Tensor, num_users: int, num_children: int, width: int
    ) -> "LiveBeams":
        """
        Args:
            trie ([`TrieCSR`]), users, nodes, scores: As above.
            num_users (`int`), num_children (`int`), width (`int`): U, E and P.
        """
        sizes = trie.num_children[nodes].long()
        first = sizes.cumsum(0) - sizes
        each = torch.arange(len(nodes), device=nodes.device)
        beam = torch.repeat_interleave(each, sizes, output_size=num_children)
        child = torch.arange(num_children, device=nodes.device)
        edge = child + (trie.ptr[nodes] - first)[beam]
        per_user = torch.zeros(num_users, dtype=torch.long, device=nodes.device).index_add_(0, users, sizes)
        starts = per_user.cumsum(0) - per_user
        shift = torch.arange(num_users, device=nodes.device) * width - starts
        return cls(users, nodes, scores, sizes, beam, edge, child + shift[users][beam], starts, width)

    def columns(self, trie: TrieCSR, num_columns: int | None = None) -> tuple[Tensor, Tensor]:
        """
        Tokens of all children: ascending, each once; and the place of each token id among them.

        Args:
            trie ([`TrieCSR`]): The trie.
            num_columns (`int`, *optional*): How many there are, where that is known.
        """
        tokens = trie.tokens[self.edge].long()
        wanted = torch.zeros(trie.vocab_size, dtype=torch.bool, device=tokens.device).index_fill_(0, tokens, True)
        lookup = wanted.cumsum(0) - 1
        if num_columns is None:
            num_columns = int(lookup[-1]) + 1
        places = lookup[tokens]
        return torch.zeros(num_columns, dtype=torch.long, device=tokens.device).scatter_(0, places, tokens), lookup


@dataclass(frozen=True)
class Extension:
    """
    How live beams come from those of the step before.

    Attributes:
        parents (`torch.LongTensor` of shape `(R,)`): Beam that each extends.
        tokens (`torch.LongTensor` of shape `(R, S)`): What it appends, at least one token, `-1` after the last.
        most_tokens (`int`): Most tokens that the beams of one user append together.
        num_users (`int`): Users with a beam.
    """

    parents: Tensor
    tokens: Tensor
    most_tokens: int
    num_users: int


def next_beams(
    trie: TrieCSR, beams: LiveBeams, children: Tensor, scores: Tensor, alive: Tensor, follow_chains: bool
) -> tuple[LiveBeams, Extension] | None:
    """
    Go on with chosen children.

    Args:
        trie ([`TrieCSR`]): The trie.
        beams ([`LiveBeams`]): The beams so far.
        children (`torch.LongTensor` of shape `(U, W)`): Chosen children of each user, as places in `beams.edge`.
        scores (`torch.FloatTensor` of shape `(U, W)`): Their log-probabilities.
        alive (`torch.BoolTensor` of shape `(U, W)`): Which of them are meant; the others are filler.
        follow_chains (`bool`): Whether a beam goes on to the end of what the trie forces.

    Returns:
        `tuple[LiveBeams, Extension]` or `None`: `None` where nothing lives on.
    """
    nodes = beams.edge[children] + 1  # the child on edge e is node e + 1
    ends = trie.chain_end[nodes].long() if follow_chains else nodes
    lengths = (1 + trie.depth[ends] - trie.depth[nodes]).long() * alive
    sizes = trie.num_children[ends].long() * alive
    numbers = [alive.sum(), alive.any(1).sum(), sizes.sum(), sizes.sum(1).max(), lengths.sum(1).max(), lengths.max()]
    num_beams, num_users, num_children, width, most_tokens, longest = torch.stack(numbers).tolist()
    if num_beams == 0:
        return None
    # A stable sort keeps the order by user; unlike `nonzero` it needs no number from the device
    kept = (~alive).flatten().to(torch.uint8).argsort(stable=True)[:num_beams]
    chosen, nodes, ends = children.flatten()[kept], nodes.flatten()[kept], ends.flatten()[kept]
    first = trie.tokens[beams.edge[chosen]].long()[:, None]
    tokens = torch.cat([first, chain_tokens(trie, nodes, ends, longest - 1)], dim=1)
    users = kept // alive.shape[1]
    following = LiveBeams.at(trie, users, ends, scores.flatten()[kept], len(alive), num_children, width)
    return following, Extension(beams.beam[chosen], tokens, most_tokens, num_users)


def chain_tokens(trie: TrieCSR, nodes: Tensor, ends: Tensor, longest: int) -> Tensor:
    """The forced tokens from each node to its end, shape `(len(nodes), longest)`, `-1` after the last."""
    columns = [nodes.new_empty(len(nodes), 0)]
    for _ in range(longest):
        moving = nodes != ends
        edges = torch.where(moving, trie.ptr[nodes], 0).long()
        columns.append(torch.where(moving, trie.tokens[edges].long(), NO_TOKEN)[:, None])
        nodes = torch.where(moving, edges + 1, nodes)
    return torch.cat(columns, dim=1)
