"""
An epoch of SASRec on Amazon Beauty, and what it has learned, against RecTools' SASRec on the same cores.

HF_REC_DATA=... python benchmarks/sequential_epoch.py [--epochs 1 --batch_size 128 --threads 2 --lengths 12 50]

Equal width (64), depth (2), heads (1), length, batch, dropout, learning rate and loss (softmax over all items), equal
rows: each user's events but the last two. Rows have 6.7 events: at length 12 RecTools pads little, which is the fair
comparison; at 50, the length of the paper, most of its work is padding. RecTools is installed in a virtual environment
of its own, `build/rectools`, since it pins other versions. Both then recommend ten unseen items to every user; NDCG@10
of the last event but one is computed here from both lists.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ENVIRONMENT = Path(__file__).parents[1] / "build" / "rectools"
REQUIREMENTS = ["rectools[torch]==0.19.0", "torch==2.13.0"]
DROPOUT, LEARNING_RATE = 0.2, 1e-3


def read_users() -> list[list[int]]:
    """Events of each user, the last (test) one left out."""
    lines = Path(os.environ["HF_REC_DATA"], "sequences/Beauty.txt").read_text().splitlines()[: PARSED.users]
    return [[int(item) - 1 for item in line.split()[1:-1]] for line in lines]


def run_ours(args: argparse.Namespace) -> dict:
    import torch
    from datasets import Dataset

    from hf_rec import SASRecConfig, SASRecModel
    from hf_rec.data.catalog import Catalog
    from hf_rec.trainers.sequential.config import SequentialConfig
    from hf_rec.trainers.sequential.trainer import SequentialTrainer

    torch.set_num_threads(args.threads)
    users = read_users()
    num_items = 1 + max(map(max, users))
    rows = Dataset.from_dict({"history": [user[:-2] for user in users], "target": [user[-2] for user in users]})
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=num_items, max_length=args.length, dropout=DROPOUT))
    with tempfile.TemporaryDirectory() as folder:
        settings = SequentialConfig(
            folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        catalog = Catalog.from_records({"item_id": item} for item in range(num_items))
        trainer = SequentialTrainer(model, settings, rows, catalog=catalog)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        histories = [user[:-1] for user in users]
        lists = trainer.recommender().recommend(histories, k=10, exclude=histories).item_ids
    return {"wall": wall, "cpu": cpu, "lists": lists}


def run_rectools(args: argparse.Namespace) -> dict:
    import pandas as pd
    import torch
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(args.threads)
    users = read_users()
    events = [(user, item, place) for user, items in enumerate(users) for place, item in enumerate(items[:-1])]
    frame = pd.DataFrame(events, columns=["user_id", "item_id", "datetime"])
    frame["datetime"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame["datetime"], unit="D")
    frame["weight"] = 1.0
    torch.manual_seed(0)
    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=1,
        session_max_len=args.length,
        dropout_rate=DROPOUT,
        lr=LEARNING_RATE,
        batch_size=args.batch_size,
        epochs=args.epochs,
        loss="softmax",
        recommend_torch_device="cpu",
        verbose=0,
    )
    dataset = Dataset.construct(frame)
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(dataset)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = model.recommend(users=list(range(len(users))), dataset=dataset, k=10, filter_viewed=True)
    lists = [[] for _ in users]
    for user, item in zip(found["user_id"], found["item_id"], strict=True):
        lists[user].append(int(item))
    return {"wall": wall, "cpu": cpu, "lists": lists}


def worker(python: Path | str, name: str, length: int) -> dict:
    """Runs one of the two in an interpreter of its own and reads what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        environment = os.environ | {"OMP_NUM_THREADS": str(PARSED.threads), "CUDA_VISIBLE_DEVICES": ""}
        command = [str(python), __file__, *sys.argv[1:], "--length", str(length), "--worker", name, str(result)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())


def ndcg(lists: list[list[int]], targets: list[int]) -> float:
    gains = (
        1 / math.log2(listed.index(target) + 2) if target in listed else 0.0
        for listed, target in zip(lists, targets, strict=True)
    )
    return sum(gains) / len(targets)


def main() -> None:
    if "HF_REC_DATA" not in os.environ:
        print("Skipped: HF_REC_DATA does not say where sequences/Beauty.txt is.")
        return
    if PARSED.worker:
        name, result = PARSED.worker
        Path(result).write_text(json.dumps({"ours": run_ours, "RecTools": run_rectools}[name](PARSED)))
        return
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    print(
        f"SASRec with a full softmax, batch {PARSED.batch_size}, {PARSED.epochs} epoch(s), {PARSED.threads} thread(s)"
    )
    for length in PARSED.lengths:
        compare(python, length)


def compare(python: Path, length: int) -> None:
    """Train both at one length and print what they took and learned."""
    targets = [user[-1] for user in read_users()]
    found = {"ours": worker(sys.executable, "ours", length), "RecTools": worker(python, "RecTools", length)}
    print(f"newest {length} events of a history:")
    for name, result in found.items():
        wall, cpu = (result[key] / PARSED.epochs for key in ("wall", "cpu"))
        quality = ndcg(result["lists"], targets)
        print(f"{name:<9} {wall:8.1f} s an epoch, {cpu:8.1f} CPU s, validation NDCG@10 {quality:.4f}")
    ratios = [found["RecTools"][key] / found["ours"][key] for key in ("wall", "cpu")]
    print(f"ours is {ratios[0]:.1f} times as fast by the clock, {ratios[1]:.1f} times in CPU time")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lengths", type=int, nargs="+", default=[12, 50], help="newest events that both read")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, help="the first users alone; all of them if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    PARSED = parse()
    main()
