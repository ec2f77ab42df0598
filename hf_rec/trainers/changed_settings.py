"""What differs between a run and the checkpoint that it would go on from."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, SUPERVISE_FROM, TARGET, USER_ID
from hf_rec.data.item_batches import TrainingBatches
from hf_rec.hub.files import RECOMMENDER_FILE, read_index


# Trainer's arguments that decide which steps are taken; how long a run is, what it logs and what it saves do not
_OF_TRAINER = (
    "seed data_seed learning_rate lr_scheduler_type warmup_steps weight_decay optim adam_beta1 adam_beta2 "
    "adam_epsilon max_grad_norm train_sampling_strategy dataloader_drop_last"
).split()
# Arguments of our own that do not
_NEUTRAL = {
    *(
        "allow_changed",
        "dataset_num_proc",
        "early_stopping_patience",
        "eval_num_beams",
        "logging_nan_inf_filter",
        "model_init_kwargs",
    ),
    *("packing", "precompute_ref_batch_size", "seen"),
    *("permutations", "shared_prefix"),
    *("item_text_vectors", "teacher_lists"),  # paths: what lies there is compared by hash
}
ROWS_SHA256 = "rows_sha256"  # beside the arguments in `training_args.json`
_ROWS = 1000  # of the data set, evenly spaced, stand for all of it
_COLUMNS = (USER_ID, HISTORY, TARGET, SUPERVISE_FROM, INPUT_IDS, LABELS)
_PARTS = ("catalog", "prompt", "trie")


def changed_settings(folder: str, args: TrainingArguments, trainer: Any) -> list[str]:
    """
    The settings of a run that are not those of a checkpoint, in words such as "`seed` (0 there, 1 here)".

    Args:
        folder (`str`): A whole checkpoint.
        args ([`~transformers.TrainingArguments`]): Of the run.
        trainer: Its `catalog`, `prompt`, `trie` and training rows, where it has them, are compared by hash, and so
            are the `artefacts` that it learns from. `None` compares the arguments alone.
    """
    changed = []
    stored = Path(folder, "training_args.json")
    if stored.is_file():
        there = json.loads(stored.read_text(encoding="utf-8"))
        here = json.loads(args.to_json_string())
        common = {field.name for field in fields(TrainingArguments)}
        own = [field.name for field in fields(args) if field.name not in common | _NEUTRAL]
        changed = [
            f"`{name}` ({there[name]!r} there, {here[name]!r} here)"
            for name in (*_OF_TRAINER, *own)
            if name in there and there[name] != here.get(name)
        ]
        rows = [
            values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] for values in (there, here)
        ]
        if rows[0] != rows[1]:
            changed.append(f"rows of a step in each process ({rows[0]} there, {rows[1]} here)")
        rows_there, rows_here = there.get(ROWS_SHA256), rows_sha256(getattr(trainer, "train_dataset", None))
        if rows_there is not None and rows_here is not None and rows_there != rows_here:
            changed.append("the training rows")
    if trainer is not None and Path(folder, RECOMMENDER_FILE).is_file():
        index = read_index(folder)
        hashes, artefacts = index["hashes"], index["extra"].get("artefacts", {})
        here = getattr(trainer, "artefacts", {})
        changed += [f"`{name}`" for name in {**artefacts, **here} if artefacts.get(name) != here.get(name)]
        parts = {name: getattr(trainer, name, None) for name in _PARTS}
        changed += [
            f"the {name}"
            for name, part in parts.items()
            if part is not None and hashes.get(name) is not None and part.sha256 != hashes[name]
        ]
    return changed


def rows_sha256(dataset: Any) -> str | None:
    """
    A hash of what a training learns from: of all events of a sequence model, else of the number of rows and of up to
    1,000 of them, evenly spaced; `None` for a stream.
    """
    if isinstance(dataset, TrainingBatches):
        return dataset.sha256()
    if not isinstance(dataset, Dataset):
        return None
    known = [name for name in _COLUMNS if name in dataset.column_names]
    rows = dataset.select_columns(known or dataset.column_names)  # rows of tokens have other columns
    if len(rows) > _ROWS:
        rows = rows.select([row * len(rows) // _ROWS for row in range(_ROWS)])
    digest = hashlib.sha256(str(len(dataset)).encode())
    for row in rows.with_format(None):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
