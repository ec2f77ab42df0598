"""`hf-rec rerank`: a recommender and a re-ranker of its first places, as one folder."""

import argparse
from pathlib import Path
from typing import Any

from hf_rec.cli.fit_flags import check_new_folder
from hf_rec.cli.model_flags import DTYPES, check_catalog, check_device
from hf_rec.recommenders.control_list import CONTROLS, make_control


def add_rerank(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec rerank` to the parser of all commands."""
    parser = commands.add_parser(
        "rerank",
        help="one recommender of two: a retriever, and a language model that orders its first places",
        description="Put a retriever and a re-ranker (a folder of recipes/rerank.py) together. The result is a model "
        "folder: it recommends, is measured, fused and served as any other.",
        epilog="example: hf-rec rerank --retriever runs/ml-100k/sasrec --reranker runs/ml-100k/llamarec --n 20 "
        "--out runs/ml-100k/reranked",
    )
    parser.add_argument(
        "--retriever",
        required=True,
        metavar="DIR_OR_ID",
        help=f"lists the candidates: a model folder, or with --data one of {', '.join(CONTROLS)}",
    )
    parser.add_argument("--reranker", required=True, metavar="DIR_OR_ID", help="judges them")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of the re-ranked recommender")
    parser.add_argument(
        "--n", type=int, help="candidates that are put in order (default: as many as the re-ranker was trained with)"
    )
    parser.add_argument(
        "--permutations", type=int, help="orders of letters to average over (default: as the re-ranker was saved)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder written by `hf-rec prepare`, for a control")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as saved)")
    parser.set_defaults(run=_rerank)
    return parser


def _rerank(args: argparse.Namespace) -> None:
    from hf_rec.data.prepare import load_prepared
    from hf_rec.evaluation.cost import read_cost, summed_cost, write_cost
    from hf_rec.hub import load_recommender
    from hf_rec.recommenders.reranked import RerankedRecommender
    from hf_rec.recommenders.reranker import Reranker

    _check_flags(args)
    reranker = load_recommender(args.reranker, device=args.device, dtype=args.dtype)
    if not isinstance(reranker, Reranker):
        raise ValueError(
            f"`--reranker` {args.reranker} is a {type(reranker).__name__}. Give a folder that recipes/rerank.py wrote."
        )
    if args.permutations is not None:
        reranker.set_permutations(args.permutations)
    catalog = None
    if args.data is not None:
        catalog, splits, _ = load_prepared(args.data)
        check_catalog(reranker, args.reranker, catalog, args.data)
    if catalog is None:
        retriever = load_recommender(args.retriever, device=args.device, dtype=args.dtype)
    else:
        retriever = make_control(args.retriever, catalog, splits["train"])
    n = args.n
    if n is None:
        n = reranker.prompt.num_candidates if reranker.form == "letters" else 20
    RerankedRecommender(retriever, reranker, n).save(args.out)
    costs = [read_cost(folder) for folder in (args.retriever, args.reranker) if Path(folder).is_dir()]
    if all(costs):
        write_cost(args.out, summed_cost(costs))
    print(f"{args.out}: the first {n} of {args.retriever} in the order of {args.reranker}")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    check_new_folder(args.out)
    if args.data is None and args.retriever in CONTROLS and not Path(args.retriever).is_dir():
        raise ValueError(f"`--data` is needed for the control {args.retriever}.")
    if args.data is not None and (args.retriever not in CONTROLS or Path(args.retriever).is_dir()):
        raise ValueError("`--data` has no effect with a retriever from a folder. Leave it out.")
    if args.device is not None:
        check_device(args.device)
