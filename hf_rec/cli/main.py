"""
The command line: `hf-rec demo | prepare | index | recommend | evaluate | serve | catalog | export | fuse | ground |
rerank | diagnose | shuffle | report`. Training is `accelerate launch recipes/...`.

Each command imports what it needs when it runs, so that `hf-rec --help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import hf_rec
from hf_rec.cli.catalog import add_catalog
from hf_rec.cli.demo import add_demo
from hf_rec.cli.diagnose import add_diagnose
from hf_rec.cli.evaluate import add_evaluate
from hf_rec.cli.export import add_export
from hf_rec.cli.fuse import add_fuse
from hf_rec.cli.ground import add_ground
from hf_rec.cli.index import add_index
from hf_rec.cli.prepare import add_prepare
from hf_rec.cli.recommend import add_recommend
from hf_rec.cli.report import add_report
from hf_rec.cli.rerank import add_rerank
from hf_rec.cli.serve import add_serve
from hf_rec.cli.shuffle import add_shuffle
from hf_rec.processes import end_processes


COMMANDS = (
    add_demo,
    add_prepare,
    add_index,
    add_recommend,
    add_evaluate,
    add_serve,
    add_catalog,
    add_export,
    add_fuse,
    add_ground,
    add_rerank,
    add_diagnose,
    add_shuffle,
    add_report,
)
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv (sequence of `str`, *optional*): Words after `hf-rec`; those of the process where not given.

    Returns:
        `int`: Exit code: 0, 2 for input that cannot be used (one line says why), 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"hf-rec {args.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"hf-rec {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    end_processes()
    return 0


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the words of a command in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; making it imports no model code."""
    parser = OneLineParser(prog="hf-rec", description=(hf_rec.__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--version", action="version", version=f"hf_rec {hf_rec.__version__}")
    commands: Any = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in COMMANDS:
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
