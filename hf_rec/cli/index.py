"""`hf-rec index`: item vectors become codes, one more column of the catalog."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.cli.model_flags import refuse_flags


if TYPE_CHECKING:
    import numpy as np

    from hf_rec.data.catalog import Catalog


def add_index(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec index` to the parser of all commands."""
    parser = commands.add_parser(
        "index",
        help="semantic ids: item vectors -> codes in the catalog",
        description="Write prepared data whose catalog has one more column: a short list of codes for each item, by "
        "residual k-means over vectors of its text, or over vectors of your own.",
        epilog="example: hf-rec index --data prepared/mine --out prepared/mine_codes --text title brand",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write: new, empty, or --data itself, which is added to"
    )
    parser.add_argument("--column", default="codes", help="name of the column (default: %(default)s)")
    vectors = parser.add_argument_group("vectors (default: TF-IDF and SVD of the title)")
    vectors.add_argument(
        "--text", nargs="+", metavar="COLUMN", help="columns that the text is made of (default: title)"
    )
    which = vectors.add_mutually_exclusive_group()
    which.add_argument("--sentence-transformers", metavar="NAME", help="encode the text with this model")
    which.add_argument("--vectors", metavar="FILE_OR_COLUMN", help=".npy file, row i is item i; or a column of lists")
    which.add_argument("--sequence-model", metavar="DIR_OR_ID", help="item table of a trained sequence model")
    codes = parser.add_argument_group("codes")
    codes.add_argument("--levels", type=int, default=3, help="codes of a path (default: %(default)s)")
    codes.add_argument("--codes", type=int, default=256, help="codes of a level (default: %(default)s)")
    codes.add_argument("--balanced", action="store_true", help="no code of a level stands for more than items / codes")
    codes.add_argument(
        "--deduplicate", action="store_true", help="one more level, whose code tells the items of a path apart"
    )
    codes.add_argument(
        "--kmeans", choices=("sklearn", "faiss"), default="sklearn", help="whose k-means (default: %(default)s)"
    )
    codes.add_argument("--seed", type=int, default=0, help="of the SVD and of k-means (default: %(default)s)")
    parser.set_defaults(run=_index)
    return parser


def _index(args: argparse.Namespace) -> None:
    from hf_rec.data.item_numbers import numbers_in_hashed_order
    from hf_rec.data.prepare import load_prepared
    from hf_rec.item_codes.code_report import code_report, level_table, summary_lines
    from hf_rec.item_codes.prepared_codes import check_place, write_codes
    from hf_rec.item_codes.residual_kmeans import residual_kmeans, with_digit

    _check_flags(args)
    catalog, splits, card = load_prepared(args.data)
    check_place(catalog, args.column, args.data, args.out)
    vectors, settings = _vectors(args, catalog)
    start = time.perf_counter()

    def tell(level: int, error: float) -> None:
        print(f"level {level}: error {error:.4g}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    made = residual_kmeans(
        vectors,
        levels=args.levels,
        num_codes=args.codes,
        balanced=args.balanced,
        library=args.kmeans,
        seed=args.seed,
        progress=tell,
    )
    codes = with_digit(made.codes, numbers_in_hashed_order(catalog.ids)) if args.deduplicate else made.codes
    settings |= {"width": vectors.shape[1]}
    settings |= {
        name: getattr(args, name) for name in ("levels", "codes", "balanced", "deduplicate", "kmeans", "seed")
    }
    report = code_report(codes, made.errors)
    parts = {"column": args.column, "codes": codes, "settings": settings, "report": report}
    write_codes(args.out, catalog, splits, card, **parts, figure=_figure(codes, args.column))
    print(*summary_lines(report), level_table(report), sep="\n")
    print(f"{args.out}: column `{args.column}`; the report is {Path(args.out, f'codes_{args.column}.md')}")


def _check_flags(args: argparse.Namespace) -> None:
    from hf_rec.item_codes.clusters import check_library

    for name in ("levels", "codes"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    if not 0 <= args.seed < 2**31:
        raise ValueError(f"`--seed` must be from 0 to {2**31 - 1}, got {args.seed}.")
    for name in ("vectors", "sequence_model"):
        if getattr(args, name) is not None:
            refuse_flags(args, ["text"], f"with `--{name.replace('_', '-')}`, which reads no text")
    check_library(args.kmeans)


def _vectors(args: argparse.Namespace, catalog: "Catalog") -> tuple["np.ndarray", dict[str, Any]]:
    """Vectors of the items, and what the data card says of them."""
    from hf_rec.files import file_sha256
    from hf_rec.item_codes import item_vectors

    if args.sequence_model is not None:
        return _vectors_of_model(args.sequence_model, catalog)
    if args.vectors is not None and not args.vectors.endswith(".npy"):
        known: dict[str, Any] = {"vectors": f"column `{args.vectors}`", "events": "as that column was made"}
        return item_vectors.vectors_from_column(catalog, args.vectors), known
    if args.vectors is not None:
        vectors = item_vectors.vectors_from_file(args.vectors, len(catalog))
        known = {"vectors": f"file {Path(args.vectors).name}", "vectors_sha256": file_sha256(args.vectors)}
        return vectors, known | {"events": "as that file was made"}
    if args.text is None and catalog.titles is None:
        raise ValueError("The items have no titles. `--text` names the columns to read in their place.")
    columns = args.text or ["title"]
    texts = item_vectors.item_texts(catalog, columns)
    empty = texts.count("")
    known = {"items_without_text": empty, "events": "none: text alone"}
    if empty:
        print(f"items without text: {empty:,} of {len(catalog):,}; they have one vector")
    if args.sentence_transformers is not None:
        name = args.sentence_transformers
        name = Path(name).name if Path(name).is_absolute() else name
        vectors = item_vectors.sentence_vectors(texts, args.sentence_transformers)
        return vectors, {"vectors": f"{name} of {', '.join(columns)}"} | known
    return item_vectors.tfidf_vectors(texts, args.seed), {"vectors": f"TF-IDF + SVD of {', '.join(columns)}"} | known


def _vectors_of_model(name: str, catalog: "Catalog") -> tuple["np.ndarray", dict[str, Any]]:
    """The item table of a sequence model, each vector of length 1."""
    from hf_rec.hub import load_recommender
    from hf_rec.item_codes.item_vectors import checked_vectors, unit_length
    from hf_rec.models.weight_files import local_folder, weights_sha256
    from hf_rec.recommenders.sequence import SequenceRecommender

    recommender = load_recommender(name, device="cpu", dtype="float32")
    if not isinstance(recommender, SequenceRecommender):
        raise ValueError(f"`--sequence-model` {name} is a {type(recommender).__name__}. Name a sequence model.")
    if recommender.catalog.ids != catalog.ids:
        raise ValueError(
            f"`--sequence-model` {name} was made for other items than `--data` has, or for another order of them "
            f"({len(recommender.catalog):,} against {len(catalog):,}). Train it on this data."
        )
    table = recommender.model.item_vectors().detach().float().numpy()
    short = Path(name).name if Path(name).is_absolute() else name
    known = {"vectors": f"item table of the sequence model {short}"}
    known |= {"model_weights_sha256": weights_sha256(local_folder(name))}
    known |= {
        "events": "training events of that model, which must be of this train split: the paths are collaborative"
    }
    return unit_length(checked_vectors(table, len(catalog), name)), known


def _figure(codes: "np.ndarray", column: str) -> Any:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        print("no picture of the codes: matplotlib is not installed (`pip install hf_rec[report]`)")
        return None
    from hf_rec.report.code_tree import code_tree_figure

    return code_tree_figure(codes, column)
