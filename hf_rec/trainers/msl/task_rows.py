"""Training rows of several tasks in one data set, in fixed shares."""

import numpy as np
from datasets import Dataset, Features, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_rec.columns import INPUT_IDS, LABELS, TASK
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.item_tasks import NEXT_ITEM, TASKS, TaskPrompt
from hf_rec.data.prompts.next_item import Prompt


logger = logging.get_logger(__name__)


def with_tasks(
    rows: Dataset,
    tasks: dict[str, float],
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    seed: int,
) -> Dataset:
    """
    Add the rows of other tasks to those of the next item, spread evenly over them.

    Args:
        rows (`datasets.Dataset`): Rows `{input_ids, labels}` of the next item.
        tasks (`dict[str, float]`): Rows of each task for every row of the next item, whose own share need not be 1.
        prompt ([`Prompt`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]), catalog ([`Catalog`]): What they
            were made with.
        seed (`int`): Decides which items are asked about: all of them once, then again, as far as the rows go.

    Returns:
        `datasets.Dataset`: Rows `{input_ids, labels, task}`.
    """
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"`tasks` are shares of the rows of `train_dataset`, which must be a `datasets.Dataset` whose rows can be "
            f"counted, got {type(rows).__name__}."
        )
    rows = rows.select_columns([INPUT_IDS, LABELS])
    parts = [rows.add_column(TASK, np.full(len(rows), NEXT_ITEM))]
    for task, name in enumerate(TASKS):
        share = tasks.get(name, 0) / tasks[TASKS[NEXT_ITEM]]
        if task != NEXT_ITEM and (count := round(share * len(rows))):
            items = _drawn_items(count, len(catalog), np.random.default_rng([seed, task]))
            asked = TaskPrompt(task, prompt, tokenizer, catalog)
            parts.append(_task_rows(task, items, asked, prompt.max_length, parts[0].features))
    counts = [len(part) for part in parts]
    named = ", ".join(
        f"{count:,} of {TASKS[part[0][TASK]]}" for count, part in zip(counts, parts, strict=True) if count
    )
    logger.warning(f"Training rows: {named}.")
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return concatenate_datasets(parts).select(np.argsort(places, kind="stable"))


def _drawn_items(count: int, num_items: int, rng: np.random.Generator) -> np.ndarray:
    """Catalog rows in random order, each as often as any other or once more."""
    return np.concatenate([rng.permutation(num_items) for _ in range(-(-count // num_items))])[:count]


def _task_rows(task: int, items: np.ndarray, prompt: TaskPrompt, max_length: int, features: Features) -> Dataset:
    encoded = [prompt.encode(item) for item in items.tolist()]
    longest = max(len(row[INPUT_IDS]) for row in encoded)
    if longest > max_length:
        raise ValueError(
            f"`max_length` is {max_length}, too few for {TASKS[task]}, which has a row of {longest} tokens. Raise it."
        )
    columns = {name: [row[name] for row in encoded] for name in (INPUT_IDS, LABELS)}
    return Dataset.from_dict(columns | {TASK: [task] * len(encoded)}, features=features)
