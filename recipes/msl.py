"""
Teach a causal LM to name the next item: masked softmax loss, or plain SFT with `--loss_type lml`.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/msl.py \
    --config recipes/configs/msl/books_tiny.yaml

A run that was cut off goes on from its last checkpoint with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field

from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_rec import MSLConfig, MSLTrainer
from hf_rec.arguments import DataArguments, loading_options, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import seen_items
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


@dataclass
class CollaborativeArguments:
    """A frozen sequence model, and rankings among few candidates as papers with one have them."""

    sequence_model: str | None = field(
        default=None, metadata={"help": "Folder of a trained sequence model, for `--collaborative`."}
    )
    num_candidates: list[int] = field(
        default_factory=list, metadata={"help": "Also rank among so many drawn items beside the target."}
    )


def main(
    data_args: DataArguments,
    training_args: MSLConfig,
    model_args: ModelConfig,
    collaborative_args: CollaborativeArguments,
) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. Train: a folder brings weights or adapter, tokenizer and, from a trainer of hf_rec, prompt and temperature
    training_args.model_init_kwargs = loading_options(model_args, training_args.model_init_kwargs)
    trainer = MSLTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=train,
        eval_dataset=validation,
        catalog=catalog,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        sequence_model=collaborative_args.sequence_model,
    )
    cost = train_and_save(trainer, training_rows=len(train), distinct_labels=trainer.distinct_labels)

    # 3. Rank the test rows, once
    if training_args.do_predict:
        with trainer.whole_weights():
            rank_test_rows(
                trainer.recommender(),
                select_rows(splits[data_args.test_split], data_args.max_test_samples),
                training_args.output_dir,
                split=data_args.test_split,
                split_rule=card["split"]["rule"],
                seen=training_args.seen,
                name=training_args.run_name or training_args.loss_type,
                warm_items=seen_items(train),
                cost=cost,
                num_candidates=collaborative_args.num_candidates,
            )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
