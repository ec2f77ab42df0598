"""
How often a search step waits for the device: counted on the CPU, by the operations whose result the host must know.

A step of ours reads two numbers' worth, how much lives on and how many columns the head needs. The rest is in
transformers, which looks once whether a prompt's attention mask has padding.
"""

import traceback
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rec.search.beam_search import score_leaves, trie_beam_search
from hf_rec.search.cache_probe import check_searchable
from hf_rec.search.leaf_filter import LeafFilter


WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "is_nonzero",
    "equal",
    "isin",
}


class HostReads(TorchDispatchMode):
    """Counts, by the line of hf_rec that asks (`""` for one of transformers), what would make a GPU wait."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def note(self):
        frames = [frame for frame in traceback.extract_stack() if "/hf_rec/" in frame.filename]
        inside = "transformers" in "".join(frame.filename for frame in traceback.extract_stack()[-12:])
        self.places[
            "" if inside or not frames else f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}"
        ] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        waits = name in WAITING
        waits |= name == "repeat_interleave" and kwargs.get("output_size") is None
        waits |= name == "segment_reduce" and not kwargs.get("unsafe")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            waits |= any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if waits:
            self.note()
        return func(*args, **kwargs)

    def __enter__(self):
        self.tolist = torch.Tensor.tolist  # on the CPU it goes past the dispatcher

        def tolist(tensor, plain=self.tolist):
            self.note()
            with torch._C._DisableTorchDispatch():
                return plain(tensor)

        torch.Tensor.tolist = tolist
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.tolist
        return super().__exit__(*error)


@pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_search_step_reads_two_numbers_at_most(problem, tiny_lm, kind, scoring):
    model = tiny_lm(kind, vocab_size=20)
    check_searchable(model, problem.csr)
    assert problem.csr.start_depth == 0  # known once for each trie
    allowed = LeafFilter.allowing(torch.tensor([[0, 3, 4, 7], [-1, 1, 2, 9], [5, 6, 10, 11]]), 12)
    for allowed_leaves in (None, allowed):
        with HostReads() as reads:
            found = trie_beam_search(
                model,
                problem.input_ids,
                problem.attention_mask,
                problem.csr,
                num_beams=3,
                scoring=scoring,
                allowed_leaves=allowed_leaves,
            )
        theirs = reads.places.pop("", 0)
        ours = sum(reads.places.values())
        assert 0 < ours <= (2 if scoring == "valid" else 1) * found.steps + 1, dict(reads.places)
        assert theirs <= 2 * found.steps


def test_scores_of_given_leaves_cost_no_further_reads(problem, tiny_lm):
    model = tiny_lm("llama", vocab_size=20)
    check_searchable(model, problem.csr)
    with HostReads() as reads:
        score_leaves(model, problem.input_ids, problem.attention_mask, problem.csr, torch.tensor([[1, 5]] * 3))
    assert sum(count for place, count in reads.places.items() if place) <= 2 * 3
