"""
Three steps of LLMSRecTrainer on tiny films, for tests that start it on several processes: `run.py OUT BATCH`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch.distributed.fsdp import fully_shard

from hf_rec import Catalog
from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.prompts.retrieval import pad_prompts
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.processes import end_processes
from hf_rec.recommenders import prompt_vectors
from hf_rec.recommenders.prompt_vectors import PromptVectors
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
            "metrics": {name: metrics[name] for name in ("eval_loss", "eval_nll", "eval_ndcg@10", "eval_hit_rate@5")},
        }
    if trainer.accelerator.num_processes > 1:
        train_without_teacher(trainer, f"{folder}/ablation")
        error = sharded_error(trainer)
        if trainer.accelerator.is_main_process:
            result["sharded_error"] = error
    if trainer.accelerator.is_main_process:
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)


def train_without_teacher(trainer: LLMSRecTrainer, folder: str) -> None:
    """The ablation that leaves the teacher's head without a gradient, under checkpointing and DDP, from a stream."""
    args = LLMSRecConfig(
        folder,
        max_steps=2,
        per_device_train_batch_size=4,
        match_weight=0.0,
        uniformity_weight=0.0,
        gradient_checkpointing=True,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    stream = rows(11, seed=0).to_iterable_dataset(num_shards=3)
    LLMSRecTrainer(trainer.model, args, stream, catalog=trainer.catalog, prompt=trainer.prompt).train()


def sharded_error(trainer: LLMSRecTrainer) -> float:
    """Largest difference that FSDP makes to the vectors of items, and of users of which each process has others."""
    model = LLMSRecModel.from_frozen(trainer.model.config.language_model, trainer.model.config.sequence_model)
    torch.manual_seed(0)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.1)
    histories = [[0] * 9, *[[]] * 30] if trainer.accelerator.is_main_process else [[1]]
    users = pad_prompts([trainer.prompt.encode_user(history) for history in histories])
    users["prefix_ids"] = torch.tensor(trainer.prompt.user_prefix)
    with torch.no_grad():
        expected = model(user_inputs=users).user_vectors, PromptVectors(model, trainer.prompt).items()
    for layer in model.language_model.h:
        fully_shard(layer)
    fully_shard(model)
    prompt_vectors.CPU_TOKENS = 40  # several batches of items
    trainer.is_fsdp_enabled = True
    found = model(user_inputs=users).user_vectors, trainer._encode_items(model).vectors
    found[0].sum().backward()
    return max((one - other).abs().max().item() for one, other in zip(found, expected, strict=True))


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
