"""
Number the items of a prepared folder in the order in which its training rows name them: one more column of its
catalog, for `--item_path`. Numbers at random need no column: they are `--item_path digits`.

python recipes/item_numbers.py --config recipes/configs/item_numbers/beauty.yaml
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_rec.arguments import run_recipe
from hf_rec.data.item_numbers import add_number_column, numbers_in_training_order
from hf_rec.data.prepare import load_prepared
from hf_rec.item_codes.prepared_codes import check_place


@dataclass
class NumberArguments:
    """Whose items are numbered, and what the column is called."""

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`; its catalog gets the column."})
    column: str = field(default="number", metadata={"help": "Name of the column."})
    seed: int = field(default=0, metadata={"help": "Of the order of items that no training row names."})


def main(args: NumberArguments) -> None:
    catalog, splits, card = load_prepared(args.data_dir)
    check_place(catalog, args.column, args.data_dir, args.data_dir)
    numbers = numbers_in_training_order(splits["train"], len(catalog), args.seed)
    settings = {"order": "first place in the rows", "split": "train", "seed": args.seed}
    add_number_column(Path(args.data_dir), catalog, card, args.column, numbers, settings)
    print(f"{args.data_dir}: {len(catalog):,} items numbered in the column {args.column!r}")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
