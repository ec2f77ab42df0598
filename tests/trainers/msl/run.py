"""
MSLTrainer on the tiny films in several settings, whose last batches are not full: `run.py OUT BATCH`.

Each setting trains for two epochs of 19 rows and leaves a folder with its losses, metrics and weights.
"""

import json
import sys

import torch
from datasets import Dataset

from hf_rec import Catalog, MSLConfig, MSLTrainer
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.models.language.from_scratch import new_causal_lm, new_seq2seq_lm, new_tokenizer
from hf_rec.processes import end_processes


FILMS = ["Alien", "Aliens", "Alien 3", "Solaris", "Solaris", "The Fly", "The Fly II", "Amélie", "Stalker", "Heat"]
TOKENIZER = new_tokenizer(FILMS, 300)


def rows(count, seed):
    events = torch.randint(0, len(FILMS), (count, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict(
        {
            HISTORY: [event[: 1 + row % 4] for row, event in enumerate(events)],
            TARGET: [event[1 + row % 4] for row, event in enumerate(events)],
            SUPERVISE_FROM: [1] * count,
        }
    )


def trainer_of(folder, batch_size, train_rows, eval_rows, has_encoder=False, **settings):
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(FILMS)])
    args = MSLConfig(
        folder,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=5e-3,
        supervise="last" if has_encoder else "all",
        max_length=200,
        logging_steps=1,
        max_grad_norm=0.0,
        use_cpu=True,
        disable_tqdm=True,
        **{"num_train_epochs": 2, "adaptive_tau": True, "save_strategy": "no"} | settings,
    )
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    if has_encoder:
        model = new_seq2seq_lm(TOKENIZER, head_size=8, feed_forward_size=32, **size)
    else:
        model = new_causal_lm(TOKENIZER, max_length=200, **size)
    return MSLTrainer(model, args, train_rows, eval_rows, processing_class=TOKENIZER, catalog=catalog)


def run(folder, *arguments, **settings):
    trainer = trainer_of(folder, *arguments, **settings)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "tau": trainer.tau,
            "losses": losses(trainer),
            "metrics": {name: metrics[name] for name in ("eval_loss", "eval_nll", "eval_ndcg@10", "eval_hit_rate@5")},
        }
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(folder: str, batch_size: int) -> None:
    train_rows, eval_rows = rows(19, seed=0), rows(7, seed=1)
    grouped = {"train_sampling_strategy": "group_by_length"}
    tokens = run(f"{folder}/grouped", batch_size, train_rows, eval_rows, **grouped).train_dataset
    run(
        f"{folder}/packed",
        batch_size // 2,
        train_rows,
        eval_rows,
        packing=True,
        **grouped,
        gradient_accumulation_steps=2,
        loss_type="lml",
        adaptive_tau=False,
    )
    run(f"{folder}/t5", batch_size, train_rows, eval_rows, has_encoder=True, **grouped)
    run(f"{folder}/dropped", batch_size, train_rows, eval_rows, dataloader_drop_last=True)
    stream = [part.to_iterable_dataset(num_shards=3) for part in (train_rows, eval_rows)]
    run(f"{folder}/stream", batch_size, *stream, max_steps=6)

    random = {"train_sampling_strategy": "random", "save_strategy": "steps", "save_steps": 4}
    whole = run(f"{folder}/tokens", batch_size, tokens, eval_rows, **random)
    resumed = trainer_of(f"{folder}/resumed", batch_size, tokens, eval_rows, **random)
    resumed.train(resume_from_checkpoint=f"{folder}/tokens/checkpoint-4")
    torch.testing.assert_close(losses(resumed), losses(whole), rtol=1e-6, atol=0.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    end_processes()
