"""
Labels a second that SASRec trains on with the histories of Amazon Beauty: ours against padded batches.

HF_REC_DATA=... python benchmarks/sequence_padding.py [--batch_size 128 --steps 20 --loss_type sce]

Batches are random in both, and padded to their longest row. Ours lays the real positions end to end, so it computes no
padding in any layer that works position by position; attention runs on groups of rows of about equal length.

- ours: as `SequentialTrainer` trains;
- ours, rows of a batch of like length: to see what grouping would add;
- padded: every layer on padded rows, then the loss of the real positions alone.

The loss is the same code in all three. CPU seconds of one thread, steps taken in turns in one process.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sce_step import LENGTH, NUM_ITEMS, WIDTH, PaddedSASRec
from torch import Tensor, nn

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import INPUT_IDS, LABEL_PLACES, LABELS
from hf_rec.data.item_batches import ItemCollator, ItemRows
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.loss import ItemLoss


DROPOUT = 0.2


class PaddedModel(nn.Module):
    """[`PaddedSASRec`] with the methods that the loss asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PaddedSASRec(DROPOUT)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.body.items.weight[1:] if items is None else self.body.items(items + 1)

    def item_bias(self, items: Tensor | None = None) -> None:
        return None


def beauty_rows() -> ItemRows:
    """The training events of each user: all but the last two."""
    lines = Path(os.environ["HF_REC_DATA"], "sequences/Beauty.txt").read_text().splitlines()
    users = [np.array([int(item) - 1 for item in line.split()[1:-2]]) for line in lines]
    return ItemRows([user[:-1] for user in users], [user[-1] for user in users])


def random_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(lengths))
        yield from order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)


def batches_of_like_length(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """As transformers' `group_by_length`: fifty batches are drawn, sorted and cut, and taken in random order."""
    generator = np.random.default_rng(0)
    while True:
        drawn = generator.permutation(len(lengths))[: 50 * batch_size]
        by_length = drawn[np.argsort(-lengths[drawn], kind="stable")].reshape(-1, batch_size)
        yield from generator.permutation(by_length)


def make_step(model: nn.Module, hidden_of: Callable[[Tensor], Tensor], loss_type: str) -> Callable[[dict, int], None]:
    item_loss = ItemLoss(SequentialConfig(".", loss_type=loss_type, use_cpu=True), NUM_ITEMS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(batch: dict[str, Tensor], number: int) -> None:
        places = batch[LABEL_PLACES]
        vectors = hidden_of(batch[INPUT_IDS]).flatten(0, 1)[places]
        optimizer.zero_grad()
        (item_loss(model, vectors, batch[LABELS].flatten()[places], None, number) / len(places)).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--loss_type", choices=("ce", "sce"), default="sce")
    args = parser.parse_args()
    if "HF_REC_DATA" not in os.environ:
        print("Skipped: HF_REC_DATA does not say where sequences/Beauty.txt is.")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    collator = ItemCollator(LENGTH, NUM_ITEMS, "sequences")
    rows = collator.batches(beauty_rows())
    lengths = rows.ends - rows.starts - 1
    model = SASRecModel(SASRecConfig(num_items=NUM_ITEMS, hidden_size=WIDTH, max_length=LENGTH, dropout=DROPOUT))
    padded = PaddedModel()
    model.train(), padded.train()
    ours = make_step(model, lambda input_ids: model(input_ids).last_hidden_state, args.loss_type)
    ways = {
        "ours": (ours, random_batches(lengths, args.batch_size)),
        "ours, rows of like length": (ours, batches_of_like_length(lengths, args.batch_size)),
        "padded": (
            make_step(padded, lambda input_ids: padded.body(input_ids + 1), args.loss_type),
            random_batches(lengths, args.batch_size),
        ),
    }
    labels, seconds, cells = (dict.fromkeys(ways, 0) for _ in range(3))
    for number in range(args.steps + 2):
        for name, (step, batches) in ways.items():
            batch = collator(rows.__getitems__(next(batches)))
            start = time.process_time()
            step(batch, number)
            if number >= 2:  # the first ones warm up
                seconds[name] += time.process_time() - start
                labels[name] += len(batch[LABEL_PLACES])
                cells[name] += batch[INPUT_IDS].numel()
    rates = {name: labels[name] / seconds[name] for name in ways}
    print(f"ours trains on {rates['ours'] / rates['padded']:.1f} times the labels a second of padded random batches")
    print(f"{args.loss_type}, {args.batch_size} rows a batch, one thread")
    for name, rate in rates.items():
        print(f"{name:<28}{rate:>10.0f} labels/s{labels[name] / cells[name]:>10.0%} of the batch are labels")


if __name__ == "__main__":
    main()
