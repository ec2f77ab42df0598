"""
SequentialTrainer on a tiny cycle in several settings, whose last batches are not full: `run.py OUT BATCH`.

Each setting trains for two epochs of 19 rows and leaves a folder with its losses, metrics and weights.
"""

import json
import sys

import torch
from datasets import Dataset

from hf_rec import (
    BERT4RecConfig,
    BERT4RecModel,
    GRU4RecConfig,
    GRU4RecModel,
    LLMCFConfig,
    LLMCFModel,
    LLMCFModelConfig,
    LLMCFTrainer,
    SASRecConfig,
    SASRecModel,
)
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET, USER_ID
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
            USER_ID: [str(row) for row in range(count)],
        }
    )


def trainer_of(folder, batch_size, train_rows, eval_rows, kind=(SASRecModel, SASRecConfig), **settings):
    examples = kind[0] is LLMCFModel
    args = (LLMCFConfig if examples else SequentialConfig)(
        folder,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=0.01,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **{"num_train_epochs": 2, "num_negatives": 5, "save_strategy": "no"} | settings,
    )
    torch.manual_seed(0)
    model_class, config_class = kind
    model = model_class(config_class(num_items=NUM_ITEMS, hidden_size=8, max_length=6, dropout=0.0))
    catalog = Catalog.from_records([{"item_id": item} for item in range(NUM_ITEMS)])
    return (LLMCFTrainer if examples else SequentialTrainer)(model, args, train_rows, eval_rows, catalog)


def run(folder, *arguments, **settings):
    trainer = trainer_of(folder, *arguments, **settings)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "losses": losses(trainer),
            "metrics": {name: metrics[name] for name in ("eval_loss", "eval_nll", "eval_ndcg@10", "eval_hit_rate@5")},
        }
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(folder: str, batch_size: int) -> None:
    both = rows(19, seed=0), rows(7, seed=1)
    run(f"{folder}/ce", batch_size, *both, loss_type="ce", dataloader_drop_last=True)
    run(f"{folder}/sce", batch_size // 2, *both, loss_type="sce", gradient_accumulation_steps=2)
    run(f"{folder}/masked", batch_size, *both, kind=(BERT4RecModel, BERT4RecConfig), loss_type="ce")
    run(f"{folder}/llm_cf", batch_size, *both, kind=(LLMCFModel, LLMCFModelConfig), loss_type="ce", robust_weight=0.1)
    streams = [part.to_iterable_dataset(num_shards=3) for part in both]
    kind = (GRU4RecModel, GRU4RecConfig)
    run(f"{folder}/stream", batch_size, *streams, kind=kind, loss_type="ce", samples="prefixes", max_steps=6)

    bce = {"loss_type": "bce", "share_negatives": False, "negative_pool": "unseen", "samples": "prefixes"}
    bce |= {"save_strategy": "steps", "save_steps": 13}
    whole = run(f"{folder}/bce", batch_size, *both, **bce)
    resumed = trainer_of(f"{folder}/resumed", batch_size, *both, **bce)
    resumed.train(resume_from_checkpoint=f"{folder}/bce/checkpoint-13")
    torch.testing.assert_close(losses(resumed), losses(whole), rtol=1e-6, atol=0.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    end_processes()
