"""
Rank 12,101 items for 22,363 users, the size of Amazon Beauty's test: ten items each, none of those seen.

python benchmarks/rank_users.py [--users 22363 --items 12101 --k 10 --threads 2]

- ours: `SequenceRecommender.recommend` with `exclude`, raw ids in and out, which is all that a caller does;
- plain: one `[users, items]` matrix of scores and `torch.topk`, from encoded histories and without ids.
"""

import argparse
import resource
import time

import numpy as np
import torch

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.data.catalog import Catalog
from hf_rec.recommenders.sequence import SequenceRecommender


def plain(model: SASRecModel, histories: list[list[int]], k: int) -> torch.Tensor:
    with torch.no_grad():
        newest = [history[-50:] for history in histories]
        input_ids = torch.tensor([[-1] * (50 - len(history)) + history for history in newest])
        scores = model.score_items(torch.cat([model.user_vectors(part) for part in input_ids.split(512)]))
        for user, history in enumerate(histories):
            scores[user, history] = -torch.inf
        return scores.topk(k).indices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=22_363)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    lengths = 4 + rng.geometric(0.25, args.users)
    histories = [rng.choice(args.items, length, replace=False).tolist() for length in lengths]
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=args.items)).eval()
    recommender = SequenceRecommender(model, Catalog.from_records({"item_id": item} for item in range(args.items)))
    recommender.recommend(histories[:256], k=args.k)
    print(f"{args.users} users, {args.items} items, k = {args.k}, {args.threads} thread(s)")
    found = {}
    for name, rank in (
        ("ours", lambda: recommender.recommend(histories, k=args.k, exclude=histories).item_ids),
        ("plain", lambda: plain(model, histories, args.k).tolist()),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        found[name] = rank()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name:<6} {wall:6.2f} s, {cpu:6.2f} CPU s, {args.users / wall:8.0f} users/s, peak so far {peak:.2f} GiB"
        )
    same = np.mean([ours == other for ours, other in zip(found["ours"], found["plain"], strict=True)])
    print(f"{100 * same:.2f} % of the lists are the same (ties and rounding apart)")


if __name__ == "__main__":
    main()
