"""
Turn the LastFM files that S-DPO released into the csv form that `hf-rec prepare` reads.

python recipes/lastfm_csv.py --config recipes/configs/lastfm_csv/lastfm.yaml

The release has validation and test files, no training file, no users and no times. So the validation file is trained
on, its last tenth held out, each row is a user of its own, and its time is its number. The candidate lists of the
release tell the target (they were drawn with it as the seed) and give titles to the catalog only.
"""

import csv
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_rec.arguments import run_recipe


FILES = {"train.csv": "lastfm-val.json", "test.csv": "lastfm-test.json"}


@dataclass
class LastFMArguments:
    """Where the files are and where the csv goes."""

    path: str = field(metadata={"help": "Folder of the release, also looked for below $HF_REC_DATA."})
    output_dir: str = field(metadata={"help": "Folder for train.csv, test.csv and id2name4Rec.json."})


def main(args: LastFMArguments) -> None:
    folder = Path(args.path)
    if not folder.exists():
        folder = Path(os.environ.get("HF_REC_DATA", "."), args.path)
    rows = {name: json.loads((folder / source).read_text(encoding="utf-8")) for name, source in FILES.items()}
    titles = {
        title
        for part in rows.values()
        for row in part
        for title in (*row["historyList"].split("::"), *row["itemList"], row["trueSelection"])
    }
    number_of = {title: number for number, title in enumerate(sorted(titles))}
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    names = {str(number): title for title, number in number_of.items()}
    (out / "id2name4Rec.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    time = 0
    for name, part in rows.items():
        with open(out / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["user_id", "item_ids", "timestamp"])
            for row in part:
                events = [*row["historyList"].split("::"), row["trueSelection"]]
                writer.writerow([f"{name[:-4]}-{time}", [number_of[title] for title in events], time])
                time += 1
    held_out = len(rows["train.csv"]) - len(rows["train.csv"]) // 10
    print(f"{out}: {len(titles):,} titles; the last tenth of the training rows begins at {held_out}")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
