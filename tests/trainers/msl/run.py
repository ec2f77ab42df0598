"""
Three steps of MSLTrainer on the tiny films, for tests that start it on several processes: `run.py OUT BATCH`.
"""

import json
import sys

import torch
from datasets import Dataset

from hf_rec import Catalog, MSLConfig, MSLTrainer
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.processes import end_processes


FILMS = ["Alien", "Aliens", "Alien 3", "Solaris", "Solaris", "The Fly", "The Fly II", "Amélie", "Stalker", "Heat"]


def rows(count, seed):
    events = torch.randint(0, len(FILMS), (count, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict(
        {
            HISTORY: [event[: 1 + row % 4] for row, event in enumerate(events)],
            TARGET: [event[1 + row % 4] for row, event in enumerate(events)],
            SUPERVISE_FROM: [1] * count,
        }
    )


def main(folder: str, batch_size: int) -> None:
    tokenizer = new_tokenizer(FILMS, 300)
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(FILMS)])
    args = MSLConfig(
        folder,
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=5e-3,
        adaptive_tau=True,
        supervise="all",
        max_length=200,
        logging_steps=1,
        save_strategy="no",
        max_grad_norm=0.0,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = new_causal_lm(tokenizer, hidden_size=16, num_layers=1, num_heads=2, dropout=0.0, max_length=200)
    trainer = MSLTrainer(model, args, rows(24, seed=0), rows(7, seed=1), processing_class=tokenizer, catalog=catalog)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "tau": trainer.tau,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: metrics[name] for name in ("eval_nll", "eval_ndcg@10", "eval_hit_rate@5")},
        }
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    end_processes()
