"""`hf-rec diagnose`: what a model rests on."""

import argparse


CONTROLS = ("popularity", "last-item")


def add_diagnose(commands) -> argparse.ArgumentParser:
    """Add `hf-rec diagnose` to the parser of all commands."""
    parser = commands.add_parser(
        "diagnose",
        help="what a model rests on: order, history length, warm and cold, another domain",
        description="Does the model use the order of the history? Ranks a split with histories as they are and "
        "shuffled, and more; writes diagnostics.json and diagnostics.md.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR_OR_ID", help="model folder, or repository on the Hub")
    which.add_argument("--control", choices=CONTROLS, help="diagnose this control, made from the train split")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the two files")
    parser.add_argument("--split", default="test", help="split to rank (default: %(default)s)")
    parser.add_argument("--name", help="name in tables (default: that of the model folder or of the control)")
    parser.add_argument("--k", type=int, default=10, help="length of the lists (default: %(default)s)")
    parser.add_argument("--seen", choices=("keep", "mask"), default="keep", help="may items of the history be listed")
    parser.add_argument("--seed", type=int, default=0, help="seed of shuffled histories (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="rank this many rows, evenly spaced over the split")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[], metavar="N", help="rank with the newest N events alone"
    )
    parser.add_argument("--shuffled-model", metavar="DIR", help="the same method trained on data of `hf-rec shuffle`")
    parser.add_argument("--transfer", metavar="DIR", help="prepared data of another domain, for models that read text")
    parser.add_argument("--num-beams", type=int, help="width of the search (default: twice --k)")
    parser.add_argument("--batch-size", type=int, help="histories ranked at a time")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="e.g. bfloat16 (default: as saved)")
    parser.set_defaults(run=_diagnose)
    return parser


def _diagnose(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hf_rec.data.prepare import load_prepared
    from hf_rec.diagnostics.ranks import RankSettings
    from hf_rec.diagnostics.run import diagnose, to_markdown

    catalog, splits, card = load_prepared(args.data)
    rows = _rows(splits, args.split, args.limit)
    other = None
    if args.transfer is not None:
        other_catalog, other_splits, _ = load_prepared(args.transfer)
        other = other_catalog, other_splits["train"], _rows(other_splits, args.split, args.limit)
    if args.control:
        recommender = _control(args.control, catalog, splits["train"])
    else:
        recommender = _model(args.model, catalog, args)
    result = diagnose(
        recommender,
        rows,
        splits["train"],
        args.out,
        name=args.name or args.control or Path(args.model).name,
        split=args.split,
        split_rule=card["split"]["rule"],
        settings=RankSettings(args.k, args.seen, args.num_beams, args.batch_size),
        seed=args.seed,
        lengths=args.lengths,
        trained_on_shuffled=args.shuffled_model and _model(args.shuffled_model, catalog, args),
        other_domain=other,
    )
    print(to_markdown(result))


def _rows(splits, split: str, limit: int | None):
    if split not in splits:
        raise ValueError(f"`--split` must be one of {', '.join(splits)}, got {split!r}.")
    rows = splits[split]
    if limit is None:
        return rows
    if limit < 1:
        raise ValueError(f"`--limit` must be at least 1, got {limit}.")
    limit = min(limit, len(rows))
    return rows.select([row * len(rows) // limit for row in range(limit)])


def _model(folder: str, catalog, args: argparse.Namespace):
    from hf_rec.hub import load_recommender

    recommender = load_recommender(folder, device=args.device, dtype=args.dtype)
    if recommender.catalog.sha256 != catalog.sha256:
        raise ValueError(
            f"{folder} was made for another catalog ({len(recommender.catalog)} items) than `--data` {args.data} "
            f"({len(catalog)} items). Give the data that the model was trained on."
        )
    return recommender


def _control(name: str, catalog, train):
    from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender

    return (PopularityRecommender if name == "popularity" else LastItemRecommender)(catalog, train)
