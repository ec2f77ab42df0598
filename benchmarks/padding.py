"""
Labels a second of `MSLTrainer` on histories of unlike length, against random batches padded to the longest row.

python benchmarks/padding.py [--data books --supervise all --batch_size 16 --max_length 1024]

- random   rows in random order, padded to the longest of a batch
- grouped  the rows of a step are of about one length
- packed   `packing=True`, rows in random order
- both     grouped and packed

With `--supervise all` a row is a user's whole history and every event a label; with `last` the latest event is the
only label. The histories of Amazon Books or Beauty are read from HF_REC_DATA; without it they are drawn.
The same rows in all ways: collator, forward and backward of a small Llama, in CPU seconds. The ways take turns, batch
by batch.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trie_loss import item_titles

from hf_rec import Catalog, MSLConfig, MSLTrainer
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.models.language.from_scratch import new_tokenizer


WAYS = {"random": ("random", False), "grouped": ("group_by_length", False), "packed": ("random", True)}
WAYS["both"] = ("group_by_length", True)


def read_data(name: str) -> tuple[list[str], list[list[int]]]:
    """Titles of the items, and the whole history of each user in the order of the file."""
    folder = os.environ.get("HF_REC_DATA")
    if not folder:
        return item_titles(), drawn_histories(len(item_titles()))
    return beauty(Path(folder)) if name == "beauty" else books(Path(folder))


def drawn_histories(num_items: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (2 + torch.empty(2000).log_normal_(1.5, 1.0, generator=generator)).long().clamp(max=300)
    return [torch.randint(0, num_items, (size,), generator=generator).tolist() for size in sizes.tolist()]


def books(folder: Path) -> tuple[list[str], list[list[int]]]:
    events: dict[str, list[int]] = {}
    with (folder / "msl_amazon_books/train.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["timestamp"]))
    for row in rows:  # windows of a user that end one event later each
        items = [number - 1 for number in json.loads(row["item_ids"])]  # they count from 1
        events.setdefault(row["user_id"], items[:-1]).append(items[-1])
    return item_titles(), [items for items in events.values() if len(items) > 1]


def beauty(folder: Path) -> tuple[list[str], list[list[int]]]:
    lines = (folder / "items/Beauty.jsonl").read_text(encoding="utf-8").splitlines()
    items = {record["id"]: record for record in map(json.loads, lines)}
    row_of = {number: row for row, number in enumerate(items)}
    sequences = (folder / "sequences/Beauty.txt").read_text(encoding="utf-8").splitlines()
    histories = [[row_of[int(number)] for number in line.split()[1:]] for line in sequences]  # the user comes first
    return [record["title"] or f"untitled {number}" for number, record in items.items()], histories


def make_trainer(args: argparse.Namespace, way: str, rows: Dataset, catalog: Catalog, tokenizer, folder: str):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=args.max_length,
    )
    strategy, packing = WAYS[way]
    settings = MSLConfig(
        f"{folder}/{way}",
        supervise=args.supervise,
        max_length=args.max_length,
        per_device_train_batch_size=args.batch_size,
        train_sampling_strategy=strategy,
        packing=packing,
        use_cpu=True,
        report_to="none",
    )
    return MSLTrainer(LlamaForCausalLM(config), settings, rows, processing_class=tokenizer, catalog=catalog)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(batch_size=16, max_length=1024, rows=320, hidden_size=128, layers=2, threads=1).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--supervise", default="all", choices=("all", "last"))
    parser.add_argument("--data", default="books", choices=("books", "beauty"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    titles, users = read_data(args.data)
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(titles)])
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[: args.rows].tolist()
    users = [users[user] for user in order]
    rows = Dataset.from_dict(
        {
            HISTORY: [user[:-1] for user in users],
            TARGET: [user[-1] for user in users],
            SUPERVISE_FROM: [1] * len(users),
        }
    )
    tokenizer = new_tokenizer(titles, 8000)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: make_trainer(args, way, rows, catalog, tokenizer, folder) for way in WAYS}
        loaders = {way: iter(trainer.get_train_dataloader()) for way, trainer in trainers.items()}
        seconds, labels, places, tokens = ({way: 0.0 for way in WAYS} for _ in range(4))
        for _ in zip_longest(*(range(len(trainer.get_train_dataloader())) for trainer in trainers.values())):
            for way, trainer in trainers.items():
                trainer.model.train()
                begin = time.process_time()
                batch = next(loaders[way])
                loss = trainer.compute_loss(trainer.model, batch)
                loss.backward()
                seconds[way] += time.process_time() - begin
                trainer.model.zero_grad()
                labels[way] += len(batch["target_tokens"])
                places[way] += batch["input_ids"].numel()
                real = batch["attention_mask"] > 0 if "attention_mask" in batch else batch["segments"] > 0
                tokens[way] += int(real.sum())
    speed = {way: labels[way] / seconds[way] for way in WAYS}
    lengths = sorted(len(row) for row in trainers["random"].train_dataset["input_ids"])
    quantiles = [lengths[len(lengths) * share // 100] for share in (10, 50, 90)]
    for way in ("grouped", "packed", "both"):
        print(f"{way} against random: {speed[way] / speed['random']:.2f}x the labels a second")
    print(f"{len(lengths)} rows of {quantiles[0]} / {quantiles[1]} / {quantiles[2]} tokens (10 / 50 / 90 %)")
    for way in WAYS:
        print(
            f"{way:8} {speed[way]:9.1f} labels a CPU second, {seconds[way]:7.2f} s, "
            f"{100 * (1 - tokens[way] / places[way]):4.1f} % padding"
        )


if __name__ == "__main__":
    main()
