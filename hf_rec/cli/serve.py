"""`hf-rec serve`: models behind HTTP."""

import argparse
import os
from pathlib import Path
from typing import Any

from hf_rec.cli.model_flags import DTYPES, check_device, refuse_flags


TOKEN_VARIABLE = "HF_REC_SERVE_TOKEN"
_EXTRA = ("fastapi", "uvicorn")
_LIMITS = {  # of ServeSettings
    "max_batch": (int, "N", "requests that a model answers at a time (default: 32)"),
    "batch_wait": (float, "SECONDS", "pause between requests that ends a batch (default: 0.002)"),
    "max_waiting": (int, "N", "requests that may wait for a model; further ones get 503 (default: 1024)"),
    "max_k": (int, "N", "longest list (default: 100)"),
    "max_history": (int, "N", "most events of a history, and most candidates to score (default: 1000)"),
    "max_body": (int, "BYTES", "largest request (default: 1048576)"),
    "read_timeout": (float, "SECONDS", "time for a client to send its request (default: 10)"),
    "answer_timeout": (float, "SECONDS", "time for an answer; then it is 504 (default: 30)"),
    "num_beams": (int, "N", "width of the search, at least k (default: twice k, at least 20)"),
}


def add_serve(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec serve` to the parser of all commands."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP, with a page to try models on",
        description="Serve models over HTTP: POST /recommend, /score and /path, GET /items, /models, /health, "
        "/metrics and /docs. Requests that come together are answered in one batch. SIGHUP reads the folders again, "
        "SIGTERM stops after the requests that have begun. Needs `pip install hf_rec[serve]`.",
        epilog="example: hf-rec serve --model runs/demo/msl --model sasrec=runs/demo/sasrec-ce --page",
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[NAME=]DIR_OR_ID",
        help="model folder, or repository on the Hub; may be given again (name: the last part of the path)",
    )
    parser.add_argument("--revision", help="revision of the repositories on the Hub (default: their main branch)")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as saved)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="serve a page for people at /")
    parser.add_argument(
        "--token-file", metavar="FILE", help=f"file with the token that clients must send (default: ${TOKEN_VARIABLE})"
    )
    limits = parser.add_argument_group("limits")
    for name, (kind, metavar, text) in _LIMITS.items():
        limits.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    parser.set_defaults(run=_serve)
    return parser


def _serve(args: argparse.Namespace) -> None:
    _check_extra()
    from transformers.utils import logging

    from hf_rec.serving.app import RecommenderServer
    from hf_rec.serving.served_model import ServedModel
    from hf_rec.serving.server import make_server, reload_on_hangup
    from hf_rec.serving.settings import ServeSettings

    given = {name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None}
    settings, token, sources = ServeSettings(**given), read_token(args.token_file), named_models(args.model)
    if all(Path(source).is_dir() for source in sources.values()):
        refuse_flags(args, ["revision"], "for folders here")
    if args.device is not None:
        check_device(args.device)
    logging.disable_progress_bar()
    models = [ServedModel(name, source, args.revision, args.device, args.dtype) for name, source in sources.items()]
    server = RecommenderServer(models, settings, token, args.page)
    for model in models:
        print(f"{model.name}: {model.source}, version {model.loaded.version}", flush=True)
    print(f"http://{args.host}:{args.port}{'/' if args.page else '/docs'}", flush=True)
    reload_on_hangup(server)
    make_server(server, args.host, args.port).run()


def named_models(words: list[str]) -> dict[str, str]:
    """Name -> folder or repository, of words such as `runs/demo/msl` and `msl=runs/demo/msl`."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).is_dir():
            name, source = Path(word).resolve().name if Path(word).is_dir() else word.rsplit("/", 1)[-1], word
        if not name or not source:
            raise ValueError(f"`--model` {word!r} must be a folder or a repository, or NAME=one.")
        if name in found:
            raise ValueError(f"`--model` {word!r}: {found[name]!r} is called {name!r}, too. Name them: NAME={source}.")
        found[name] = source
    return found


def read_token(path: str | None) -> str | None:
    """The token that clients must send: from a file or the environment, as a command line is seen by all users."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    token = Path(path).read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"`--token-file` {path} is empty. Write the token into it, or leave the flag out.")
    return token


def _check_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: `pip install hf_rec[serve]`.")
