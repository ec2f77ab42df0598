"""
Beam search over an item trie, for a batch of users at once.

What `generate()` does with a logits processor, made fast: the prompt of a user is read once, the head computes only
the tokens that some beam may take, tokens that the trie forces are fed together, and a beam ends as soon as one item
is left below it.

Shapes: U users · T prompt tokens · W beams · R live beams of all users, ordered by user · E their candidates (one for
each child of each beam's trie node), ordered by beam · C columns of the head · L leaves of the trie.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.integrations.fsdp import is_fsdp_managed_module

from hf_rec.search.cache_probe import open_prefixes
from hf_rec.search.logits_process import check_scoring
from hf_rec.search.prefix_cache import NO_TOKEN
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class SearchResult:
    """
    What a trie search found.

    Attributes:
        leaves (`torch.LongTensor` of shape `(U, W)`): Leaf ids, best first, `-1` where there are no more.
        scores (`torch.FloatTensor` of shape `(U, W)`): Log-probability of each leaf, `-inf` where there are no more.
        pruned_bound (`torch.FloatTensor` of shape `(U,)`):
            Highest log-probability of any pruned prefix that holds an allowed leaf, `-inf` if none was pruned. No leaf
            that is missing from `leaves` can score higher, as scores never rise along a path.
        steps (`int`): Forward passes of the model.
    """

    leaves: Tensor
    scores: Tensor
    pruned_bound: Tensor
    steps: int


@dataclass
class _Candidates:
    """The extensions of all live beams by one token; each field has shape `(E,)`."""

    beam: Tensor  # row of the beam
    user: Tensor
    token: Tensor
    node: Tensor  # trie node after the token
    score: Tensor  # `-inf` where no allowed leaf is below


@torch.no_grad()
def trie_beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: TrieCSR,
    num_beams: int,
    tau: float = 1.0,
    scoring: str = "valid",
    allowed_leaves: Tensor | None = None,
    num_results: int | None = None,
) -> SearchResult:
    """
    Find the most probable leaves of a trie for each prompt.

    Each step keeps the `num_beams` best unfinished prefixes of a user and, apart from them, the `num_beams` best
    leaves found so far. Under `scoring="full_vocab"` it takes the steps of `generate(length_penalty=0.0)`: one token
    at a time, and a leaf counts only if it is among the `num_beams` best candidates of its step.

    Under ZeRO-3 and FSDP all processes take equally many steps, so each must call this equally often.

    Args:
        model (`torch.nn.Module`): A causal LM in eval mode, or a `PeftModel` over one.
        input_ids (`torch.LongTensor` of shape `(U, T)`): Prompts, left padded.
        attention_mask (`torch.LongTensor` of shape `(U, T)`): 1 for prompt tokens, 0 for padding.
        trie ([`TrieCSR`]): Item trie on the device of the prompts.
        num_beams (`int`): Prefixes kept for each user, at least 1.
        tau (`float`, *optional*, defaults to `1.0`): Temperature of the softmax, greater than 0.
        scoring (`str`, *optional*, defaults to `"valid"`):
            `"valid"` scores a leaf by `log P_valid`, each token normalised over **all** children of its trie node;
            `"full_vocab"` by its plain log-probability, each token normalised over the vocabulary.
        allowed_leaves (`torch.BoolTensor` of shape `(U, L)` or `(1, L)`, *optional*):
            Leaves that may be found. Scores do not depend on it.
        num_results (`int`, *optional*, defaults to `num_beams`):
            Leaves wanted for each user. Prefixes that fall below that many found leaves are dropped early, so that any
            further entries of the result are leaves and scores like others, but not the next best ones.

    Returns:
        [`SearchResult`]: Leaves with their scores, and the bound that tells whether they are the best ones.
    """
    check_scoring(tau, scoring)
    if num_beams < 1:
        raise ValueError(f"`num_beams` must be at least 1, got {num_beams}.")
    num_results = num_beams if num_results is None else min(num_results, num_beams)
    num_users, device = input_ids.shape[0], input_ids.device
    users = torch.arange(num_users, device=device)
    nodes = torch.full_like(users, trie.root)
    scores = torch.zeros(num_users, device=device)
    if scoring == "valid":  # what every item starts with needs no step of its own
        start, nodes = _chains(trie, nodes[:, None][:, :0], nodes)
        input_ids = torch.cat([input_ids, start], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(start, dtype=attention_mask.dtype)], dim=1)
    in_step = _runs_in_step(model)
    any_process = partial(_any_process, device=device) if in_step else bool
    prefixes = open_prefixes(model, input_ids, attention_mask, trie, any_process)
    counts = None if allowed_leaves is None else _leaf_counts(allowed_leaves)
    found = _Found.empty(num_users, num_beams, device)

    columns, lookup = _columns(trie, nodes, scoring)
    logits = prefixes.read_prompts(columns)
    while True:
        candidates = _expand(trie, users, nodes, scores, logits, lookup, tau, scoring)
        if counts is not None:
            _forbid(candidates, trie, counts)
        kept = _select(candidates, trie, found, num_results, scoring)
        if kept.numel() == 0:
            while in_step and _any_process(False, device):
                model(input_ids=input_ids[:1, :1], use_cache=False)
            return SearchResult(found.leaves, found.scores, found.pruned_bound, prefixes.num_forwards)
        if in_step:
            _any_process(True, device)
        users, scores, parents = candidates.user[kept], candidates.score[kept], candidates.beam[kept]
        tokens, nodes = candidates.token[kept][:, None], candidates.node[kept]
        if scoring == "valid" and prefixes.feeds_chains:
            tokens, nodes = _chains(trie, tokens, nodes)
        columns, lookup = _columns(trie, nodes, scoring)
        logits = prefixes.feed(parents, users, tokens, columns)


@torch.no_grad()
def score_leaves(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: TrieCSR,
    leaves: Tensor,
    tau: float = 1.0,
    scoring: str = "valid",
    chunk_size: int = 512,
) -> Tensor:
    """
    Log-probability of given leaves, exactly. Prefixes that leaves share are computed once.

    Args:
        model, input_ids, attention_mask, trie, tau, scoring: As in [`trie_beam_search`].
        leaves (`torch.LongTensor` of shape `(U, K)`): Leaf ids for each user, `-1` for none; repeats are allowed.
        chunk_size (`int`, *optional*, defaults to `512`): Different leaves of a user in one pass, at least 1.

    Returns:
        `torch.FloatTensor` of shape `(U, K)`: Log-probabilities, `-inf` where `leaves` is `-1`.
    """
    ordered, order = leaves.sort(dim=1)  # neighbours in a chunk share prefixes
    scores = torch.full(leaves.shape, -torch.inf, device=leaves.device)
    for start in range(0, leaves.shape[1], chunk_size):
        chunk = ordered[:, start : start + chunk_size]
        allowed = torch.zeros(len(leaves), len(trie) + 1, dtype=torch.bool, device=leaves.device)
        allowed.scatter_(1, torch.where(chunk < 0, len(trie), chunk), True)
        table = torch.full(allowed.shape, -torch.inf, device=leaves.device)
        result = trie_beam_search(
            model, input_ids, attention_mask, trie, chunk.shape[1], tau, scoring, allowed_leaves=allowed[:, :-1]
        )
        table.scatter_(1, torch.where(result.leaves < 0, len(trie), result.leaves), result.scores)
        table[:, -1] = -torch.inf
        scores[:, start : start + chunk_size] = table.gather(1, torch.where(chunk < 0, len(trie), chunk))
    return torch.empty_like(scores).scatter_(1, order, scores)


@dataclass
class _Found:
    """Leaves found so far, best first, and the best score among everything given up."""

    leaves: Tensor
    scores: Tensor
    pruned_bound: Tensor

    @classmethod
    def empty(cls, num_users: int, size: int, device: torch.device) -> "_Found":
        return cls(
            torch.full((num_users, size), -1, device=device),
            torch.full((num_users, size), -torch.inf, device=device),
            torch.full((num_users,), -torch.inf, device=device),
        )

    def add(self, leaves: Tensor, scores: Tensor) -> None:
        """Merge `(U, n)` leaves; what no longer fits counts as pruned."""
        size = self.leaves.shape[1]
        scores, order = torch.cat([self.scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
        leaves = torch.cat([self.leaves, leaves], dim=1).gather(1, order)
        self.prune(scores[:, size:])
        self.scores = scores[:, :size].contiguous()
        self.leaves = leaves[:, :size].masked_fill(self.scores == -torch.inf, -1)

    def prune(self, scores: Tensor) -> None:
        """Note that prefixes with these scores, `(U, n)`, were given up."""
        if scores.shape[1]:
            self.pruned_bound = torch.maximum(self.pruned_bound, scores.amax(dim=1))


def _columns(trie: TrieCSR, nodes: Tensor, scoring: str) -> tuple[Tensor | None, Tensor | None]:
    """The tokens below any of the nodes, ascending, and the place of each token id among them."""
    if scoring == "full_vocab":
        return None, None
    wanted = torch.zeros(trie.vocab_size, dtype=torch.bool, device=nodes.device)
    wanted[trie.children_flat(torch.unique(nodes))[0]] = True
    columns = wanted.nonzero().squeeze(1)
    return columns, wanted.cumsum(0) - 1


def _expand(trie, users, nodes, scores, logits, lookup, tau, scoring) -> _Candidates:
    """All children of the live beams, scored. `logits` has shape `(R, C)`."""
    sizes = trie.num_children[nodes]
    starts = sizes.cumsum(0) - sizes
    beam = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), sizes)
    edge = torch.arange(len(beam), device=nodes.device) + (trie.ptr[nodes] - starts)[beam]
    token = trie.tokens[edge]
    column = token if lookup is None else lookup[token]
    value = logits.flatten()[beam * logits.shape[1] + column].div_(tau)
    if scoring == "valid":
        value -= torch.segment_reduce(value, "max", lengths=sizes)[beam]
        normaliser = torch.segment_reduce(value.exp(), "sum", lengths=sizes).log()
    else:
        normaliser = (logits / tau).logsumexp(dim=1)
    value += (scores - normaliser)[beam]
    value.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # `topk` would rank NaN first
    return _Candidates(beam, users[beam], token, edge + 1, value)  # the child on edge e is node e + 1


def _leaf_counts(allowed_leaves: Tensor) -> Tensor:
    """Allowed leaves before each leaf id, `(U or 1, L + 1)`."""
    counts = torch.zeros(
        allowed_leaves.shape[0], allowed_leaves.shape[1] + 1, dtype=torch.int32, device=allowed_leaves.device
    )
    torch.cumsum(allowed_leaves, dim=1, dtype=torch.int32, out=counts[:, 1:])
    return counts


def _forbid(candidates: _Candidates, trie: TrieCSR, counts: Tensor) -> None:
    """Give up candidates without an allowed leaf. They are no loss: `pruned_bound` does not count them."""
    first = trie.first_leaf[candidates.node]
    row = candidates.user if counts.shape[0] > 1 else torch.zeros_like(candidates.user)
    empty = counts[row, first + trie.num_leaves[candidates.node]] == counts[row, first]
    candidates.score.masked_fill_(empty, -torch.inf)


def _select(candidates: _Candidates, trie: TrieCSR, found: _Found, num_results: int, scoring: str) -> Tensor:
    """Move finished candidates to `found`, and return the indices of those that live on, ordered by user."""
    num_users, num_beams = found.leaves.shape
    sizes = torch.bincount(candidates.user, minlength=num_users)
    starts, width = sizes.cumsum(0) - sizes, int(sizes.max())
    shift = torch.arange(num_users, device=sizes.device) * width - starts
    place = torch.arange(len(candidates.user), device=sizes.device) + shift[candidates.user]
    is_leaf = trie.num_leaves[candidates.node] == 1 if scoring == "valid" else trie.num_children[candidates.node] == 0

    def table(left_out: Tensor | None) -> Tensor:
        """Scores by user, `(U, most candidates of a user)`."""
        scores = candidates.score if left_out is None else candidates.score.masked_fill(left_out, -torch.inf)
        return torch.full((num_users * width,), -torch.inf, device=place.device).put_(place, scores).view(-1, width)

    ended = table(~is_leaf)
    if scoring == "full_vocab" and width > num_beams:
        last_place = table(None).topk(num_beams, dim=1).values[:, -1:]
        found.prune(ended.masked_fill(ended >= last_place, -torch.inf))
        ended = ended.masked_fill(ended < last_place, -torch.inf)
    best, places = ended.topk(min(num_beams + 1, width), dim=1)
    nodes = candidates.node[(starts[:, None] + places).clamp_(max=len(candidates.node) - 1)]
    found.add(trie.first_leaf[nodes], best)

    best, places = table(is_leaf).topk(min(num_beams + 1, width), dim=1)
    found.prune(best[:, num_beams:])
    best, places = best[:, :num_beams], places[:, :num_beams]
    # Scores never rise, so a prefix below the last wanted leaf cannot change the result.
    alive = (best > -torch.inf) & (best >= found.scores[:, num_results - 1 : num_results])
    found.prune(best.masked_fill(alive, -torch.inf))
    return (starts[:, None] + places)[alive]


def _chains(trie: TrieCSR, tokens: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Append the tokens that the trie forces after each node, `-1` after the last, and find the nodes they lead to."""
    columns = [tokens]
    while True:
        forced = (trie.num_children[nodes] == 1) & (trie.num_leaves[nodes] > 1)
        if not forced.any():
            return torch.cat(columns, dim=1), nodes
        edges = torch.where(forced, trie.ptr[nodes], 0)
        columns.append(torch.where(forced, trie.tokens[edges], NO_TOKEN)[:, None])
        nodes = torch.where(forced, edges + 1, nodes)


def _runs_in_step(model: nn.Module) -> bool:
    """Whether a forward pass waits for the other processes, because they hold shards of the weights."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    # Under ZeRO-3 a weight says whether it is whole now: gathered ones need no other process
    statuses = (getattr(weight, "ds_status", None) for weight in model.parameters())
    return is_fsdp_managed_module(model) or any(status and status.name != "AVAILABLE" for status in statuses)


def _any_process(live: bool, device: torch.device) -> bool:
    """Whether any process has beams left."""
    flag = torch.tensor(float(live), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
