"""
Time of a search step in a large catalog against a small one, same model and vocabulary.

python benchmarks/search_scaling.py [--small 10000 --large 1000000 --users 8 --num_beams 20 --vocab_size 49152]

A step is a forward pass and all the trie work after it. The first one, which reads the prompts and ranks all first
tokens, and the number of steps (how deep titles become unique) are reported apart; the claim is about the mean of the
others. Titles are 3 to 12 tokens drawn with the frequencies of words in text; the small catalog begins the large one.
The model has the shape of SmolLM-135M with random weights, and a bias that makes frequent tokens probable, so that
beams go where the titles are.
"""

import argparse
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rec.search.beam_search import trie_beam_search
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


SEPARATOR = 0
PROMPT = 32  # tokens


def token_frequency(vocab_size: int) -> np.ndarray:
    """Zipf-Mandelbrot, with nothing for the separator."""
    frequency = 1 / (np.arange(vocab_size) + 2.7)
    frequency[SEPARATOR] = 0
    return frequency / frequency.sum()


def make_paths(num_items: int, vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 13, size=num_items)
    tokens = rng.choice(vocab_size, size=lengths.sum(), p=token_frequency(vocab_size))
    return [[*path.tolist(), SEPARATOR] for path in np.split(tokens, lengths.cumsum()[:-1])]


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(args.hidden_size // 192, 1),
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config).eval()
    frequency = token_frequency(args.vocab_size)
    frequency[SEPARATOR] = 1 / 8
    model.lm_head.bias = torch.nn.Parameter(torch.from_numpy(frequency).log().float())
    return model


class StepTimes:
    """Seconds of each step of a search, from the start of its forward pass to that of the next."""

    def __init__(self, model: torch.nn.Module):
        self.starts = []
        model.register_forward_pre_hook(lambda *_: self.starts.append(time.perf_counter()))

    def of(self, search) -> list[float]:
        self.starts.clear()
        search()
        return np.diff([*self.starts, time.perf_counter()]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"small": 10_000, "large": 1_000_000, "users": 8, "num_beams": 20, "vocab_size": 49_152}
    for name, default in {**sizes, "hidden_size": 576, "layers": 30, "threads": 2, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    paths = make_paths(args.large, args.vocab_size)
    tries: dict[int, TrieCSR] = {size: ItemTrie.build(paths[:size]).csr() for size in (args.small, args.large)}
    model = make_model(args)
    times = StepTimes(model)
    input_ids = torch.randint(1, args.vocab_size, (args.users, PROMPT))
    attention_mask = torch.ones_like(input_ids)

    for csr in tries.values():  # the first search on a model also tries its cache
        trie_beam_search(model, input_ids, attention_mask, csr, args.num_beams)
    runs = {size: [] for size in tries}
    for _ in range(args.repeats):
        for size, csr in tries.items():
            runs[size].append(
                times.of(lambda csr=csr: trie_beam_search(model, input_ids, attention_mask, csr, args.num_beams))
            )
    means = {}
    for size, csr in tries.items():
        best = np.min(runs[size], axis=0) * 1000
        means[size] = best[1:].mean()
        print(
            f"{size:>9,} items, {len(csr.depth):>10,} nodes: {len(best)} steps, first {best[0]:.1f} ms "
            f"({csr.num_children[0]:,} tokens), others {means[size]:.1f} ms on average: "
            + " ".join(f"{value:.1f}" for value in best[1:])
        )
    ratio = means[args.large] / means[args.small]
    print(f"mean step after the first: {ratio:.2f}x")
    if ratio > 1.3:
        raise SystemExit("The claim does not hold: at most 1.3x.")


if __name__ == "__main__":
    main()
