"""
Train LLM-CF: SASRec that reads rows of other users, found by their history, beside its own; and rank the test rows.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/llm_cf.py \
    --config recipes/configs/llm_cf/ml-100k_tiny.yaml

A run that was cut off goes on from its last checkpoint with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field

from transformers import set_seed

from hf_rec.arguments import DataArguments, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import distinct_labels, seen_items
from hf_rec.models.sequence.llm_cf import LLMCFModel, LLMCFModelConfig
from hf_rec.trainers.sequential.example_rows import texts_file
from hf_rec.trainers.sequential.llm_cf import LLMCFTrainer
from hf_rec.trainers.sequential.llm_cf_config import LLMCFConfig
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


TEXT = "example_text"  # column that the lines of `--texts` become


@dataclass
class LLMCFArguments:
    """The model, and the texts of the training rows."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the item vectors."})
    max_length: int = field(default=50, metadata={"help": "Newest events of a history that are read."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout probability."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of SASRec."})
    num_attention_heads: int = field(default=1, metadata={"help": "Heads of SASRec."})
    num_examples: int = field(default=4, metadata={"help": "Examples of a history."})
    example_length: int = field(default=20, metadata={"help": "Newest events of each example."})
    num_decoder_layers: int = field(default=1, metadata={"help": "Layers of the decoder that reads examples."})
    feature_weight: float = field(default=0.1, metadata={"help": "Weight of what it makes of them."})
    texts: str | None = field(
        default=None, metadata={"help": "File with a text about each training row, one JSON string a line."}
    )

    def config(self, num_items: int) -> LLMCFModelConfig:
        options = {name: value for name, value in vars(self).items() if name != "texts"}
        return LLMCFModelConfig(num_items=num_items, **options)


def main(data_args: DataArguments, training_args: LLMCFConfig, model_args: LLMCFArguments) -> None:
    # 1. Items, users, and what is said about them
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = splits[data_args.train_split]
    if model_args.texts is not None:
        if training_args.example_text_column is not None:
            raise ValueError("Give `--texts` or `--example_text_column`, not both.")
        train = train.add_column(TEXT, texts_file(model_args.texts, len(train)))
        training_args.example_text_column = TEXT
    train = select_rows(train, data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. Model
    set_seed(training_args.seed)
    model = LLMCFModel(model_args.config(len(catalog)))

    # 3. Find the examples of all rows, and train
    trainer = LLMCFTrainer(model, training_args, train, validation, catalog=catalog)
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
            name=training_args.run_name or f"LLM-CF {training_args.loss_type}",
            warm_items=seen_items(train),
            cost=cost,
        )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
