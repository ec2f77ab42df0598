"""The models of the demo: three language models from the same weights, two sequence models from the same weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.arguments import select_rows


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender
    from hf_rec.trainers.base_trainer import RecommenderTrainer

MAX_LENGTH = 256  # tokens of prompt and answer
CODES = "codes"  # column of the catalog
WRITES_CODES = "msl-codes"  # folder of the model that writes them


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    num_users: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_epochs: float
    batch_size: int
    sequence_epochs: int
    sequence_batch_size: int
    validation_rows: int
    test_rows: int


FULL = Size(3000, 1500, 64, 2, 6, 32, 40, 128, 500, 3000)
QUICK = Size(60, 320, 32, 1, 2, 16, 2, 32, 20, 20)

# Each learning rate is the best of three by -log P on validation; that of codes among 2e-3 (4.26 nats), 4e-3 (4.39)
# and 8e-3 (4.44). The limits and `eta` are lower than the defaults, which are those of large models: no first token
# gets a probability of 0.25 here, so the temperature would stay at its lower limit.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "sft": {"name": "plain SFT", "loss_type": "lml", "learning_rate": 8e-3},
    "msl": {
        "name": "MSL",
        "loss_type": "msl",
        "learning_rate": 4e-3,
        "adaptive_tau": True,
        "eta": 0.1,
        "tau_min": 0.25,
        "tau_max": 1.5,
    },
}
LANGUAGE_MODELS[WRITES_CODES] = LANGUAGE_MODELS["msl"] | {
    "name": "MSL, codes",
    "item_path": f"codes:{CODES}",
    "learning_rate": 2e-3,
}
SEQUENCE_MODELS: dict[str, dict[str, Any]] = {
    "sasrec-ce": {"name": "SASRec CE", "loss_type": "ce", "learning_rate": 3e-3},
    "sasrec-sce": {
        "name": "SASRec SCE",
        "loss_type": "sce",
        "num_negatives": 100,
        "num_negative_sets": 8,
        "learning_rate": 3e-3,
    },
}


def train_model(
    folder: Path, catalog: "Catalog", splits: "DatasetDict", size: Size, seed: int
) -> tuple["Recommender", dict[str, Any]]:
    """Train the model that `folder` is named after, leave it ready for `hf-rec recommend`; returns it and its cost."""
    from transformers import PrinterCallback

    from hf_rec.data.splits import distinct_labels
    from hf_rec.trainers.training_run import train_and_save

    make = _language_model_trainer if folder.name in LANGUAGE_MODELS else _sequence_model_trainer
    method = (LANGUAGE_MODELS | SEQUENCE_MODELS)[folder.name]
    options = {key: value for key, value in method.items() if key != "name"} | {
        "output_dir": str(folder),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "logging_steps": 5,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seed,
    }
    trainer = make(
        options,
        size,
        train_dataset=splits["train"],
        eval_dataset=select_rows(splits["validation"], size.validation_rows),
        catalog=catalog,
        callbacks=[_progress_callback(method["name"])],
    )
    trainer.remove_callback(PrinterCallback)
    known = {"training_rows": len(splits["train"]), "distinct_labels": distinct_labels(splits["train"])}
    cost = train_and_save(trainer, **known)
    return trainer.recommender(), cost


def _language_model_trainer(
    options: dict[str, Any], size: Size, *, catalog: "Catalog", **kwargs: Any
) -> "RecommenderTrainer":
    from hf_rec.models.language.from_scratch import new_tokenizer
    from hf_rec.trainers.msl.config import MSLConfig
    from hf_rec.trainers.msl.trainer import MSLTrainer

    tokenizer = new_tokenizer((catalog.text(row) for row in range(len(catalog))), size.vocab_size)
    args = MSLConfig(
        **options,
        supervise="all",
        max_length=MAX_LENGTH,
        num_train_epochs=size.num_epochs,
        per_device_train_batch_size=size.batch_size,
        per_device_eval_batch_size=64,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        metric_for_best_model="nll",
    )
    return MSLTrainer(
        _new_language_model(tokenizer, size, args.seed),
        args,
        processing_class=tokenizer,
        catalog=catalog,
        **kwargs,
    )


def _sequence_model_trainer(
    options: dict[str, Any], size: Size, *, catalog: "Catalog", **kwargs: Any
) -> "RecommenderTrainer":
    import torch

    from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
    from hf_rec.trainers.sequential.config import SequentialConfig
    from hf_rec.trainers.sequential.trainer import SequentialTrainer

    args = SequentialConfig(
        **options,
        num_train_epochs=size.sequence_epochs,
        per_device_train_batch_size=size.sequence_batch_size,
        seen="mask",  # as the test rows are ranked
    )
    torch.manual_seed(args.seed)
    config = SASRecConfig(num_items=len(catalog), hidden_size=size.hidden_size, num_hidden_layers=size.num_layers)
    return SequentialTrainer(SASRecModel(config), args, catalog=catalog, **kwargs)


def _new_language_model(tokenizer: "PreTrainedTokenizerBase", size: Size, seed: int) -> "PreTrainedModel":
    """A Llama with random weights, small enough for a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=3 * size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def _progress_callback(name: str) -> "TrainerCallback":
    """One bar a training, with the loss, the temperature and the last validation beside it."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.shown: dict[str, str] = {}
            self.bar = tqdm(total=state.max_steps, desc=f"{name:>10}", unit="step", dynamic_ncols=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            names = {"loss": "loss", "tau": "tau", "eval_ndcg@10": "val NDCG@10"}
            self.shown |= {names[key]: f"{value:.3f}" for key, value in logs.items() if key in names}
            self.bar.set_postfix(self.shown)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Progress()
