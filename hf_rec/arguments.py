"""
The flags that all recipes share, and the one parser they use: YAML first, then the command line, both strict.
"""

import difflib
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.fields import fits, spell
from hf_rec.processes import end_processes


BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig


@dataclass
class DataArguments:
    """
    What a recipe reads. How a history becomes a prompt stands in the trainer's arguments.

    Parameters:
        data_dir (`str`):
            Folder written by `hf-rec prepare`: catalog, splits and data card.
        train_split, eval_split, test_split (`str`, *optional*, default to `"train"`, `"validation"`, `"test"`):
            Names of the splits to train on, to select by and to report.
        max_train_samples, max_eval_samples, max_test_samples (`int`, *optional*):
            Use this many rows of a split, evenly spaced over it; all rows where it is not given.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier run has left in `output_dir`; without it such a folder is refused.
    """

    data_dir: str = field(metadata={"help": "Folder written by `hf-rec prepare`."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split that selects the model."})
    test_split: str = field(default="test", metadata={"help": "Split to report."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows of the train split, evenly spaced."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Rows of the eval split, evenly spaced."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Rows of the test split, evenly spaced."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in `output_dir`."})

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Leave it out for no limit.")


def run_recipe(main: Callable[..., None], args: Sequence[str] | None = None) -> int:
    """
    Run the `main` of a recipe with what its command line says.

    Args:
        main (`Callable`): Takes one instance of each dataclass that its parameters are annotated with.
        args (sequence of `str`, *optional*): The command line; `sys.argv[1:]` where not given. `--debug` shows the
            traceback of an error.

    Returns:
        `int`: Exit code: 0, 2 for input that cannot be used (one line says why), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    dataclass_types = [hint for name, hint in typing.get_type_hints(main).items() if name != "return"]
    recipe = Path(sys.modules[main.__module__].__file__ or main.__module__).name
    try:
        parsed = parse_arguments(dataclass_types, [word for word in words if word != "--debug"])
        if _has_work(parsed):
            main(*parsed)
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        print(f"{recipe}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            f"{recipe}: interrupted. The same command with `--resume_from_checkpoint last` goes on from the last "
            "checkpoint.",
            file=sys.stderr,
        )
        return INTERRUPTED
    end_processes()
    return 0


def _has_work(parsed: Sequence[Any]) -> bool:
    """Whether the run of these arguments is still to be made; an earlier one in its folder is not replaced unasked."""
    overwrite = [args.overwrite for args in parsed if isinstance(args, DataArguments)]
    if not overwrite:
        return True
    from transformers import TrainingArguments

    from hf_rec.trainers.run_folder import claim_run_folder

    return all(claim_run_folder(args, overwrite[0]) for args in parsed if isinstance(args, TrainingArguments))


def parse_arguments(dataclass_types: Sequence[type], args: Sequence[str] | None = None) -> tuple:
    """
    Parse `--config FILE.yaml` and the command line into dataclasses; what stands on the command line wins.

    [`~trl.TrlParser`] does the parsing. Before it, every key of the YAML is held against the dataclass fields, since
    the parser takes a value of a wrong type as it is.

    Args:
        dataclass_types (sequence of `type`): E.g. `(DataArguments, MSLConfig, ModelConfig)`.
        args (sequence of `str`, *optional*): The command line; `sys.argv[1:]` where not given.

    Returns:
        `tuple`: One instance per dataclass, in the order given.

    Raises:
        `ValueError`: Names the file and each key that is unknown, is given twice or has a value of the wrong type.
    """
    from trl import TrlParser

    args = _split_equals(sys.argv[1:] if args is None else args)
    if "--config" in args:
        position = args.index("--config") + 1
        if position == len(args):
            raise ValueError("`--config` needs the path of a YAML file.")
        check_config(args[position], dataclass_types)
    parser = TrlParser(list(dataclass_types), allow_abbrev=False)
    _check_flags(args, [flag for action in parser._actions for flag in action.option_strings])

    def refuse(message: str) -> typing.NoReturn:  # argparse would print a hundred lines of usage first
        raise ValueError(f"{message}. `--help` lists all flags.")

    parser.error = refuse
    return parser.parse_args_and_config(args)


def _check_flags(args: Sequence[str], known: Sequence[str]) -> None:
    """Names flags that no argument has, each with the one it is near to."""
    problems = []
    for word in args:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in (*known, "--config"):
            close = difflib.get_close_matches(flag, known, n=1)
            problems.append(f"unknown flag `{flag}`" + (f", did you mean `{close[0]}`?" if close else ""))
    if problems:
        raise ValueError("; ".join(problems))


def check_config(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """
    Read a recipe's YAML file and hold every key and value against the fields of `dataclass_types`.

    Returns:
        `dict`: The file's content. An `env` mapping of environment variables may stand beside the fields.
    """
    config = _load_yaml(path)
    hints: dict[str, Any] = {}
    for dataclass_type in dataclass_types:
        annotations = typing.get_type_hints(dataclass_type)
        hints |= {item.name: annotations[item.name] for item in fields(dataclass_type) if item.init}
    problems = []
    for key, value in config.items():
        if key == "env":
            if not isinstance(value, dict):
                problems.append(f"`env` must be a mapping of environment variables, got {value!r}")
        elif key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            problems.append(f"unknown key `{key}`" + (f", did you mean `{close[0]}`?" if close else ""))
        elif not fits(value, hints[key], numbers_as_text=True):
            problems.append(f"`{key}` must be {spell(hints[key])}, got {value!r} ({type(value).__name__})")
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return config


def select_rows(dataset: "Dataset", limit: int | None) -> "Dataset":
    """`limit` rows of a `datasets.Dataset`, evenly spaced over it and in order; all rows where `limit` is `None`."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.select([row * len(dataset) // limit for row in range(limit)])


def loading_options(model_args: "ModelConfig", given: dict[str, Any] | None) -> dict[str, Any]:
    """The flags of [`~trl.ModelConfig`] that `from_pretrained` takes; an option that is `given` beside them wins."""
    return {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
    } | (given or {})


def _split_equals(args: Sequence[str]) -> list[str]:
    """`--config=FILE` as two words, the only form that TrlParser looks for."""
    words = []
    for word in args:
        words += ["--config", word.removeprefix("--config=")] if word.startswith("--config=") else [word]
    return words


def _load_yaml(path: str) -> dict[str, Any]:
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            twice = sorted({str(key) for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"{path}: key {', '.join(f'`{key}`' for key in twice)} is given twice.")
            return super().construct_mapping(node, deep=deep)

    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, Loader=UniqueKeyLoader)  # noqa: S506, a SafeLoader
    except OSError as error:
        raise ValueError(f"`--config` {path!r} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(config).__name__}.")
    return config
