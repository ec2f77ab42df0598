"""
What a prior inside the search costs: time a user of a language model alone, and fused with a sequence model.

python benchmarks/fused_search.py [--items 10000 --users 128 --batch_size 32 --k 10]

Items are paths of three codes of 256, and a fourth one where these are equal, as in TIGER. A GPT-2 of 4 layers and
width 128 and a SASRec of width 64, both with random weights, get the same histories of 20 items. The calls take turns
in one process; medians of CPU seconds are compared. The scores of the prior alone are timed apart: what a user of both
models would pay anyway.
"""

import argparse
import time

import numpy as np
import torch
from transformers.utils import logging

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_tokens import add_path_tokens
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


HISTORY = 20  # items
CODES = 256
MOST = 1.15


def make_catalog(num_items: int) -> Catalog:
    """Codes as residual k-means makes them: some first codes are frequent, and few of the second go with each."""
    rng = np.random.default_rng(0)
    first = (CODES * rng.beta(1, 2, num_items)).astype(int)
    second = (first * 7 + rng.integers(0, CODES // 4, num_items)) % CODES
    third = rng.integers(0, CODES, num_items)
    seen: dict[tuple[int, ...], int] = {}
    records = []
    for row, codes in enumerate(zip(first.tolist(), second.tolist(), third.tolist(), strict=True)):
        seen[codes] = seen.get(codes, -1) + 1
        records.append({"item_id": row, "codes": [*codes, seen[codes]]})
    return Catalog.from_records(records)


def make_recommenders(catalog: Catalog) -> tuple[LanguageModelRecommender, SequenceRecommender]:
    tokenizer = new_tokenizer([], 258)
    add_path_tokens(tokenizer, catalog, "codes:codes")
    prompt = Prompt(tokenizer, catalog, item_path="codes:codes")
    language = LanguageModelRecommender(
        new_causal_lm(tokenizer).eval(), tokenizer, catalog, prompt, ItemTrie.build(prompt.encode_items()).csr()
    )
    torch.manual_seed(0)
    config = SASRecConfig(num_items=len(catalog), hidden_size=64, initializer_range=0.3)
    return language, SequenceRecommender(SASRecModel(config), catalog)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"items": 10_000, "users": 128, "batch_size": 32, "k": 10, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    catalog = make_catalog(args.items)
    language, sequence = make_recommenders(catalog)
    fused = FusedRecommender([language, sequence], [0.7, 0.3])
    histories = np.random.default_rng(1).integers(0, args.items, (args.users, HISTORY)).tolist()
    rows = {"language model": language, "fused": fused}

    def run(name: str) -> None:
        if name == "prior alone":
            for start in range(0, args.users, args.batch_size):
                sequence.log_probabilities(histories[start : start + args.batch_size], None)
        else:
            rows[name].recommend(histories, k=args.k, batch_size=args.batch_size)

    seconds: dict[str, list[float]] = {name: [] for name in (*rows, "prior alone")}
    for repeat in range(args.repeats + 1):
        for name, taken in seconds.items():
            start = time.process_time()
            run(name)
            if repeat:  # the first round sets up what is kept
                taken.append(time.process_time() - start)
    each = {name: 1000 * float(np.median(taken)) / args.users for name, taken in seconds.items()}
    for name, value in each.items():
        print(f"{name:<15} {value:6.2f} ms of CPU a user")
    together = each["fused"] / each["language model"]
    search = (each["fused"] - each["prior alone"]) / each["language model"]
    print(f"fused against the language model alone: {together:.2f}x, {search:.2f}x without the prior's own scores")
    if together > MOST:
        raise SystemExit(f"The claim does not hold: at most {MOST}x.")


if __name__ == "__main__":
    main()
