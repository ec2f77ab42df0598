"""
Train a small causal LM on the text of a catalog's items and on nothing else, to be frozen: it knows the words, no
user.

python recipes/new_lm.py --config recipes/configs/new_lm/ml-100k.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml recipes/item_text_lm.py \
    --config recipes/configs/item_text_lm/ml-100k.yaml

One item in twenty is held out; its loss selects the weights.
"""

from dataclasses import dataclass, field

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
from hf_rec.arguments import parse_arguments
from hf_rec.data.text_encoder import PlainTextEncoder
from hf_rec.data.user_prompts import attribute_text


@dataclass
class TextArguments:
    """Which text."""

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`; its catalog is used."})
    item_attributes: list[str] | None = field(default=None, metadata={"help": "Attributes that follow the title."})
    max_item_tokens: int = field(default=64, metadata={"help": "Most tokens of an item."})


def main(text_args: TextArguments, training_args: TrainingArguments, model_args: ModelConfig) -> None:
    # 1. The text of each item, as the item prompt has it
    catalog = Catalog.load(text_args.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    names = text_args.item_attributes or []
    texts = [f" {catalog.text(row)}{attribute_text(catalog.attributes[row], names)}\n" for row in range(len(catalog))]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = PlainTextEncoder(tokenizer).encode_batch(texts)
    items = Dataset.from_dict({"input_ids": [start + ids[: text_args.max_item_tokens] for ids in encoded]})
    held_out = set(range(0, len(items), 20))

    # 2. Train, keep the best
    set_seed(training_args.seed)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, dtype=model_args.dtype),
        args=training_args,
        train_dataset=items.select([row for row in range(len(items)) if row not in held_out]),
        eval_dataset=items.select(sorted(held_out)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    print(f"{training_args.output_dir}: {trainer.model.num_parameters():,} parameters, {trainer.evaluate()}")


if __name__ == "__main__":
    main(*parse_arguments((TextArguments, TrainingArguments, ModelConfig)))
