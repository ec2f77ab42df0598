"""
Time and memory of building the item trie, and of listing children with it.

python benchmarks/trie_build.py [--num_items 1000000]

Claims: Books (6,344 titles) builds in less than 0.1 s; 1,000,000 paths of length 10 in less than 15 s and 2 GiB.
Baselines: a trie of nested Python dictionaries (build), and marisa-trie's `keys(prefix)`, which walks the subtree
(children). Each case has a process of its own, so that peaks do not mix. Books needs the variable `HF_REC_DATA`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import marisa_trie
import numpy as np
import torch

from hf_rec.trie import ItemTrie


DICT_PATHS = 100_000  # nested dictionaries of a million paths would not fit into the memory that is measured


def timed(function, repeats=1):
    """Result and mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    return result, (time.perf_counter() - start) / repeats


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def build_dicts(paths):
    """The plain way: one dictionary a node."""
    root = {}
    for path in paths:
        node = root
        for token in path:
            node = node.setdefault(token, {})
    return root


def marisa_children(trie, prefix):
    """The plain way with marisa-trie: list all keys below and keep their next token."""
    key = np.asarray(prefix, dtype=">u4").tobytes()
    return sorted({int.from_bytes(found[len(key) : len(key) + 4], "big") for found in trie.keys(key)})


def measure(name, paths):
    print(f"\n{name}: {len(paths):,} paths, mean length {np.mean([len(path) for path in paths]):.1f}")
    before, cpu_start = peak_gib(), time.process_time()
    trie, seconds = timed(lambda: ItemTrie.build(paths))
    cpu = time.process_time() - cpu_start
    print(f"  build                   {seconds:8.3f} s   CPU time {cpu:.3f} s")
    print(f"  peak memory             {peak_gib():8.2f} GiB of which input and libraries {before:.2f}")
    few = paths[:DICT_PATHS]
    ours, plain = (timed(lambda build=build: build(few))[1] for build in (ItemTrie.build, build_dicts))
    print(
        f"  build, {len(few):>9,} paths {ours:8.3f} s   nested dictionaries {plain:.3f} s, ratio {plain / ours:.2f}x"
    )
    csr, seconds = timed(trie.csr)
    print(f"  tensors                 {seconds:8.3f} s   {len(csr):,} leaves, {len(csr.depth):,} nodes")
    with tempfile.TemporaryDirectory() as folder:
        print(f"  save                    {timed(lambda: trie.save(folder))[1]:8.3f} s")
        print(f"  load and check          {timed(lambda: ItemTrie.load(folder))[1]:8.3f} s")
        marisa = marisa_trie.BinaryTrie().mmap(str(Path(folder) / "trie.marisa"))
        for depth in (0, 1, 2):
            compare_children(csr, marisa, paths[0][:depth])
    nodes = torch.randint(len(csr.depth), (80,), generator=torch.Generator().manual_seed(0))
    tokens = csr.tokens[csr.ptr[nodes].clamp(max=len(csr.tokens) - 1)]
    print(f"  step, 80 rows           {timed(lambda: csr.step(nodes, tokens), 1000)[1] * 1e6:8.1f} us")


def compare_children(csr, marisa, prefix):
    node = torch.tensor([csr.root])
    for token in prefix:
        node = csr.step(node, torch.tensor([token]))
    children, ours = timed(lambda: csr.children(node), 100)
    expected, theirs = timed(lambda: marisa_children(marisa, prefix))
    assert children[0].tolist() == expected
    print(
        f"  children at depth {len(prefix)}     {ours * 1e6:8.1f} us  {len(expected):,} tokens; marisa keys() "
        f"{theirs * 1e3:.2f} ms, ratio {theirs / ours:,.1f}x"
    )


def measure_random(num_items):
    rng = np.random.default_rng(0)
    tokens = 1 + rng.zipf(1.3, size=(num_items, 10)) % 128_000
    tokens[:, -1] = 0  # the separator
    measure("random", tokens.tolist())


def measure_books(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from hf_rec.data.catalog import Catalog
    from hf_rec.data.prompts.next_item import Prompt

    titles = json.loads((Path(folder) / "msl_amazon_books" / "id2name4Rec.json").read_text(encoding="utf-8"))
    catalog = Catalog.from_records([{"item_id": key, "title": title} for key, title in titles.items()])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([catalog.text(row) for row in range(len(catalog))], trainer)
    prompt, seconds = timed(lambda: Prompt(PreTrainedTokenizerFast(tokenizer_object=tokenizer), catalog))
    print(f"\nBooks: tokenising all titles {seconds:.3f} s")
    measure("Books", prompt.encode_items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_items", type=int, default=1_000_000, help="Number of random paths.")
    cases = [(measure_random, parser.parse_args().num_items)]
    if "HF_REC_DATA" in os.environ:
        cases.append((measure_books, os.environ["HF_REC_DATA"]))
    for function, argument in cases:
        process = multiprocessing.get_context("spawn").Process(target=function, args=(argument,))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{function.__name__} failed.")


if __name__ == "__main__":
    main()
