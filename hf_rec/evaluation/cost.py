"""What a training run took, as tables show it beside every metric."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rec.files import replacing


COST_FILE = "cost.json"


def peak_memory_bytes() -> int:
    """Peak memory so far: of the GPU where torch uses one, else the resident memory of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


@contextmanager
def measured_cost(**known: Any) -> Iterator[dict[str, Any]]:
    """
    Measure the wall-clock time of a block and the peak memory at its end.

    Args:
        known: Entries that are known before, such as `training_rows`, `distinct_labels` and `seed`.

    Yields:
        `dict`: The known entries; `seconds` and `peak_memory` (bytes) are there when the block has ended.
    """
    cost = dict(known)
    start = time.perf_counter()
    yield cost
    cost["seconds"] = time.perf_counter() - start
    cost["peak_memory"] = peak_memory_bytes()


def summed_cost(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several trainings took together: all of their time, the most of everything else that each of them says."""
    if not costs:
        return {}
    shared = [key for key in costs[0] if key != "seed" and all(cost.get(key) is not None for cost in costs)]
    total = {key: (sum if key == "seconds" else max)(cost[key] for cost in costs) for key in shared}
    seeds = {cost.get("seed") for cost in costs}
    return total | ({"seed": seeds.pop()} if len(seeds) == 1 else {})


def write_cost(folder: str | os.PathLike, cost: dict[str, Any]) -> None:
    """Keep a cost beside the model it paid for, for evaluations to come."""
    with replacing(Path(folder, COST_FILE)) as partial:
        partial.write_text(json.dumps(cost, indent=2) + "\n", encoding="utf-8")


def read_cost(folder: str | os.PathLike) -> dict[str, Any]:
    """The cost kept in a model folder; empty where none is."""
    path = Path(folder, COST_FILE)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
