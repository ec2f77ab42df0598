"""Every command that a document, a config or a recipe shows is one that the parsers take: files, flags and values."""

import argparse
import functools
import re
import runpy
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_rec.cli.main
from hf_rec.arguments import parse_arguments
from hf_rec.cli.main import build_parser


ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md") for path in ROOT.glob(pattern))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
LEFT_OUT = "..."  # stands for words that another line has
PROGRAM = re.compile(r"(?:.*/)?hf-rec|hf_rec\.cli|recipes/\w+\.py")


def commands_of(shell: str) -> Iterator[list[str]]:
    """The commands in lines of shell, from `hf-rec` or the recipe on; a `NAME="words"` is put where `$NAME` stands."""
    values: dict[str, str] = {}
    for line in shell.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda found: values.get(found[1], found[0]), line)
        if assigned := re.fullmatch(r'(\w+)="([^"]*)"', line.strip()):
            values[assigned[1]] = assigned[2]
            continue
        if not re.search(r"hf-rec |hf_rec\.cli |recipes/\w+\.py", line):
            continue
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if PROGRAM.fullmatch(word):
                yield words[place:]


def comments_of(config: Path) -> str:
    return "\n".join(re.sub("^# ?", "", line) for line in config.read_text().splitlines() if line.startswith("#"))


@functools.cache
def dataclasses_of(recipe: str) -> list[type]:
    """The dataclasses that a recipe's `main` takes."""
    hints = typing.get_type_hints(runpy.run_path(str(ROOT / recipe), run_name="recipe")["main"])
    return [hint for name, hint in hints.items() if name != "return"]


def commands_within(parser: typing.Any) -> dict[str, typing.Any]:
    """The parsers of a parser's commands."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def check_flags(words: list[str]) -> None:
    """Raises where words behind `hf-rec` name a command or a flag that does not exist; some may be left out."""
    parser = build_parser()
    while words and words[0] in commands_within(parser):
        parser, words = commands_within(parser)[words[0]], words[1:]
    assert parser.prog != "hf-rec" or not words or words[0].startswith("-"), f"no command {words[0]}"
    known = {flag for action in parser._actions for flag in action.option_strings}
    unknown = {word for word in words if word.startswith("--")} - known
    assert not unknown, f"no flag {sorted(unknown)} of {parser.prog}"


def check(command: list[str]) -> None:
    """Raises, or exits with a message, on a command that could not run."""
    program, *words = command
    if program.startswith("recipes/"):
        parse_arguments(dataclasses_of(program), words)
    elif LEFT_OUT in words:
        check_flags(words)
    else:
        build_parser().parse_args(words)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document_parse(document):
    text = document.read_text()
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for command in commands_of(block):
            check(command)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for words in re.findall(r"`hf-rec ([^`]+)`", text):  # in a sentence: a command and those flags that matter
        check_flags(shlex.split(words))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_commands_atop_a_config_parse(config):
    commands = list(commands_of(comments_of(config)))
    assert ["--config", str(config.relative_to(ROOT))] in [command[1:3] for command in commands]
    for command in commands:
        check(command)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_commands_atop_a_recipe_parse(recipe):
    commands = list(commands_of(recipe.read_text().split('"""')[1]))
    assert f"recipes/{recipe.name}" in [command[0] for command in commands]
    for command in commands:
        check(command)


def test_the_example_of_every_command_parses():
    for name, parser in commands_within(build_parser()).items():
        for example in re.findall(r"hf-rec .*", parser.epilog or "", re.DOTALL):
            for command in commands_of(re.sub(r"\s+", " ", example)):
                check(command)
                assert command[1] == name


def test_the_help_of_the_command_line_lists_every_command():
    listed = re.search(r"`hf-rec ([\w\s|]+)`", hf_rec.cli.main.__doc__)[1]
    assert re.split(r"\s*\|\s*", listed) == list(commands_within(build_parser()))


@pytest.mark.parametrize(
    "line",
    [
        "hf-rec nonesuch --model runs/mine",
        "hf-rec report --out runs/report --nonesuch",
        "hf-rec fuse ... --by-lengths --out runs/fused",
        "hf-rec catalog lose ... --model runs/mine",
        "python recipes/new_lm.py --config recipes/configs/new_lm/nonesuch.yaml",
        'L="python"\n$L recipes/new_lm.py --config recipes/configs/new_lm/books.yaml --nonesuch 1',
        "accelerate launch recipes/new_lm.py \\\n    --config recipes/configs/new_lm/books.yaml --hidden_size wide",
    ],
)
def test_a_command_that_could_not_run_is_found(line):
    (command,) = commands_of(line)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        check(command)
