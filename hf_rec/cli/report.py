"""`hf-rec report`: tables and figures from measured runs."""

import argparse
from typing import Any

from hf_rec.cli.overwrite import add_overwrite_flag
from hf_rec.files import refuse_existing


def add_report(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec report` to the parser of all commands."""
    parser = commands.add_parser(
        "report",
        help="tables and figures from the files of measured and trained runs",
        description="Write report.md with tables, paired tests and figures; no model is loaded.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with metrics.json or trainer_state.json")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report, or a path that ends in .md")
    parser.add_argument("--baseline", help="name of the method that the others are compared with (default: the first)")
    parser.add_argument("--title", default="Report", help="heading (default: %(default)s)")
    add_overwrite_flag(parser, "the report that stands in --out")
    parser.set_defaults(run=_report)
    return parser


def _report(args: argparse.Namespace) -> None:
    from hf_rec.report import write_report
    from hf_rec.report.report import report_page

    refuse_existing(report_page(args.out), args.overwrite)
    print(write_report(args.runs, args.out, baseline=args.baseline, title=args.title))
