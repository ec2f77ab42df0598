"""
Three steps of LLMSRecTrainer on tiny films, for tests that start it on several processes: `run.py OUT BATCH`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from hf_rec import Catalog
from hf_rec.columns import HISTORY, TARGET
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.processes import end_processes
from hf_rec.trainers.llm_srec.config import LLMSRecConfig
from hf_rec.trainers.llm_srec.trainer import LLMSRecTrainer


FILMS = ["Alien", "Aliens", "Alien 3", "Solaris", "Solaris", "The Fly", "The Fly II", "Amélie", "Stalker", "Heat"]


def rows(count, seed):
    events = torch.randint(0, len(FILMS), (count, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    histories = [event[: 1 + row % 4] for row, event in enumerate(events)]
    return Dataset.from_dict({HISTORY: histories, TARGET: [event[4] for event in events]})


def main(folder: str, batch_size: int) -> None:
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(FILMS)])
    frozen = Path(folder).parent / "frozen"
    args = LLMSRecConfig(
        folder,
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=0.1,
        optim="sgd",
        negatives="in_batch",
        num_negatives=4,
        match_form="infonce",
        vector_size=8,
        head_size=16,
        max_length=200,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = LLMSRecTrainer(
        str(frozen / "lm"),
        args,
        rows(24, seed=0),
        rows(7, seed=1),
        catalog=catalog,
        sequence_model=str(frozen / "teacher"),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: metrics[name] for name in ("eval_nll", "eval_ndcg@10", "eval_hit_rate@5")},
        }
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)


def write_frozen(folder: Path) -> None:
    """The two frozen models, once for all runs."""
    tokenizer = new_tokenizer(FILMS, 300)
    new_causal_lm(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=200).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    torch.manual_seed(0)
    SASRecModel(SASRecConfig(num_items=len(FILMS), hidden_size=8)).save_pretrained(folder / "teacher")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    end_processes()
