"""
A training step of SASRec at the size of Amazon Beauty: scaled cross-entropy against full softmax, and ours against
what a careful programmer would write and against the published way.

python benchmarks/sce_step.py [--batch_size 512 --num_negatives 500 --num_negative_sets 24 --steps 10 --threads 1]

- ours, SCE: 500 negatives a position from 24 sets shared by the step, padding dropped;
- ours, CE: softmax over all items in chunks, padding dropped;
- fair, CE: rows padded to 50, then the scores of the real positions alone: one line more than the published way;
- published, CE: rows padded to 50, `[B, 50, N]` scores, then the real positions of them;
- published, SCE: rows padded to 50, negatives of each position gathered as `[B, 50, K, d]`.

A step is forward, backward and Adam on one batch. Times are CPU seconds, medians of steps taken in turns in one
process; memory is what the first step of a method adds to the peak of a process of its own. Histories are those of
Beauty where HF_REC_DATA is set, else of about the same lengths.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import IGNORE_INDEX
from hf_rec.trainers.seeded_draws import position_keys
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.loss import ItemLoss


NUM_ITEMS, LENGTH, WIDTH = 12_101, 50, 64
METHODS = ("ours, SCE", "ours, CE", "fair, CE", "published, CE", "published, SCE")


def beauty_batch(batch_size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded histories and labels `[B, 50]` of random users."""
    rng = np.random.default_rng(seed)
    folder = os.environ.get("HF_REC_DATA")
    if folder:
        lines = Path(folder, "sequences/Beauty.txt").read_text().splitlines()
        users = [[int(item) - 1 for item in line.split()[1:-2]] for line in lines]
        users = [users[user] for user in rng.choice(len(users), batch_size, replace=False)]
    else:
        lengths = 3 + rng.geometric(0.26, batch_size)
        users = [rng.integers(0, NUM_ITEMS, length).tolist() for length in lengths]
    input_ids = torch.full((batch_size, LENGTH), -1)
    labels = torch.full((batch_size, LENGTH), IGNORE_INDEX)
    for row, user in enumerate(users):
        user = user[-LENGTH - 1 :]
        input_ids[row, LENGTH + 1 - len(user) :] = torch.tensor(user[:-1])
        labels[row, LENGTH + 1 - len(user) :] = torch.tensor(user[1:])
    return input_ids, labels


class PaddedSASRec(nn.Module):
    """SASRec on padded rows, as published."""

    def __init__(self, dropout: float):
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS + 1, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, 1, dropout=dropout, batch_first=True) for _ in range(2)
        )
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, rows):
        width, padding = rows.shape[1], (rows == 0)[..., None]
        states = self.dropout(self.items(rows) * WIDTH**0.5 + self.positions.weight[-width:]).masked_fill(padding, 0)
        future = torch.ones(width, width, dtype=torch.bool).triu(1)
        for block in range(2):
            query = self.norms[2 * block](states)
            attended = self.attentions[block](query, states, states, attn_mask=future, need_weights=False)[0]
            states = self.norms[2 * block + 1](attended + states)
            inner = F.relu(self.dropout(self.linears[2 * block](states)))
            states = (states + self.dropout(self.linears[2 * block + 1](inner))).masked_fill(padding, 0)
        return self.norms[4](states)


def make_step(method: str, args: argparse.Namespace):
    """A function that takes one training step."""
    torch.manual_seed(0)
    input_ids, labels = beauty_batch(args.batch_size)
    real = labels != IGNORE_INDEX
    if method.startswith("ours"):
        model = SASRecModel(SASRecConfig(num_items=NUM_ITEMS, hidden_size=WIDTH, max_length=LENGTH, dropout=0.6))
        loss_type = "sce" if "SCE" in method else "ce"
        item_loss = ItemLoss(
            SequentialConfig(
                ".",
                loss_type=loss_type,
                num_negatives=args.num_negatives,
                num_negative_sets=args.num_negative_sets,
                use_cpu=True,
            ),
            NUM_ITEMS,
        )

        def loss(step):
            hidden = model(input_ids).last_hidden_state[real]
            return item_loss(model, hidden, labels[real], position_keys(input_ids)[real], step) / real.sum()

    else:
        model = PaddedSASRec(dropout=0.6)
        rows, targets = input_ids + 1, (labels + 1).clamp(min=0)

        def loss(step):
            hidden = model(rows)
            if method == "fair, CE":
                return F.cross_entropy(hidden[real] @ model.items.weight[1:].T, labels[real])
            if method == "published, CE":
                scores = hidden @ model.items.weight[1:].T
                return F.cross_entropy(scores[real], labels[real])
            negatives = torch.randint(1, NUM_ITEMS + 1, (*rows.shape, args.num_negatives))
            negative = (model.items(negatives) @ hidden[..., None]).squeeze(-1) + np.log(100.0)
            positive = (hidden * model.items(targets)).sum(-1, keepdim=True)
            scores = torch.cat([positive, negative], dim=-1)[real]
            return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, fused=True)

    def step(number):
        optimizer.zero_grad()
        loss(number).backward()
        optimizer.step()

    return step


def added_memory(method: str, args: argparse.Namespace) -> float:
    """MiB that a first step adds to the peak of this process."""
    step = make_step(method, args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def step_times(args: argparse.Namespace) -> dict[str, float]:
    """Median CPU seconds of a step of each method, in turns."""
    steps = {method: make_step(method, args) for method in METHODS}
    times = {method: [] for method in METHODS}
    for number in range(args.steps + 1):
        for method, step in steps.items():
            if method == "published, SCE" and number > 2:  # seconds a step
                continue
            start = time.process_time()
            step(number)
            times[method].append(time.process_time() - start)
    return {method: float(np.median(values[1:])) for method, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--num_negatives", type=int, default=500)
    parser.add_argument("--num_negative_sets", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory_of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(added_memory(args.memory_of, args))
        return
    memory = {}
    for method in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", method]
        memory[method] = float(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        )
    times = step_times(args)
    print(
        f"{args.batch_size} rows, {NUM_ITEMS} items, {args.num_negatives} negatives, {args.num_negative_sets} sets, "
        f"{args.threads} thread(s)"
    )
    print(f"full softmax, fair against ours: {times['fair, CE'] / times['ours, CE']:.1f} times the time")
    print(f"{'step':<16}{'CPU ms':>10}{'added MiB':>12}{'times ours SCE':>18}{'times ours CE':>18}")
    for method, seconds in times.items():
        ratios = [seconds / times[ours] for ours in METHODS[:2]]
        print(f"{method:<16}{1000 * seconds:>10.1f}{memory[method]:>12.0f}{ratios[0]:>18.1f}{ratios[1]:>18.1f}")


if __name__ == "__main__":
    main()
