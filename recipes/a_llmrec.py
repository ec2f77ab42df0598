"""
A-LLMRec: bring item and text vectors into one space, then show the result to a frozen language model.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/a_llmrec.py \
    --config recipes/configs/a_llmrec/ml-100k_tiny.yaml

Stage 1 goes into `<output_dir>/aligned`, unless `aligned_model` names the folder of an earlier one. A run that was cut
off goes on from its last checkpoint, in whichever stage that is, with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import AutoConfig
from transformers.trainer import TRAINER_STATE_NAME
from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_rec import ALLMRecConfig, ALLMRecTrainer, MSLConfig, MSLTrainer
from hf_rec.arguments import DataArguments, loading_options, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import distinct_labels, seen_items
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


@dataclass
class AlignmentArguments:
    """Stage 1: which sequence model and texts, and how they are aligned; or the folder of a stage 1."""

    sequence_model: str | None = field(default=None, metadata={"help": "Folder of a trained sequence model."})
    aligned_model: str | None = field(default=None, metadata={"help": "Folder of a stage 1, in place of a new one."})
    text_source: Literal["tfidf", "sentence_transformers", "language_model", "file"] = field(
        default="tfidf", metadata={"help": "Where the text vectors of the items come from."}
    )
    text_model: str | None = field(default=None, metadata={"help": "Folder, Hub id or .npy file of `text_source`."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Columns of text; default: title."})
    matching_weight: float = field(default=1.0, metadata={"help": "Weight of the match of item and text."})
    alpha: float = field(default=0.5, metadata={"help": "Weight of the reconstruction of items."})
    beta: float = field(default=0.2, metadata={"help": "Weight of the reconstruction of texts."})
    alignment_epochs: float = field(default=10, metadata={"help": "Passes over the training rows."})
    alignment_batch_size: int = field(default=32, metadata={"help": "Rows of a batch in each process."})
    alignment_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of Adam."})
    num_candidates: list[int] = field(
        default_factory=list, metadata={"help": "Also rank among so many drawn items beside the target."}
    )

    def __post_init__(self) -> None:
        if (self.sequence_model is None) == (self.aligned_model is None):
            raise ValueError("Give one of `sequence_model`, for a new stage 1, and `aligned_model`, for a ready one.")


def align(args: AlignmentArguments, training_args: MSLConfig, catalog, train, validation) -> str:
    """Stage 1; returns its folder. One that a resumed run has finished is kept."""
    folder = f"{training_args.output_dir}/aligned"
    resume = training_args.resume_from_checkpoint
    if resume and (Path(folder) / TRAINER_STATE_NAME).is_file():
        return folder
    config = ALLMRecConfig(
        folder,
        text_source=args.text_source,
        text_model=args.text_model,
        text_columns=args.text_columns,
        matching_weight=args.matching_weight,
        alpha=args.alpha,
        beta=args.beta,
        num_train_epochs=args.alignment_epochs,
        per_device_train_batch_size=args.alignment_batch_size,
        learning_rate=args.alignment_learning_rate,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=100,
        seen=training_args.seen,
        use_cpu=training_args.use_cpu,
        seed=training_args.seed,
        resume_from_checkpoint="last" if resume else None,
    )
    trainer = ALLMRecTrainer(args.sequence_model, config, train, validation, catalog=catalog)
    train_and_save(trainer, training_rows=len(train), distinct_labels=distinct_labels(train, config.supervise))
    trainer.accelerator.wait_for_everyone()
    return folder


def main(
    data_args: DataArguments,
    training_args: MSLConfig,
    model_args: ModelConfig,
    alignment_args: AlignmentArguments,
) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. Stage 1, once it is sure that the language model can be read and is to be shown its result
    if training_args.collaborative != "joint":
        raise ValueError(f"`collaborative` must be 'joint' in A-LLMRec, got {training_args.collaborative!r}.")
    if not Path(model_args.model_name_or_path, "adapter_config.json").is_file():
        AutoConfig.from_pretrained(
            model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=False
        )
    aligned = alignment_args.aligned_model or align(alignment_args, training_args, catalog, train, validation)

    # 3. Stage 2: the language model reads the joint vector of each item, and the state of the user
    training_args.model_init_kwargs = loading_options(model_args, training_args.model_init_kwargs)
    trainer = MSLTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=train,
        eval_dataset=validation,
        catalog=catalog,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        sequence_model=aligned,
    )
    cost = train_and_save(trainer, training_rows=len(train), distinct_labels=trainer.distinct_labels)

    # 4. Rank the test rows, once
    if training_args.do_predict:
        with trainer.whole_weights():
            rank_test_rows(
                trainer.recommender(),
                select_rows(splits[data_args.test_split], data_args.max_test_samples),
                training_args.output_dir,
                split=data_args.test_split,
                split_rule=card["split"]["rule"],
                seen=training_args.seen,
                name=training_args.run_name or f"A-LLMRec {training_args.loss_type}",
                warm_items=seen_items(train),
                cost=cost,
                num_candidates=alignment_args.num_candidates,
            )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
