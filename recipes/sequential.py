"""
Train a sequence model (SASRec, eSASRec, GRU4Rec, LRURec, FMLP-Rec, Caser, BERT4Rec) or a matrix factorisation on item
ids and rank the test rows.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sequential.py \
    --config recipes/configs/sequential/beauty_sasrec.yaml

A run that was cut off goes on from its last checkpoint with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field, fields

import torch
from transformers import AutoConfig, AutoModel, set_seed

from hf_rec.arguments import DataArguments, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import distinct_labels, seen_items
from hf_rec.models.sequence.base import SequenceModelConfig
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


MODEL_TYPES = sorted(config.model_type for config in SequenceModelConfig.__subclasses__())


@dataclass
class SequenceModelArguments:
    """Which model; what is not given has the default of its config class."""

    model_type: str = field(default="sasrec", metadata={"help": f"One of {', '.join(MODEL_TYPES)}."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the item vectors."})
    max_length: int | None = field(default=None, metadata={"help": "Newest events of a history that are read."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout probability."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads of SASRec, eSASRec, BERT4Rec."})
    residual: str | None = field(default=None, metadata={"help": "SASRec: 'input' or 'query'."})
    length_power: float | None = field(
        default=None, metadata={"help": "MF: a sum of factors is divided by this power of its length."}
    )

    def __post_init__(self):
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"`model_type` must be one of {', '.join(MODEL_TYPES)}, got {self.model_type!r}.")

    def config(self, num_items: int):
        """The model's config; an option that the model does not have is an error."""
        config_class = type(AutoConfig.for_model(self.model_type))
        options = {option.name: getattr(self, option.name) for option in fields(self)[1:]}
        options = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if not hasattr(config_class(), name):
                raise ValueError(f"`{name}` is no option of {self.model_type}: leave it out.")
        return config_class(num_items=num_items, **options)


def main(data_args: DataArguments, training_args: SequentialConfig, model_args: SequenceModelArguments) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. Model. Weight decay shrinks the filters that Caser does not use to denormal numbers, at which a CPU crawls.
    torch.set_flush_denormal(True)
    set_seed(training_args.seed)
    model = AutoModel.from_config(model_args.config(len(catalog)), trust_remote_code=False)

    # 3. Train
    trainer = SequentialTrainer(model, training_args, train, validation, catalog=catalog)
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
            name=training_args.run_name or f"{model_args.model_type} {training_args.loss_type}",
            warm_items=seen_items(train),
            cost=cost,
        )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
