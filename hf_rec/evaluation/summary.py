"""What predictions say: metrics with intervals, by full protocol key, and warm and cold targets apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_rec.columns import TARGET_ROW, USER_ID
from hf_rec.evaluation.run_files import FORMAT, FORMAT_VERSION, TITLE_LEVEL, row_values, rows_sha256
from hf_rec.metrics.beyond_accuracy import certified_share
from hf_rec.metrics.ranking import METRICS
from hf_rec.metrics.significance import LEVEL, NUM_SAMPLES, cluster_bootstrap


if TYPE_CHECKING:
    from hf_rec.data.catalog import Catalog

_SEED = 0  # of the bootstrap intervals


def summarize(settings: dict[str, Any], predictions: pa.Table, catalog: "Catalog") -> dict[str, Any]:
    """
    What any predictions say: settings, hashes, metrics with intervals, warm and cold targets apart.

    Args:
        settings (`dict`): Entries of `metrics.json` that are known before, `ks` and `protocol` among them.
        predictions (`pyarrow.Table`): With the columns of `predictions.parquet`.
        catalog ([`Catalog`]): The items.
    """
    users, targets = predictions[USER_ID].to_pylist(), predictions[TARGET_ROW].to_pylist()
    ks, protocol, slices = settings["ks"], settings["protocol"], {}
    warm = predictions["warm"].to_pylist()
    for label, wanted in (("warm", True), ("cold", False)):
        chosen = np.array([value is wanted for value in warm])
        if chosen.any():
            values = _intervals(predictions.filter(pa.array(chosen)), ks, protocol)
            slices[label] = {"rows": int(chosen.sum()), "share": float(chosen.mean()), "metrics": values}
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **settings,
        "rows": len(targets),
        "users": len(set(users)),
        "items": len(catalog),
        "rows_sha256": rows_sha256(users, targets),
        "catalog_sha256": catalog.sha256,
        "interval": {"level": LEVEL, "unit": "user", "samples": NUM_SAMPLES, "seed": _SEED},
        "metrics": _intervals(predictions, ks, protocol),
        "slices": slices,
        "certified_share": certified_share(predictions["certified"].to_pylist()),
        "counts": {"tied_targets": int(np.count_nonzero(predictions["tied"].to_numpy()))},
    }


def _intervals(predictions: pa.Table, ks: Sequence[int], protocol: str) -> dict[str, dict[str, float]]:
    """Mean and interval of every metric at both levels, by full protocol key."""
    names = [f"{level}{name}@{k}" for level in ("", TITLE_LEVEL) for k in ks for name in METRICS]
    values = np.stack([row_values(predictions, name) for name in names], axis=1)
    users = predictions[USER_ID].to_pylist()
    bounds = cluster_bootstrap(values, users, level=LEVEL, num_samples=NUM_SAMPLES, seed=_SEED)
    return {
        f"{protocol}/{name}": {"mean": float(mean), "low": float(low), "high": float(high)}
        for name, mean, low, high in zip(names, *bounds, strict=True)
    }
