"""
Distil a sequence model's sense of order into a frozen language model that retrieves items (LLM-SRec).

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/llm_srec.py \
    --config recipes/configs/llm_srec/ml-100k_tiny.yaml

The sequence model is trained first, into `<output_dir>/sequence_model`, unless `sequence_model` names a folder. Both
frozen models are referred to, not copied: keep them where they are. A run that was cut off goes on from its last
checkpoint, in whichever of the two trainings that is, with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import AutoConfig, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_rec import LLMSRecConfig, LLMSRecTrainer, SASRecConfig, SASRecModel, SequentialConfig, SequentialTrainer
from hf_rec.arguments import DataArguments, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import distinct_labels, seen_items
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


@dataclass
class TeacherArguments:
    """A sequence model to learn from, or how to train a SASRec first. Defaults are those of the LLM-SRec paper."""

    sequence_model: str | None = field(default=None, metadata={"help": "Folder of a trained sequence model."})
    sequence_loss_type: str = field(
        default="bce", metadata={"help": "Loss of SASRec: bce as published; ce is stronger."}
    )
    sequence_negative_pool: str = field(
        default="unseen", metadata={"help": "Where negatives of sampled losses come from."}
    )
    sequence_hidden_size: int = field(default=64, metadata={"help": "Width of the item vectors."})
    sequence_max_length: int = field(default=128, metadata={"help": "Newest events of a history that are read."})
    sequence_dropout: float = field(default=0.1, metadata={"help": "Dropout."})
    sequence_residual: str = field(default="query", metadata={"help": "'query' as published, or 'input'."})
    sequence_epochs: float = field(default=200, metadata={"help": "Passes over the training rows."})
    sequence_batch_size: int = field(default=128, metadata={"help": "Rows of a batch, of all processes together."})
    sequence_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of Adam."})
    sequence_eval_epochs: int = field(default=10, metadata={"help": "Epochs from one evaluation to the next."})


def train_teacher(args: TeacherArguments, training_args: LLMSRecConfig, catalog, train, validation) -> str:
    """Train a SASRec, selected on validation, and return its folder; one that a resumed run has trained is kept."""
    folder = f"{training_args.output_dir}/sequence_model"
    resume = training_args.resume_from_checkpoint
    if resume and (Path(folder) / TRAINER_STATE_NAME).is_file():
        return folder
    processes = PartialState().num_processes
    batch_size = -(-args.sequence_batch_size // processes)
    steps = -(-len(train) // (batch_size * processes)) * args.sequence_eval_epochs
    sampled = args.sequence_loss_type != "ce"
    config = SequentialConfig(
        folder,
        loss_type=args.sequence_loss_type,
        share_negatives=not sampled,
        negative_pool=args.sequence_negative_pool if sampled else "all",
        num_train_epochs=args.sequence_epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=args.sequence_learning_rate,
        adam_beta2=0.98,
        seen=training_args.seen,
        eval_strategy="steps",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=1,
        load_best_model_at_end=True,
        early_stopping_patience=5,
        logging_steps=steps,
        use_cpu=training_args.use_cpu,
        seed=training_args.seed,
        resume_from_checkpoint="last" if resume else None,
    )
    set_seed(training_args.seed)
    model = SASRecModel(
        SASRecConfig(
            num_items=len(catalog),
            hidden_size=args.sequence_hidden_size,
            max_length=args.sequence_max_length,
            dropout=args.sequence_dropout,
            residual=args.sequence_residual,
        )
    )
    trainer = SequentialTrainer(model, config, train_dataset=train, eval_dataset=validation, catalog=catalog)
    labels = distinct_labels(train, config.supervise)
    train_and_save(trainer, training_rows=len(train), distinct_labels=labels)
    trainer.accelerator.wait_for_everyone()
    return folder


def main(
    data_args: DataArguments, training_args: LLMSRecConfig, model_args: ModelConfig, teacher_args: TeacherArguments
) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. The teacher, once it is sure that the language model can be read
    AutoConfig.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=False
    )
    teacher = teacher_args.sequence_model
    if teacher is None:
        teacher = train_teacher(teacher_args, training_args, catalog, train, validation)

    # 3. The student; how its language model is loaded is saved with it
    quantization = get_quantization_config(model_args)
    options = {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": quantization and quantization.to_dict(),
    }
    training_args.model_init_kwargs = {name: value for name, value in options.items() if value is not None}
    trainer = LLMSRecTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=train,
        eval_dataset=validation,
        catalog=catalog,
        sequence_model=teacher,
        peft_config=get_peft_config(model_args),
    )
    labels = distinct_labels(train, training_args.supervise)
    cost = train_and_save(trainer, training_rows=len(train), distinct_labels=labels)

    # 4. Rank the test rows, once
    if training_args.do_predict:
        rank_test_rows(
            trainer.recommender(),
            select_rows(splits[data_args.test_split], data_args.max_test_samples),
            training_args.output_dir,
            split=data_args.test_split,
            split_rule=card["split"]["rule"],
            seen=training_args.seen,
            name=training_args.run_name or "LLM-SRec",
            warm_items=seen_items(train),
            cost=cost,
        )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
