"""
Generate a log, train five models, fuse two of them, measure all on the same test rows, write the report.

Plain SFT (`loss_type="lml"`) and MSL with adaptive temperature start from the same weights, see the same rows in the
same number of steps, and are selected on validation by the mean -log P of the target; so does a third model, under
MSL, which writes codes in place of titles. SASRec, which reads neither, is trained with a softmax over all items and
with scaled cross-entropy, and selected by NDCG@10. MSL on titles and SASRec are fused with weights chosen on
validation. All are measured beside popularity and the last-item neighbour.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.arguments import select_rows
from hf_rec.demo.data import add_codes, make_data
from hf_rec.demo.terminal import accuracy_table, metric, show_users
from hf_rec.demo.training import FULL, LANGUAGE_MODELS, QUICK, SEQUENCE_MODELS, WRITES_CODES, train_model
from hf_rec.evaluation.cost import measured_cost, summed_cost
from hf_rec.recommenders.control_list import CONTROLS, make_control
from hf_rec.report.report import report_page


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

MARKER = "hf_rec_demo.json"  # says that a demo wrote the folder
ASK_FOR = '"Letters from Lisbon" "Star Harbour 2: The Long Tide" "Star Harbour 3: Salt Moon"'
NAMES = {name: entry.label for name, entry in CONTROLS.items()}
NAMES |= {folder: method["name"] for folder, method in (SEQUENCE_MODELS | LANGUAGE_MODELS).items()}
FUSED = ("msl", "sasrec-ce")  # what the folder `fused` is made of
NAMES |= {"fused": " + ".join(NAMES[folder] for folder in FUSED)}


def run_demo(
    out_dir: str | os.PathLike = "runs/demo", *, seed: int = 0, quick: bool = False, overwrite: bool = False
) -> dict[str, float]:
    """
    Run the demo. A folder in which an earlier demo was cut off is emptied first; any other that holds something is
    refused.

    Args:
        out_dir (`str`, *optional*, defaults to `"runs/demo"`): Folder of everything: `data`, one folder a method with
            its measure in `test` below it, and `report.md` with its figures.
        seed (`int`, *optional*, defaults to `0`): Seed of data, weights, dropout and the order of rows.
        quick (`bool`, *optional*, defaults to `False`): Very little of everything: a check that all of it runs.
        overwrite (`bool`, *optional*, defaults to `False`): Empty the folder of a finished demo too.

    Returns:
        `dict[str, float]`: NDCG@10 on test of each method, by its name in the table.
    """
    import torch
    from datasets import disable_progress_bars
    from rich.console import Console
    from transformers.utils import logging

    from hf_rec.report import write_report

    torch.set_num_threads(1)  # at this size more threads cost more than they bring, and would change the last digits
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console, size = Console(), QUICK if quick else FULL
    out = _claim_folder(Path(out_dir), seed, quick, overwrite)

    console.rule("1. Data")
    splits = make_data(out / "data", size.num_users, seed, console)
    catalog, has_codes = add_codes(out / "data", seed, console)
    language_models = [folder for folder in LANGUAGE_MODELS if has_codes or folder != WRITES_CODES]
    test = select_rows(splits["test"], size.test_rows)

    console.rule("2. Sequence models and language models")
    trained = _make_controls(catalog, splits["train"], seed)
    for folder in (*SEQUENCE_MODELS, *language_models):
        trained[folder] = train_model(out / folder, catalog, splits, size, seed)
    validation = select_rows(splits["validation"], size.validation_rows)
    trained["fused"] = _fuse(out / "fused", [trained[folder] for folder in FUSED], validation, console)

    console.rule("3. The same test rows for all")
    results = _measure(out, trained, test, splits["train"], console)
    console.print(accuracy_table(results))

    console.rule("4. Three users")
    shown = {NAMES[folder]: trained[folder][0] for folder in ("sasrec-ce", "sft", "msl")}
    show_users(console, catalog, shown, test)

    console.rule("5. Report")
    page = write_report([out / name for name in results], out, baseline=NAMES["sft"], title="The demo")
    console.print(f"Tables, paired tests and figures: {page}")
    console.print("Ask the model yourself, and turn the order around:", soft_wrap=True)
    console.print(f"  hf-rec recommend --model {out / 'msl'} --history {ASK_FOR}", soft_wrap=True, highlight=False)
    return {result["name"]: metric(result, "ndcg@10")["mean"] for result in results.values()}


def _claim_folder(out: Path, seed: int, quick: bool, overwrite: bool) -> Path:
    """An empty folder: new, or that of an earlier demo, cut off or to be replaced, with everything in it removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARKER).is_file():
            raise FileExistsError(f"`--out` {str(out)!r} exists and no demo wrote it. Choose another folder.")
        if report_page(out).is_file() and not overwrite:
            raise FileExistsError(
                f"`--out` {str(out)!r} holds a finished demo: read {report_page(out)}. To run it again choose another "
                "folder, or give `--overwrite`."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps({"seed": seed, "quick": quick}) + "\n", encoding="utf-8")
    return out


def _make_controls(catalog: "Catalog", train: "Dataset", seed: int) -> dict[str, tuple["Recommender", dict[str, Any]]]:
    """Folder -> recommender and what it took."""
    from hf_rec.data.splits import distinct_labels

    made: dict[str, tuple[Recommender, dict[str, Any]]] = {}
    for name in CONTROLS:
        with measured_cost(training_rows=len(train), distinct_labels=distinct_labels(train), seed=seed) as cost:
            control = make_control(name, catalog, train)
        made[name] = control, cost
    return made


def _fuse(
    folder: Path,
    parts: list[tuple["Recommender", dict[str, Any]]],
    validation: "Dataset",
    console: "Console",
) -> tuple["Recommender", dict[str, Any]]:
    """Trained models as one recommender, with weights chosen on validation; and what their training took together."""
    from hf_rec.evaluation.fit_weights import fit_weights
    from hf_rec.recommenders.fused import FusedRecommender

    recommenders = [recommender for recommender, _ in parts]
    fit = fit_weights(recommenders, validation, "ndcg@10", seen="mask")
    weights = fit.grid[fit.best()].tolist()
    listed = ", ".join(f"{weight:g} {NAMES[name]}" for weight, name in zip(weights, FUSED, strict=True))
    console.print(f"Weights of the fusion, chosen on validation: {listed}", highlight=False)
    fused = FusedRecommender(recommenders, weights)
    fused.save(folder)
    return fused, summed_cost([cost for _, cost in parts])


def _measure(
    out: Path, trained: dict, test: "Dataset", train: "Dataset", console: "Console"
) -> dict[str, dict[str, Any]]:
    """Folder -> what was measured; every recommender on the same rows, with popularity first."""
    from hf_rec.data.splits import seen_items
    from hf_rec.evaluation.full import evaluate_recommender
    from hf_rec.hub import save_control

    for folder in CONTROLS:
        save_control(out / folder, trained[folder][0])
    results = {}
    for folder, (recommender, cost) in trained.items():
        console.print(NAMES[folder])
        results[folder] = evaluate_recommender(
            recommender,
            test,
            out / folder / "test",
            split="test",
            split_rule="loo",
            seen="mask",
            name=NAMES[folder],
            warm_items=seen_items(train),
            cost=cost,
        )
    return results
