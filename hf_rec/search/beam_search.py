"""
Beam search over an item trie, for a batch of users at once.

What `generate()` does with a logits processor, made fast: the prompt of a user is read once, the head computes only
the tokens that some beam may take, tokens that the trie forces are fed together, and a beam ends as soon as one item
is left below it.

Shapes: U users · T prompt tokens · W beams · R live beams of all users, ordered by user · E their children, ordered by
beam · C columns of the head · L leaves of the trie.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.integrations.fsdp import is_fsdp_managed_module

from hf_rec.search.cache_probe import open_prefixes
from hf_rec.search.found_leaves import FoundLeaves, SearchResult
from hf_rec.search.leaf_filter import LeafFilter
from hf_rec.search.live_beams import Extension, LiveBeams, chain_tokens, next_beams
from hf_rec.search.logits_process import check_scoring
from hf_rec.search.priors import TriePrior
from hf_rec.trie.csr import TrieCSR


@torch.no_grad()
def trie_beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: TrieCSR,
    num_beams: int,
    tau: float = 1.0,
    scoring: str = "valid",
    allowed_leaves: LeafFilter | None = None,
    num_results: int | None = None,
    prior: TriePrior | None = None,
) -> SearchResult:
    """
    Find the most probable leaves of a trie for each prompt.

    Each step keeps the `num_beams` best unfinished prefixes of a user and, apart from them, the `num_beams` best
    leaves found so far. Under `scoring="full_vocab"` it takes the steps of `generate(length_penalty=0.0)`: one token
    at a time, and a leaf counts only if it is among the `num_beams` best candidates of its step. The lists are those
    of `generate(eos_token_id=<last token of the item paths>)`; with another `eos_token_id` a finished item holds one
    of the beams for one more step there, so that lists may differ.

    Under ZeRO-3 and FSDP all processes take equally many steps, so each must call this equally often.

    Args:
        model (`torch.nn.Module`): A causal LM or an encoder-decoder model in eval mode, or a `PeftModel` over one.
        input_ids (`torch.LongTensor` of shape `(U, T)`): Prompts, left padded; those of an encoder-decoder model go to
            its encoder, padded on the side of its training.
        attention_mask (`torch.LongTensor` of shape `(U, T)`): 1 for prompt tokens, 0 for padding.
        trie ([`TrieCSR`]): Item trie on the device of the prompts.
        num_beams (`int`): Prefixes kept for each user, at least 1.
        tau (`float`, *optional*, defaults to `1.0`): Temperature of the softmax, greater than 0.
        scoring (`str`, *optional*, defaults to `"valid"`):
            `"valid"` scores a leaf by `log P_valid`, each token normalised over **all** children of its trie node;
            `"full_vocab"` by its plain log-probability, each token normalised over the vocabulary.
        allowed_leaves ([`LeafFilter`], *optional*): Leaves that may be found. Scores do not depend on it.
        num_results (`int`, *optional*, defaults to `num_beams`):
            Leaves wanted for each user. Prefixes that fall below that many found leaves are dropped early, so that any
            further entries of the result are leaves and scores like others, but not the next best ones.
        prior ([`TriePrior`], *optional*): What items add to the score of their path. Prefixes are then ranked by the
            best score that any item below them can have, and a leaf by that of its best item.

    Returns:
        [`SearchResult`]: Leaves with their scores, and the bound that tells whether they are the best ones.
    """
    check_scoring(tau, scoring)
    if num_beams < 1:
        raise ValueError(f"`num_beams` must be at least 1, got {num_beams}.")
    num_results = num_beams if num_results is None else min(num_results, num_beams)
    device = input_ids.device
    in_step = _runs_in_step(model)
    any_process = partial(_any_process, device=device) if in_step else bool
    start, beams = _start(trie, len(input_ids), scoring)
    prefixes = open_prefixes(model, input_ids, attention_mask, trie, any_process, start)
    follow_chains = scoring == "valid" and prefixes.feeds_chains
    found = FoundLeaves.empty(len(input_ids), num_beams, device)
    extension: Extension | None = None
    while True:
        columns, lookup = None, None
        if scoring == "valid":
            columns, lookup = beams.columns(trie, trie.start[1] if extension is None else None)
        if extension is None:
            logits = prefixes.read_prompts(columns)
        else:
            logits = prefixes.feed(extension, beams.users, columns)
        log_probs = _child_scores(trie, beams, logits, lookup, tau, scoring)
        bounds = log_probs if prior is None else prior.bounds(log_probs, beams.users[beams.beam], beams.edge + 1)
        _give_up(bounds, beams, trie, allowed_leaves, found)
        children, alive = _select(bounds, beams, trie, found, num_results, scoring)
        following = next_beams(trie, beams, children, log_probs[children], alive, follow_chains)
        if following is None:
            break
        if in_step:
            any_process(True)
        beams, extension = following
    while in_step and any_process(False):  # others still search: run the model with them
        prefixes.run_idle()
    return found.result(prefixes.num_forwards)


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
        found = trie_beam_search(
            model,
            input_ids,
            attention_mask,
            trie,
            chunk.shape[1],
            tau,
            scoring,
            allowed_leaves=LeafFilter.allowing(chunk, len(trie)),
        )
        scores[:, start : start + chunk_size] = _look_up(found, chunk)
    return torch.empty_like(scores).scatter_(1, order, scores)


def _look_up(found: SearchResult, leaves: Tensor) -> Tensor:
    """Score of each leaf, `(U, n)`: `-inf` for -1, and NaN where it is missing because scores were NaN."""
    ascending, order = found.leaves.sort(dim=1)
    places = torch.searchsorted(ascending, leaves.contiguous()).clamp_(max=ascending.shape[1] - 1)
    present = (ascending.gather(1, places) == leaves) & (leaves >= 0)
    missing = torch.where((found.nan_scores[:, None] > 0) & (leaves >= 0), torch.nan, -torch.inf)
    return torch.where(present, found.scores.gather(1, order).gather(1, places), missing)


def _start(trie: TrieCSR, num_users: int, scoring: str) -> tuple[Tensor, LiveBeams]:
    """Under `"valid"` what every item starts with, which needs no step of its own, and the beams behind it."""
    device = trie.device
    node, num_children = trie.root, int(trie.ptr[1])
    start = torch.zeros(0, dtype=torch.long, device=device)
    if scoring == "valid":
        node, num_children = trie.start
        nodes = torch.tensor([trie.root], device=device)
        start = chain_tokens(trie, nodes, torch.full_like(nodes, node), trie.start_depth)[0]
    users = torch.arange(num_users, device=device)
    nodes, scores = torch.full_like(users, node), torch.zeros(num_users, device=device)
    beams = LiveBeams.at(trie, users, nodes, scores, num_users, num_users * num_children, num_children)
    return start, beams


def _child_scores(
    trie: TrieCSR, beams: LiveBeams, logits: Tensor, lookup: Tensor | None, tau: float, scoring: str
) -> Tensor:
    """Log-probability of each child, `(E,)`. `logits` has shape `(R, C)`."""
    tokens = trie.tokens[beams.edge].long()
    column = tokens if lookup is None else lookup[tokens]
    value = logits.flatten()[beams.beam * logits.shape[1] + column].div_(tau)
    if scoring == "valid":
        # `unsafe` leaves out the check that the sizes fit, for which the host would wait
        value -= torch.segment_reduce(value, "max", lengths=beams.sizes, unsafe=True)[beams.beam]
        normaliser = torch.segment_reduce(value.exp(), "sum", lengths=beams.sizes, unsafe=True).log()
    else:
        normaliser = (logits / tau).logsumexp(dim=1)
    return value.add_((beams.scores - normaliser)[beams.beam])


def _give_up(scores: Tensor, beams: LiveBeams, trie: TrieCSR, allowed: LeafFilter | None, found: FoundLeaves) -> None:
    """
    Write `-inf` over children without an allowed leaf, which are no loss, and over NaN, which is counted: `topk` would
    rank it first.
    """
    users = beams.users[beams.beam]
    if allowed is not None:
        nodes = beams.edge + 1
        empty = allowed.leaves_nothing(users, trie.first_leaf[nodes].long(), trie.num_leaves[nodes].long())
        scores.masked_fill_(empty, -torch.inf)
    undefined = scores.isnan()
    found.nan_scores = found.nan_scores.index_add(0, users, undefined.long())
    scores.masked_fill_(undefined, -torch.inf)


def _select(
    scores: Tensor, beams: LiveBeams, trie: TrieCSR, found: FoundLeaves, num_results: int, scoring: str
) -> tuple[Tensor, Tensor]:
    """
    Move finished children to `found`, and choose those that live on.

    Example, of 2 users with 3 and 2 children: the table of scores is `[[a, b, c], [d, e, -inf]]`, `starts` is
    `[0, 3]`, and place 1 of user 1 is child `starts[1] + 1 = 4`, which is e.

    Returns:
        `tuple`: Children `(U, W)` as places in `beams.edge`, and which of them live on.
    """
    num_users, num_beams = found.leaves.shape
    nodes = beams.edge + 1
    is_leaf = trie.num_leaves[nodes] == 1 if scoring == "valid" else trie.num_children[nodes] == 0

    def table(left_out: Tensor | None) -> Tensor:
        """Scores by user, `(U, most children of a user)`."""
        values = scores if left_out is None else scores.masked_fill(left_out, -torch.inf)
        empty = torch.full((num_users * beams.width,), -torch.inf, device=scores.device)
        return empty.scatter_(0, beams.place, values).view(num_users, -1)

    def children(places: Tensor) -> Tensor:
        return (beams.starts[:, None] + places).clamp_(max=len(nodes) - 1)

    ended = table(~is_leaf)
    if scoring == "full_vocab" and beams.width > num_beams:
        last_place = table(None).topk(num_beams, dim=1).values[:, -1:]
        found.prune(ended.masked_fill(ended >= last_place, -torch.inf))
        ended = ended.masked_fill(ended < last_place, -torch.inf)
    best, places = ended.topk(min(num_beams + 1, beams.width), dim=1)
    found.add(trie.first_leaf[nodes[children(places)]].long(), best)

    best, places = table(is_leaf).topk(min(num_beams + 1, beams.width), dim=1)
    found.prune(best[:, num_beams:])
    best, places = best[:, :num_beams], places[:, :num_beams]
    # Scores never rise, so a prefix below the last wanted leaf cannot change the result.
    alive = (best > -torch.inf) & (best >= found.scores[:, num_results - 1 : num_results])
    found.prune(best.masked_fill(alive, -torch.inf))
    return children(places), alive


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
