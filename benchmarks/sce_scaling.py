"""
How a step of SASRec with scaled cross-entropy grows with the catalog: 10,000 to 1,000,000 items.

python benchmarks/sce_scaling.py [--items 10000 100000 1000000 --num_negatives 500 --num_negative_sets 1 --threads 1]

A step is forward, backward and optimizer; shared negatives, so that it touches the rows of its histories, targets and
negatives alone.

- lazy: sparse gradients and `LazyAdam`, which updates those rows;
- dense: a gradient of the whole table and Adam over it.

Each runs in a process of its own; times are medians of CPU seconds. Memory is the peak over that of a process that has
only imported everything; "table and state" is the item table with both moments (and the two counters a row of
`LazyAdam`), which nothing can save.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import IGNORE_INDEX
from hf_rec.trainers.seeded_draws import position_keys
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.lazy_adam import LazyAdam
from hf_rec.trainers.sequential.loss import ItemLoss


WIDTH, LENGTH = 64, 50


def batch(num_items: int, batch_size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded histories of lengths like Beauty's (8 on average), their items drawn evenly, and labels."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(3 + rng.geometric(0.2, batch_size), LENGTH)
    events = rng.integers(0, num_items, (batch_size, LENGTH + 1))
    real = np.arange(LENGTH) >= LENGTH - lengths[:, None]
    input_ids, labels = np.where(real, events[:, :-1], -1), np.where(real, events[:, 1:], IGNORE_INDEX)
    return torch.from_numpy(input_ids), torch.from_numpy(labels)


def measure(num_items: int, optimizer_name: str, args: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = SASRecModel(SASRecConfig(num_items=num_items, hidden_size=WIDTH, max_length=LENGTH, dropout=0.5)).train()
    settings = SequentialConfig(
        ".",
        loss_type="sce",
        num_negatives=args.num_negatives,
        num_negative_sets=args.num_negative_sets,
        use_cpu=True,
    )
    item_loss = ItemLoss(settings, num_items)
    if optimizer_name == "lazy":
        model.set_sparse_item_gradient(True)
        optimizer = LazyAdam(model.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    times = []
    for step in range(args.steps + 2):
        input_ids, labels = batch(num_items, args.batch_size, step)
        real = labels != IGNORE_INDEX
        start = time.process_time()
        optimizer.zero_grad()
        hidden = model(input_ids).last_hidden_state[real]
        loss = item_loss(model, hidden, labels[real], position_keys(input_ids)[real], step)
        (loss / real.sum()).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rows = 3 * WIDTH + (2 if optimizer_name == "lazy" else 0)  # float32 numbers an item
    return {"seconds": float(np.median(times[2:])), "peak": peak, "table": num_items * rows * 4 / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--num_negatives", type=int, default=500)
    parser.add_argument("--num_negative_sets", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("ITEMS", "OPTIMIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(int(args.only[0]), args.only[1], args)))
        return
    print(f"{args.batch_size} rows, {args.num_negatives} shared negatives, {args.threads} thread(s)")
    print(
        f"{'items':>9}  {'optimizer':<10}{'CPU ms':>8}{'ratio':>8}{'peak MiB':>10}{'table and state':>17}{'rest':>7}"
    )
    for name in ("lazy", "dense"):
        first = None
        for num_items in args.items:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", str(num_items), name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            first = first or found["seconds"]
            print(
                f"{num_items:>9}  {name:<10}{1000 * found['seconds']:>8.1f}{found['seconds'] / first:>8.2f}"
                f"{found['peak']:>10.0f}{found['table']:>17.0f}{found['peak'] - found['table']:>7.0f}"
            )


if __name__ == "__main__":
    main()
