"""
Make a small causal LM with random weights, and a tokenizer from a catalog's titles, saved as any model folder is.

python recipes/new_lm.py --config recipes/configs/new_lm/books.yaml
"""

import sys
from dataclasses import dataclass, field

from hf_rec import Catalog
from hf_rec.arguments import run_recipe
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer


@dataclass
class NewLMArguments:
    """What the model is made of and where it goes."""

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`; its catalog's titles are used."})
    output_dir: str = field(metadata={"help": "Folder for the model and the tokenizer."})
    vocab_size: int = field(default=4000, metadata={"help": "Most tokens of the byte-level BPE."})
    hidden_size: int = field(default=128, metadata={"help": "Width."})
    num_layers: int = field(default=4, metadata={"help": "Blocks."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout."})
    max_length: int = field(default=512, metadata={"help": "Positions."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})


def main(args: NewLMArguments) -> None:
    catalog = Catalog.load(args.data_dir)
    tokenizer = new_tokenizer((catalog.text(row) for row in range(len(catalog))), args.vocab_size)
    model = new_causal_lm(
        tokenizer, args.hidden_size, args.num_layers, args.num_heads, args.dropout, args.max_length, args.seed
    )
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
