"""
The whole story on generated data: from a log and a catalog to two trained recommenders, their measure and a report.

Plain SFT (`loss_type="lml"`) and MSL with adaptive temperature start from the same weights, see the same rows in the
same number of steps, and are selected on validation by the mean -log P of the target. They are measured beside
popularity and the last-item neighbour on the same test rows.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.arguments import select_rows
from hf_rec.columns import HISTORY, TARGET
from hf_rec.cost import measured_cost, write_cost


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from rich.console import Console

    from hf_rec.data.catalog import Catalog
    from hf_rec.generation.recommend import Recommender

MARKER = "hf_rec_demo.json"  # says that a folder is ours to overwrite
SHOWN_ITEMS = 5
ASK_FOR = '"Letters from Lisbon" "Star Harbour 2: The Long Tide" "Star Harbour 3: Salt Moon"'
MAX_LENGTH = 256  # tokens of prompt and answer


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    num_users: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_epochs: float
    batch_size: int
    validation_rows: int
    test_rows: int


FULL = Size(3000, 1500, 64, 2, 6, 32, 500, 3000)
QUICK = Size(60, 320, 32, 1, 2, 16, 20, 20)

CONTROL_NAMES = {
    "popularity": "popularity",
    "recent": "recent popularity",
    "last-item": "last-item neighbour",
}
# Each learning rate is the best of three by -log P on validation. The limits and `eta` are lower than the defaults,
# which are those of large models: no first token gets a probability of 0.25 here, so the temperature would stay at its
# lower limit.
METHODS = {
    "sft": {"name": "plain SFT", "loss_type": "lml", "learning_rate": 8e-3},
    "msl": {
        "name": "MSL",
        "loss_type": "msl",
        "learning_rate": 4e-3,
        "adaptive_tau": True,
        "eta": 0.1,
        "tau_min": 0.25,
        "tau_max": 1.5,
    },
}


def run_demo(out_dir: str | os.PathLike = "runs/demo", *, seed: int = 0, quick: bool = False) -> dict[str, float]:
    """
    Run the demo. A folder that an earlier demo wrote is overwritten; any other that is not empty is refused.

    Args:
        out_dir (`str`, *optional*, defaults to `"runs/demo"`): Folder of everything: `data`, one folder a method with
            its measure in `test` below it, and `report.md` with its figures.
        seed (`int`, *optional*, defaults to `0`): Seed of data, weights, dropout and the order of rows.
        quick (`bool`, *optional*, defaults to `False`): Very little of everything: a check that all of it runs.

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
    out = _claim_folder(Path(out_dir), seed, quick)

    console.rule("1. Data")
    catalog, splits = _make_data(out / "data", size, seed, console)
    test = select_rows(splits["test"], size.test_rows)

    console.rule("2. Two language models from the same random weights")
    controls = _make_controls(catalog, splits["train"], seed)
    trained = {folder: _train(out / folder, method, catalog, splits, size, seed) for folder, method in METHODS.items()}

    console.rule("3. The same test rows for all")
    results = _measure(out, controls, trained, test, splits["train"], console)
    console.print(_results_table(results))

    console.rule("4. Three users")
    _show_users(console, catalog, {folder: recommender for folder, (recommender, _) in trained.items()}, test)

    console.rule("5. Report")
    page = write_report([out / name for name in results], out, baseline=METHODS["sft"]["name"], title="The demo")
    console.print(f"Tables, paired tests and figures: {page}")
    console.print("Ask the model yourself, and turn the order around:", soft_wrap=True)
    console.print(f"  hf-rec recommend --model {out / 'msl'} --history {ASK_FOR}", soft_wrap=True, highlight=False)
    return {result["name"]: _metric(result, "ndcg@10")["mean"] for result in results.values()}


def _claim_folder(out: Path, seed: int, quick: bool) -> Path:
    """An empty folder: new, or that of an earlier demo with everything in it removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARKER).is_file():
            raise FileExistsError(f"`--out` {str(out)!r} exists and no demo wrote it. Choose another folder.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps({"seed": seed, "quick": quick}) + "\n", encoding="utf-8")
    return out


def _make_data(folder: Path, size: Size, seed: int, console: "Console") -> tuple["Catalog", "DatasetDict"]:
    from hf_rec.data.prepare import load_prepared, prepare

    card = prepare("demo", folder, num_users=size.num_users, seed=seed)
    catalog, splits, _ = load_prepared(folder)
    counts = card["catalog"]
    console.print(
        f"{counts['items']} films, {counts['duplicate_titles']} of them share a title with another, "
        f"{counts['html_escaped_titles']} titles were HTML-escaped, {counts['empty_titles']} is empty.\n"
        f"{card['interactions']['interactions']:,} events of {card['interactions']['users']:,} users. The last "
        "film of a user is for the test, the one before for validation.",
        highlight=False,
    )
    return catalog, splits


def _make_controls(catalog: "Catalog", train: "Dataset", seed: int) -> dict[str, tuple["Recommender", dict[str, Any]]]:
    """Folder -> recommender and what it took."""
    from hf_rec.data.sequences import distinct_labels
    from hf_rec.generation.controls import LastItemRecommender, PopularityRecommender

    makers = {
        "popularity": lambda: PopularityRecommender(catalog, train),
        "recent": lambda: PopularityRecommender(catalog, train, window=max(len(train) // 10, 1)),
        "last-item": lambda: LastItemRecommender(catalog, train),
    }
    made = {}
    for folder, make in makers.items():
        with measured_cost(training_rows=len(train), distinct_labels=distinct_labels(train), seed=seed) as cost:
            control = make()
        made[folder] = control, cost
    return made


def _train(
    folder: Path, method: dict[str, Any], catalog: "Catalog", splits: "DatasetDict", size: Size, seed: int
) -> tuple["Recommender", dict[str, Any]]:
    """Train one model and leave its folder ready for `hf-rec recommend`; returns it and what it took."""
    from transformers import PrinterCallback

    from hf_rec.data.prompts import Prompt
    from hf_rec.data.sequences import distinct_labels
    from hf_rec.models.from_scratch import new_tokenizer
    from hf_rec.trainers.msl_config import MSLConfig
    from hf_rec.trainers.msl_trainer import MSLTrainer

    tokenizer = new_tokenizer((catalog.text(row) for row in range(len(catalog))), size.vocab_size)
    options = {key: value for key, value in method.items() if key != "name"}
    args = MSLConfig(
        str(folder),
        **options,
        supervise="all",
        num_train_epochs=size.num_epochs,
        per_device_train_batch_size=size.batch_size,
        per_device_eval_batch_size=64,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        logging_steps=5,
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    trainer = MSLTrainer(
        _new_model(tokenizer, size, seed),
        args,
        train_dataset=splits["train"],
        eval_dataset=select_rows(splits["validation"], size.validation_rows),
        processing_class=tokenizer,
        catalog=catalog,
        prompt=Prompt(tokenizer, catalog, max_length=MAX_LENGTH),
        callbacks=[_progress_callback(method["name"])],
    )
    trainer.remove_callback(PrinterCallback)
    known = {"training_rows": len(splits["train"]), "distinct_labels": distinct_labels(splits["train"])}
    with measured_cost(**known, seed=seed) as cost:
        trainer.train()
    trainer.save_model()
    trainer.save_state()
    write_cost(str(folder), cost)
    return trainer.recommender(), cost


def _new_model(tokenizer, size: Size, seed: int):
    """A Llama with random weights, small enough for a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=3 * size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def _progress_callback(name: str):
    """One bar a training, with the loss, the temperature and the last validation beside it."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.shown = {}
            self.bar = tqdm(total=state.max_steps, desc=f"{name:>9}", unit="step", dynamic_ncols=True)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args, state, control, logs, **kwargs):
            names = {"loss": "loss", "tau": "tau", "eval_ndcg@10": "val NDCG@10"}
            self.shown |= {names[key]: f"{value:.3f}" for key, value in logs.items() if key in names}
            self.bar.set_postfix(self.shown)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Progress()


def _measure(
    out: Path, controls: dict, trained: dict, test: "Dataset", train: "Dataset", console: "Console"
) -> dict[str, dict[str, Any]]:
    """Folder -> what was measured; every recommender on the same rows, with popularity first."""
    from hf_rec.data.sequences import seen_items
    from hf_rec.evaluation import evaluate_recommender
    from hf_rec.hub import save_control

    for folder, (control, _) in controls.items():
        save_control(out / folder, control)
    names = CONTROL_NAMES | {folder: method["name"] for folder, method in METHODS.items()}
    results = {}
    for folder, (recommender, cost) in (controls | trained).items():
        console.print(names[folder])
        results[folder] = evaluate_recommender(
            recommender,
            test,
            out / folder / "test",
            split="test",
            split_rule="loo",
            seen="mask",
            name=names[folder],
            warm_items=seen_items(train),
            cost=cost,
        )
    return results


def _metric(result: dict[str, Any], name: str) -> dict[str, float]:
    return result["metrics"][f"{result['protocol']}/{name}"]


def _results_table(results: dict[str, dict[str, Any]]):
    from rich.table import Table

    first = next(iter(results.values()))
    title = f"{first['rows']:,} test rows, {first['items']} films, 95 % intervals over users"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("NDCG@10", "hit rate@10", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    best = max(results.values(), key=lambda result: _metric(result, "ndcg@10")["mean"])
    for result in results.values():
        values = [_metric(result, name) for name in ("ndcg@10", "hit_rate@10")]
        cells = [f"{value['mean']:.3f} [dim]{value['low']:.3f}–{value['high']:.3f}[/dim]" for value in values]
        cells.append(f"{result['cost']['seconds']:.0f} s")
        table.add_row(result["name"], *cells, style="bold" if result is best else None)
    return table


def _show_users(console: "Console", catalog: "Catalog", recommenders: dict, test: "Dataset") -> None:
    """What each model recommends to three users who are in the middle of a series, chosen by their history alone."""
    from rich.table import Table
    from rich.text import Text

    for row in _users_in_a_series(catalog, test):
        history, target = test[row][HISTORY], test[row][TARGET]
        ids = [catalog.ids[item] for item in history]
        watched = [catalog.text(item) for item in history[-5:]]
        console.print(Text("\nwatched  " + "\n         ".join(watched) + f"\nthen     {catalog.text(target)}"))
        table = Table("#", *(METHODS[name]["name"] for name in recommenders))
        lists = [recommender.recommend([ids], k=SHOWN_ITEMS, exclude=ids) for recommender in recommenders.values()]
        for place in range(SHOWN_ITEMS):
            titles = [found.item_ids[0][place : place + 1] for found in lists]
            cells = [Text(catalog.text(catalog.row(item[0])) if item else "") for item in titles]
            for cell, item in zip(cells, titles, strict=True):
                if item and catalog.row(item[0]) == target:
                    cell.stylize("bold green")
            table.add_row(str(place + 1), *cells)
        console.print(table)


def _users_in_a_series(catalog: "Catalog", test: "Dataset") -> list[int]:
    """First test rows whose last two films go up a series, go down one, and belong to none."""
    found = {}
    for row, history in enumerate(test[HISTORY]):
        before, last = (catalog.attributes[item] for item in history[-2:])
        if before.get("series", -1) == last.get("series", -2):
            kind = "up" if last["part"] > before["part"] else "down"
        else:
            kind = "none" if "series" not in last else "first part"
        found.setdefault(kind, row)
    return [found[kind] for kind in ("up", "down", "none") if kind in found]
