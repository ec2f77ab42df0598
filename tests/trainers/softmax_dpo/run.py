"""
Three steps of SoftmaxDPOTrainer against a frozen adapter, on negatives from its own lists, for tests that start it on
several processes: `run.py OUT BATCH [ZERO_STAGE]`.
"""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from hf_rec import Catalog, SoftmaxDPOConfig, SoftmaxDPOTrainer
from hf_rec.columns import HISTORY, TARGET
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.processes import end_processes


FILMS = ["Alien", "Aliens", "Alien 3", "Solaris", "Solaris", "The Fly", "The Fly II", "Amélie", "Stalker", "Heat"]


def rows(count, seed):
    events = torch.randint(0, len(FILMS), (count, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict(
        {
            HISTORY: [event[: 1 + row % 4] for row, event in enumerate(events)],
            TARGET: [event[1 + row % 4] for row, event in enumerate(events)],
        }
    )


def policy(tokenizer):
    """A model with an adapter that is not the base model, the same in all processes."""
    torch.manual_seed(0)
    model = new_causal_lm(tokenizer, hidden_size=16, num_layers=1, num_heads=2, dropout=0.0, max_length=200)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return model


def main(folder: str, batch_size: int, zero_stage: int | None = None) -> None:
    tokenizer = new_tokenizer(FILMS, 300)
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(FILMS)])
    args = SoftmaxDPOConfig(
        folder,
        max_steps=3,
        negatives="own_lists",
        list_length=5,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=5e-2,
        lr_scheduler_type="constant",
        max_length=200,
        eval_num_beams=None,
        logging_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        max_grad_norm=0.0,
        use_cpu=True,
        disable_tqdm=True,
        deepspeed=None
        if zero_stage is None
        else {
            "zero_optimization": {"stage": zero_stage},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_allow_untested_optimizer": True,
        },
    )
    trainer = SoftmaxDPOTrainer(
        policy(tokenizer),
        args=args,
        train_dataset=rows(19, seed=0),
        eval_dataset=rows(7, seed=1).to_iterable_dataset(num_shards=3),
        processing_class=tokenizer,
        catalog=catalog,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "logs": [
                {name: entry[name] for name in ("loss", "rewards/margins", "rewards/chosen", "logps/chosen")}
                for entry in trainer.state.log_history
                if "loss" in entry
            ],
            "metrics": {
                name: metrics[f"eval_{name}"] for name in ("loss", "nll", "nll_warm", "ndcg@10", "rewards/chosen")
            },
        }
        with open(f"{folder}/result.json", "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
    end_processes()
