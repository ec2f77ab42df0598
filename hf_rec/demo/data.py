"""The data of the demo: a generated log, and codes for its films made from their titles."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.demo.training import CODES


if TYPE_CHECKING:
    from datasets import DatasetDict
    from rich.console import Console

    from hf_rec.data.catalog import Catalog

LEVELS, NUM_CODES = 3, 32  # and a digit that tells the films of a path apart


def make_data(folder: Path, num_users: int, seed: int, console: "Console") -> "DatasetDict":
    """Generate and split a log as `hf-rec prepare --source demo` does; returns the splits."""
    from hf_rec.data.prepare import load_prepared, prepare

    card = prepare("demo", folder, num_users=num_users, seed=seed)
    _, splits, _ = load_prepared(folder)
    counts = card["catalog"]
    console.print(
        f"{counts['items']} films, {counts['duplicate_titles']} of them share a title with another, "
        f"{counts['html_escaped_titles']} titles were HTML-escaped, {counts['empty_titles']} is empty.\n"
        f"{card['interactions']['interactions']:,} events of {card['interactions']['users']:,} users. The last "
        "film of a user is for the test, the one before for validation.",
        highlight=False,
    )
    return splits


def add_codes(folder: Path, seed: int, console: "Console") -> tuple["Catalog", bool]:
    """
    Give the films codes as `hf-rec index --data FOLDER --out FOLDER --codes 32 --deduplicate` does, those of one path
    told apart in the order of the catalog, which is made before any event. Returns the catalog, and whether it has
    codes: without scikit-learn it has none, and a line says so.
    """
    from hf_rec.data.prepare import load_prepared
    from hf_rec.item_codes.code_report import code_report, summary_lines
    from hf_rec.item_codes.item_vectors import item_texts, tfidf_vectors
    from hf_rec.item_codes.prepared_codes import write_codes
    from hf_rec.item_codes.residual_kmeans import residual_kmeans, with_digit

    catalog, splits, card = load_prepared(folder)
    if find_spec("sklearn") is None:
        console.print(
            "No codes for the films, and no model that writes them: scikit-learn is not installed "
            "(pip install hf_rec\\[index])."
        )
        return catalog, False
    vectors = tfidf_vectors(item_texts(catalog, ["title"]), seed)
    made = residual_kmeans(vectors, levels=LEVELS, num_codes=NUM_CODES, seed=seed)
    codes = with_digit(made.codes, np.arange(len(catalog)))
    settings: dict[str, Any] = {"vectors": "TF-IDF + SVD of title", "events": "none: text alone"}
    settings |= {"levels": LEVELS, "codes": NUM_CODES, "deduplicate": True, "seed": seed}
    report = code_report(codes, made.errors)
    write_codes(folder, catalog, splits, card, column=CODES, codes=codes, settings=settings, report=report)
    console.print(f"Codes from the titles, {codes.shape[1]} a film: {'; '.join(summary_lines(report))}.")
    return load_prepared(folder)[0], True
