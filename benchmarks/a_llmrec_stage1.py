"""
Time of A-LLMRec's stage 1 on Amazon Beauty: TF-IDF of the titles, and ten epochs under the trainer's defaults.

HF_REC_DATA=... python benchmarks/a_llmrec_stage1.py [--epochs 10 --threads 1]

Claim: 12,101 items and 22,363 users take less than 2 minutes of CPU time. The sequence model is a SASRec of width 64
as it is drawn, since what it has learned costs nothing here.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read when the libraries are imported

    import torch
    from datasets import Dataset

    from hf_rec import ALLMRecConfig, ALLMRecTrainer, Catalog, SASRecConfig, SASRecModel

    torch.set_num_threads(args.threads)
    folder = Path(os.environ["HF_REC_DATA"])
    users = [list(map(int, line.split()[1:])) for line in (folder / "sequences/Beauty.txt").read_text().splitlines()]
    records = [json.loads(line) for line in (folder / "items/Beauty.jsonl").read_text().splitlines()]
    titles = {int(record["id"]): record.get("title") for record in records}
    ids = sorted({item for user in users for item in user})
    catalog = Catalog.from_records({"item_id": item, "title": titles.get(item)} for item in ids)
    rows = [catalog.rows(user[:-2]) for user in users]
    train = Dataset.from_dict({"history": [row[:-1] for row in rows], "target": [row[-1] for row in rows]})
    torch.manual_seed(0)
    sequence_model = SASRecModel(SASRecConfig(num_items=len(catalog)))
    with tempfile.TemporaryDirectory() as out:
        settings = ALLMRecConfig(
            out, num_train_epochs=args.epochs, save_strategy="no", disable_tqdm=True, logging_steps=1000, use_cpu=True
        )
        wall, cpu = time.perf_counter(), time.process_time()
        trainer = ALLMRecTrainer(sequence_model, settings, train, catalog=catalog)
        made = time.process_time() - cpu
        trainer.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    labels = trainer.train_dataset.num_labels
    print(
        f"{len(catalog):,} items, {len(train):,} rows, {labels:,} labels, {args.epochs} epochs, {args.threads} thread"
    )
    print(f"text vectors {made:.1f} CPU s, training {cpu - made:.1f} CPU s, wall clock {wall:.1f} s")
    if cpu > 120:
        raise SystemExit("The claim does not hold: 2 minutes of CPU time.")


if __name__ == "__main__":
    main()
