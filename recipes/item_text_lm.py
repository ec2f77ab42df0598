"""
Train a small causal LM on the text of a catalog's items and on nothing else, to be frozen: it knows the words, no
user.

python recipes/new_lm.py --config recipes/configs/new_lm/ml-100k.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml recipes/item_text_lm.py \
    --config recipes/configs/item_text_lm/ml-100k.yaml

Each row is filled from a few random items, drawn again and again: the model learns every position that a prompt will
use and to look back at what it has read, as any pretrained language model does, and nothing about which item follows
which. (Were each item there once, it would learn that what came before never helps, and no longer look.) One item in
twenty is held out; the loss of these selects the weights. A run that was cut off goes on with
`--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig

from hf_rec import Catalog
from hf_rec.arguments import run_recipe
from hf_rec.data.prompts.item_attributes import attribute_text
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.models.loading import load_weights
from hf_rec.trainers.checkpoints import checkpoint_to_resume


@dataclass
class TextArguments:
    """Which text."""

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`; its catalog is used."})
    item_attributes: list[str] | None = field(default=None, metadata={"help": "Attributes that follow the title."})
    max_item_tokens: int = field(default=64, metadata={"help": "Most tokens of an item."})
    items_per_row: int = field(default=6, metadata={"help": "Items that a row is filled from."})
    num_orders: int = field(default=20, metadata={"help": "Random orders of the items; each is a pass over them."})

    def __post_init__(self):
        for name in ("max_item_tokens", "items_per_row", "num_orders"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


def packed(
    items: list[list[int]], start: list[int], length: int, items_per_row: int, num_orders: int, seed: int
) -> Dataset:
    """Rows of at most `length` tokens, each filled from the next items of a random order."""
    rows = []
    for order in range(num_orders):
        random = np.random.default_rng((seed, order))
        places = random.permutation(len(items))
        for first in range(0, len(items), items_per_row):
            row, drawn = start, []
            while len(row) + len(drawn) <= length:
                row, drawn = row + drawn, items[random.choice(places[first : first + items_per_row])]
            rows.append(row)
    return Dataset.from_dict({"input_ids": rows})


def main(text_args: TextArguments, training_args: TrainingArguments, model_args: ModelConfig) -> None:
    # 1. The text of each item, as the item prompt has it
    catalog = Catalog.load(text_args.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, trust_remote_code=False)
    names = text_args.item_attributes or []
    texts = [f" {catalog.text(row)}{attribute_text(catalog.attributes[row], names)}\n" for row in range(len(catalog))]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = [ids[: text_args.max_item_tokens] for ids in PlainTextEncoder(tokenizer).encode_batch(texts)]

    # 2. Train, keep the best
    set_seed(training_args.seed)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = load_weights(AutoModelForCausalLM, model_args.model_name_or_path, dtype=model_args.dtype)
    length = model.config.max_position_embeddings
    if len(start) + text_args.max_item_tokens > length:
        raise ValueError(
            f"`max_item_tokens` is {text_args.max_item_tokens}, but the model has {length} positions. Lower it."
        )
    training = [item for row, item in enumerate(encoded) if row % 20]
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=packed(
            training, start, length, text_args.items_per_row, text_args.num_orders, training_args.seed
        ),
        eval_dataset=packed(encoded[::20], start, length, text_args.items_per_row, 1, training_args.seed),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_state()
    print(f"{training_args.output_dir}: {trainer.model.num_parameters():,} parameters, {trainer.evaluate()}")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
