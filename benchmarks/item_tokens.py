"""
What collaborative tokens cost a training step: `MSLTrainer` with them over the same trainer with titles alone.

python benchmarks/item_tokens.py [--hidden_size 128 --layers 2 --rows 16 --events 21 --repeats 10 --ways titles state]

A step is forward and backward of a small GPT-2 on packed rows in which every event is a label, as in
`recipes/configs/msl/ml-100k_collaborative_tiny.yaml`, without the data loader. The sequence model is a SASRec of width
64 with two blocks. Titles are those of Books where HF_REC_DATA is set, else generated. The ways alternate in one
process: CPU seconds, and the median of the ratios within each round. Behind stands how many tokens its
rows have. States of rows that were read before are remembered; "new rows" forgets them before each step, as in a first
epoch.
"""

import argparse
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from trie_loss import item_titles

from hf_rec import Catalog, MSLConfig, MSLTrainer, SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer
from hf_rec.models.language.item_tokens import ItemTokens


NEW = "state, new rows"
WAYS = ("titles", "item", "state", NEW, "both", "both + user")


def make_trainer(args: argparse.Namespace, way: str, folder: str, catalog: Catalog, tokenizer) -> MSLTrainer:
    generator = torch.Generator().manual_seed(1)
    events = torch.randint(0, len(catalog), (args.rows, args.events), generator=generator).tolist()
    rows = Dataset.from_dict(
        {
            HISTORY: [row[:-1] for row in events],
            TARGET: [row[-1] for row in events],
            SUPERVISE_FROM: [1] * args.rows,
        }
    )
    collaborative = None if way == "titles" else way.split(",")[0].split()[0]
    config = MSLConfig(
        folder,
        collaborative=collaborative,
        user_token=way.endswith("user"),
        supervise="all",
        packing=True,
        max_length=args.length,
        use_cpu=True,
        report_to="none",
        logging_steps=1_000_000,
    )
    sequence_model = SASRecModel(SASRecConfig(num_items=len(catalog), hidden_size=64, max_length=50))
    return MSLTrainer(
        new_causal_lm(tokenizer, args.hidden_size, args.layers, 4, max_length=args.length),
        config,
        train_dataset=rows,
        processing_class=tokenizer,
        catalog=catalog,
        sequence_model=None if collaborative is None else sequence_model,
    )


def step(trainer: MSLTrainer, batch: dict[str, torch.Tensor], is_new: bool = False) -> float:
    trainer.model.train()
    if is_new:
        ItemTokens.of(trainer.model).knowledge._remembered.clear()
    start = time.process_time()
    trainer.compute_loss(trainer.model, batch).backward()
    seconds = time.process_time() - start
    trainer.model.zero_grad()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden_size", 128), ("layers", 2), ("rows", 16), ("events", 21), ("length", 320)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    titles = item_titles()
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(titles)])
    tokenizer = new_tokenizer(titles, 2000)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: make_trainer(args, way, folder, catalog, tokenizer) for way in args.ways}
    batches = {way: one.data_collator(list(one.train_dataset)) for way, one in trainers.items()}
    for way in args.ways:
        step(trainers[way], batches[way])  # warm up, and the probe of packed rows
    rounds = [[step(trainers[way], batches[way], way == NEW) for way in args.ways] for _ in range(args.repeats)]
    tokens = {way: sum(len(row["input_ids"]) for row in trainers[way].train_dataset) for way in args.ways}
    print(f"{len(titles)} items, {args.rows} rows of {args.events} events, {args.layers} layers of {args.hidden_size}")
    for place, way in enumerate(args.ways):
        seconds = statistics.median(one[place] for one in rounds)
        ratio = statistics.median(one[place] / one[0] for one in rounds)
        more = tokens[way] / tokens[args.ways[0]]
        print(f"{way:16} {1e3 * seconds:7.1f} ms a step, {ratio:.3f} of {args.ways[0]}; tokens {more:.3f}")


if __name__ == "__main__":
    main()
