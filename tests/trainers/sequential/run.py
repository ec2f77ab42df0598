"""Three steps of SequentialTrainer on a tiny cycle for each of three losses: `run.py OUT BATCH`."""

import json
import sys

import torch
from datasets import Dataset

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.processes import end_processes
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer


NUM_ITEMS = 20


def rows(count, seed):
    """Walks over a cycle of the items: after item i comes item i + 1."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, NUM_ITEMS, (count,), generator=generator).tolist()
    events = [[(start + step) % NUM_ITEMS for step in range(3 + row % 4)] for row, start in enumerate(starts)]
    return Dataset.from_dict(
        {
            HISTORY: [walk[:-1] for walk in events],
            TARGET: [walk[-1] for walk in events],
            SUPERVISE_FROM: [1] * count,
        }
    )


def run(folder: str, batch_size: int, loss_type: str) -> None:
    args = SequentialConfig(
        folder,
        loss_type=loss_type,
        num_negatives=5,
        share_negatives=loss_type != "bce",
        negative_pool="unseen" if loss_type == "bce" else "all",
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=0.01,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_length=6, dropout=0.0))
    catalog = Catalog.from_records([{"item_id": item} for item in range(NUM_ITEMS)])
    trainer = SequentialTrainer(model, args, rows(24, seed=0), rows(7, seed=1), catalog)
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


if __name__ == "__main__":
    for loss in ("ce", "sce", "bce"):
        run(f"{sys.argv[1]}/{loss}", int(sys.argv[2]), loss)
    end_processes()
