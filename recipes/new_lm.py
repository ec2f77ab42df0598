"""
Make a small language model with random weights, and a tokenizer from a catalog's texts, saved as any model folder is.

python recipes/new_lm.py --config recipes/configs/new_lm/books.yaml

`--architecture t5` makes an encoder-decoder model, such as that of TIGER, in place of a decoder. For a model of codes
or item ids give `--item_path` as to the trainer: its tokenizer then learns no words. The tokens of codes and items are
added where training begins.
"""

import sys
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_rec import Catalog
from hf_rec.arguments import run_recipe
from hf_rec.data.prompts.item_attributes import attribute_texts
from hf_rec.data.prompts.item_paths import resolve_separator
from hf_rec.data.prompts.path_forms import CODES, PathForms, is_text, item_codes, item_texts
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.models.language.from_scratch import new_causal_lm, new_seq2seq_lm, new_tokenizer


@dataclass
class NewLMArguments:
    """What the model is made of and where it goes."""

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`; its catalog's texts are used."})
    output_dir: str = field(metadata={"help": "Folder for the model and the tokenizer."})
    item_path: str = field(default="title", metadata={"help": "As in training: decides which texts are used."})
    history_path: str | None = field(default=None, metadata={"help": "As in training."})
    item_attributes: list[str] | None = field(default=None, metadata={"help": "As in training."})
    vocab_size: int = field(
        default=4000, metadata={"help": "Most tokens of the byte-level BPE; without texts there are 258."}
    )
    architecture: Literal["gpt2", "t5"] = field(
        default="gpt2", metadata={"help": "A decoder, or an encoder-decoder model."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width."})
    num_layers: int = field(default=4, metadata={"help": "Blocks; of T5, in the encoder and in the decoder."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout."})
    max_length: int | None = field(
        default=None, metadata={"help": "Positions of GPT-2, 512 if not given; T5 goes by distances."}
    )
    head_size: int | None = field(default=None, metadata={"help": "Width of a head of T5, 64 if not given."})
    feed_forward_size: int | None = field(
        default=None, metadata={"help": "Feed-forward width of T5, 1,024 if not given."}
    )
    whole_words: bool = field(
        default=False, metadata={"help": "Give T5 a vector for each item of the history, added to all its tokens."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})

    def __post_init__(self) -> None:
        of_t5 = ("head_size", "feed_forward_size", "whole_words")
        for name in of_t5 if self.architecture == "gpt2" else ("max_length",):
            if getattr(self, name):
                raise ValueError(f"`{name}` does nothing with `architecture` {self.architecture!r}. Leave it out.")


def main(args: NewLMArguments) -> None:
    catalog = Catalog.load(args.data_dir)
    forms = PathForms.parse(args.item_path, args.history_path, args.item_attributes)
    for form in forms.all:
        if form.startswith(CODES):
            item_codes(catalog, form.removeprefix(CODES))  # are there, and good: training adds their tokens
    texts = [*(item_texts(catalog, form) for form in forms.worded), attribute_texts(catalog, forms.attributes)]
    tokenizer = new_tokenizer(chain.from_iterable(texts), args.vocab_size)
    size = (args.hidden_size, args.num_layers, args.num_heads)
    model: PreTrainedModel
    if args.architecture == "gpt2":
        model = new_causal_lm(tokenizer, *size, args.dropout, args.max_length or 512, args.seed)
    else:
        widths = (args.head_size or 64, args.feed_forward_size or 1024)
        word_end = end_of_items(tokenizer, forms) if args.whole_words else None
        model = new_seq2seq_lm(tokenizer, *size, *widths, args.dropout, args.seed, word_end)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


def end_of_items(tokenizer: PreTrainedTokenizerFast, forms: PathForms) -> int:
    """The token that ends each item of a history."""
    if not is_text(forms.history[-1]):
        raise ValueError(
            f"`whole_words` needs items that end in a separator, and those of `item_path` {forms.answer!r} end in a "
            "code or an id. Use 'digits', 'title' or a text column, or leave it out."
        )
    return resolve_separator(tokenizer, PlainTextEncoder(tokenizer), "\n")[-1]


if __name__ == "__main__":
    sys.exit(run_recipe(main))
