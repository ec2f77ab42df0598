"""`hf-rec export`: what other engines need of a language model."""

import argparse
from typing import Any


def add_export(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec export` to the parser of all commands."""
    parser = commands.add_parser(
        "export",
        help="the trie as flat arrays, or an adapter merged into its base",
        description="Write what other engines need of a language model: the item trie as flat arrays "
        "(docs/trie_csr.md), or whole weights in place of an adapter.",
        epilog="example: hf-rec export --trie --model runs/demo/msl --out runs/trie",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--trie", action="store_true", help="trie_csr.safetensors, items.jsonl and trie_csr.json")
    what.add_argument("--merged", action="store_true", help="a model folder whose adapter is merged into its base")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or repository of a language model")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder to write")
    parser.set_defaults(run=_export)
    return parser


def _export(args: argparse.Namespace) -> None:
    from hf_rec.hub.export import export_merged, export_trie

    if args.merged:
        export_merged(args.model, args.out)
        print(f"{args.out}: the merged model")
    else:
        content = export_trie(args.model, args.out)
        print(f"{args.out}: {content['items']:,} items, {content['leaves']:,} leaves, {content['nodes']:,} nodes")
