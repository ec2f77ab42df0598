"""
All diagnostics of one recommender, as a file for programs (`diagnostics.json`) and one for people (`diagnostics.md`).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.columns import USER_ID, column_values
from hf_rec.data.splits import seen_items
from hf_rec.diagnostics.markdown import to_markdown
from hf_rec.diagnostics.order import order_sensitivity, shuffled_training
from hf_rec.diagnostics.other_domain import transfer
from hf_rec.diagnostics.ranked_targets import RankSettings, rank_rows
from hf_rec.diagnostics.slices import by_events_given, by_history_length, by_warmth
from hf_rec.evaluation.protocol import protocol_key
from hf_rec.files import replacing


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

FORMAT, FORMAT_VERSION = "hf_rec.diagnostics", 1

DIAGNOSTICS_FILE = "diagnostics.json"


def diagnose(
    recommender: "Recommender",
    rows: "Dataset",
    train: "Dataset",
    out_dir: str | os.PathLike,
    *,
    name: str,
    split: str = "test",
    split_rule: str = "loo",
    settings: RankSettings | None = None,
    seed: int = 0,
    lengths: Sequence[int] = (),
    trained_on_shuffled: "Recommender | None" = None,
    other_domain: "tuple[Catalog, Dataset, Dataset] | None" = None,
) -> dict[str, Any]:
    """
    Find out what a recommender rests on, and write `diagnostics.json` and `diagnostics.md`.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Any recommender.
        rows (`datasets.Dataset`): Split rows to rank.
        train (`datasets.Dataset`): The rows that it was trained on, which say what is warm.
        out_dir (`str` or `os.PathLike`): Folder of the two files.
        name (`str`): Name of the method.
        split (`str`, *optional*, defaults to `"test"`): Name of the split.
        split_rule (`str`, *optional*, defaults to `"loo"`): How the split was made, part of the protocol.
        settings ([`RankSettings`], *optional*): How targets are ranked.
        seed (`int`, *optional*, defaults to `0`): Seed of shuffled histories.
        lengths (`list[int]`, *optional*): Rank with the newest so many events alone, once for each number.
        trained_on_shuffled ([`~hf_rec.recommenders.contract.Recommender`], *optional*): The same method, trained on
            shuffled histories.
        other_domain (`tuple`, *optional*): Catalog, training rows and rows to rank of another domain, for models that
            read text.

    Returns:
        `dict`: The content of `diagnostics.json`.
    """
    settings = settings or RankSettings()
    if not len(rows):
        raise ValueError("`rows` is empty: there is nothing to rank.")
    ranked = rank_rows(recommender, rows, settings)
    warm_users = set(map(str, column_values(train, USER_ID).to_pylist()))
    result = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "split": split,
        "split_rule": split_rule,
        "protocol": protocol_key(num_beams=ranked.num_beams, seen=settings.seen, split_rule=split_rule),
        "k": settings.k,
        "rows": len(rows),
        "order": order_sensitivity(recommender, rows, settings, seed, ranked),
        "history_length": by_history_length(ranked, rows, settings.k),
        "warmth": by_warmth(ranked, rows, seen_items(train), warm_users, settings.k),
    }
    if lengths:
        result["events_given"] = by_events_given(recommender, rows, lengths, settings)
    if trained_on_shuffled is not None:
        result["trained_on_shuffled"] = shuffled_training(ranked, trained_on_shuffled, rows, settings)
    if other_domain is not None:
        result["transfer"] = transfer(recommender, *other_domain, settings)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    texts = {DIAGNOSTICS_FILE: json.dumps(result, indent=2, allow_nan=False), "diagnostics.md": to_markdown(result)}
    for file, text in texts.items():
        with replacing(out / file) as partial:
            partial.write_text(text.rstrip() + "\n", encoding="utf-8")
    return result
