"""The flags that name a model and say how it is loaded, the same in every command."""

import argparse


def add_model_flags(parser: argparse.ArgumentParser):
    """Returns the group that names what to load, of which one flag must be given."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR_OR_ID", help="model folder, or repository on the Hub")
    parser.add_argument("--revision", help="revision of a repository on the Hub")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="e.g. bfloat16 (default: as saved)")
    return which
