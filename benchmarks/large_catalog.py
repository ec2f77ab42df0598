"""
What a large catalog costs: making its parts, saving them at a checkpoint, loading them, and excluding items.

python benchmarks/large_catalog.py [--items 300000]

Claims, at 300,000 items: load in less than 3 s, save at a checkpoint in less than 0.5 s, exclude for 32 users in less
than 20 ms. Baseline of the load: making catalog, prompt and trie again. Times are CPU seconds. The model is left out:
its weights cost what they cost.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_rec import Catalog, ItemTrie, Prompt
from hf_rec.hub import save_recommender
from hf_rec.recommenders.language_model import LanguageModelRecommender


Result = TypeVar("Result")


def timed(what: str, function: Callable[[], Result], repeats: int = 1) -> Result:
    """Result of a call, its CPU seconds printed."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    print(f"{what:44} {min(seconds):8.3f} s")
    return result


def make_records(num_items: int) -> list[dict]:
    """Items with a title of four to ten words, a brand and two categories."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(20_000)]
    return [
        {
            "item_id": f"B{row:08d}",
            "title": " ".join(draw.choices(words, k=draw.randint(4, 10))),
            "brand": draw.choice(words),
            "category": draw.choices(words, k=2),
        }
        for row in range(num_items)
    ]


def make_tokenizer(titles: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 8,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(titles, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--items", type=int, default=300_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = make_records(args.items)
    tokenizer = make_tokenizer([record["title"] for record in records[:5000]])
    print(f"{args.items:,} items; CPU seconds")
    catalog = timed("make the catalog from records", lambda: Catalog.from_records(records))
    prompt = timed("make the prompt (tokenise all items)", lambda: Prompt(tokenizer, catalog))
    trie = timed("make the trie", lambda: ItemTrie.from_flat(*prompt.item_paths))
    csr = timed("make its tensors", trie.csr)
    with tempfile.TemporaryDirectory() as root:
        parts = {"catalog": catalog, "prompt": prompt, "trie": trie, "tokenizer": tokenizer}

        def save(name: str) -> None:
            save_recommender(Path(root) / name, kind="language_model", **parts)

        timed("save, the first time", lambda: save("first"))
        timed("save at a checkpoint", lambda: save("checkpoint"), repeats=3)
        process = multiprocessing.get_context("spawn").Process(target=load, args=(Path(root) / "first",))
        process.start()
        process.join()
    exclude(LanguageModelRecommender(tiny_model(tokenizer), tokenizer, catalog, prompt, csr))


def load(folder: Path) -> None:
    """What a process that serves or trains pays before it starts, in a process of its own."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    start = time.process_time()
    catalog = timed("load the catalog", lambda: Catalog.load(folder))
    prompt = timed("load the prompt", lambda: Prompt.load(folder, tokenizer, catalog))
    csr = timed("load the trie and make its tensors", lambda: ItemTrie.load(folder).csr())
    print(f"{'load all three':44} {time.process_time() - start:8.3f} s")
    assert len(prompt) == len(catalog) >= len(csr)


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def exclude(recommender: LanguageModelRecommender) -> None:
    """What it adds to a search for 32 users that 100 items are excluded for each."""
    draw = np.random.default_rng(0)
    rows = draw.integers(len(recommender.catalog), size=(32, 100))
    excluded = [[recommender.catalog.ids[row] for row in user] for user in rows]
    histories = [user[:3] for user in excluded]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(6):
        for excludes, found in seconds.items():
            start = time.process_time()
            recommender.recommend(histories, k=2, num_beams=4, exclude=excluded if excludes else None)
            found.append(time.process_time() - start)
    without, with_exclude = (min(found) for found in seconds.values())
    print(f"{'search for 32 users, 4 beams':44} {without:8.3f} s")
    print(f"{'what exclude adds, 100 items for each':44} {with_exclude - without:8.3f} s")


if __name__ == "__main__":
    main()
