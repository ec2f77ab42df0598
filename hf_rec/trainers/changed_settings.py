"""What differs between a run and the checkpoint that it would go on from."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_rec.hub.files import RECOMMENDER_FILE, read_index


# Trainer's arguments that decide which steps are taken; how long a run is, what it logs and what it saves do not
_OF_TRAINER = (
    "seed data_seed learning_rate lr_scheduler_type warmup_steps weight_decay optim adam_beta1 adam_beta2 "
    "adam_epsilon max_grad_norm train_sampling_strategy dataloader_drop_last"
).split()
# Arguments of our own that do not
_NEUTRAL = {
    *("dataset_num_proc", "early_stopping_patience", "eval_num_beams", "logging_nan_inf_filter", "model_init_kwargs"),
    *("packing", "precompute_ref_batch_size", "seen"),
    *("item_text_vectors", "teacher_lists"),  # paths: what lies there is compared by hash
}
_PARTS = ("catalog", "prompt", "trie")


def changed_settings(folder: str, args: TrainingArguments, trainer: Any) -> list[str]:
    """
    The settings of a run that are not those of a checkpoint, in words such as "`seed` (0 there, 1 here)".

    Args:
        folder (`str`): A whole checkpoint.
        args ([`~transformers.TrainingArguments`]): Of the run.
        trainer: Its `catalog`, `prompt` and `trie`, where it has them, are compared by hash, and so are the
            `artefacts` that it learns from.
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
    if Path(folder, RECOMMENDER_FILE).is_file():
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
