"""Who may import whom, read from the source: imports inside functions count, those under `TYPE_CHECKING` do not."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_rec"

# What a layer may import besides itself and LEAVES. losses, models, trie, metrics and data know none of each other.
LEAVES = {"columns", "fields", "files", "item_token_ids", "processes"}
BELOW_RECOMMENDERS = {"search", "models", "trie", "data"}
BELOW_HUB = {"recommenders", *BELOW_RECOMMENDERS}
BELOW_EVALUATION = {"hub", "metrics", *BELOW_HUB}
BELOW_TRAINERS = {"evaluation", "diagnostics", *BELOW_EVALUATION}
BELOW_COMMANDS = {"arguments", "item_codes", "losses", "report", "trainers", *BELOW_TRAINERS}
ALLOWED = {
    "columns": set(),
    "fields": set(),
    "files": set(),
    "item_token_ids": set(),
    "processes": set(),
    "arguments": {"trainers"},
    "losses": set(),
    "models": set(),
    "trie": set(),
    "metrics": set(),
    "data": set(),
    "item_codes": {"data"},
    "search": {"models", "trie"},
    "recommenders": BELOW_RECOMMENDERS,
    "hub": BELOW_HUB,
    "evaluation": BELOW_EVALUATION,
    "diagnostics": {"evaluation", *BELOW_EVALUATION},
    "trainers": {"item_codes", "losses", *BELOW_TRAINERS},
    "report": {"evaluation", "metrics"},
    "serving": {"hub", *BELOW_HUB},
    "demo": BELOW_COMMANDS,
    "cli": {"demo", "serving", *BELOW_COMMANDS},
    "__init__": {"data", "hub", "models", "recommenders", "search", "trainers", "trie"},
}
# A method of a recommender that reads or writes a folder: what a folder is, the layer above knows
UPWARD = {"recommenders/folders.py": {"hub"}}
METHODS = sorted(path.name for path in (PACKAGE / "trainers").iterdir() if (path / "__init__.py").is_file())
MODULES = sorted(PACKAGE.rglob("*.py"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported_modules(tree: ast.AST) -> set[str]:
    """Full names of every module that the code imports, those under `if TYPE_CHECKING:` apart."""
    names, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "hf_rec" else {node.module}
            )
        nodes.extend(ast.iter_child_nodes(node))
    return names


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_downward(path):
    layer = layer_of(path)
    assert layer in ALLOWED, f"{path.name} stands in no layer: add it to the table above"
    imported = {
        name.split(".")[1] for name in imported_modules(ast.parse(path.read_text())) if name.startswith("hf_rec.")
    }
    allowed = ALLOWED[layer] | UPWARD.get(str(path.relative_to(PACKAGE)), set())
    upward = imported - allowed - LEAVES - {layer}
    assert not upward, f"`{layer}` must not import {sorted(upward)}"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_imports_no_other_method(method):
    others = tuple(f"hf_rec.trainers.{other}" for other in METHODS if other != method)
    for path in (PACKAGE / "trainers" / method).rglob("*.py"):
        imported = imported_modules(ast.parse(path.read_text()))
        foreign = {name for name in imported if any(name == other or name.startswith(f"{other}.") for other in others)}
        assert not foreign, f"{path.name} imports {sorted(foreign)}: move what both need up into trainers/"


@pytest.mark.parametrize("layer", ["metrics", "report"])
def test_numbers_and_pictures_need_no_model(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        heavy = {"torch", "transformers", "peft", "trl"} & {
            name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()))
        }
        assert not heavy, f"{path.name} imports {sorted(heavy)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "losses").rglob("*.py")), ids=lambda path: path.name)
def test_losses_import_torch_alone(path):
    foreign = {name.split(".")[0] for name in imported_modules(ast.parse(path.read_text()))} - {"torch", "hf_rec"}
    assert foreign <= {"collections", "dataclasses", "functools", "math", "typing"}


def test_the_reader_of_imports_sees_functions_and_skips_type_checking():
    code = "import a.b\nif TYPE_CHECKING:\n    import c\ndef f():\n    from hf_rec import data\n    from e import g\n"
    assert imported_modules(ast.parse(code)) == {"a.b", "hf_rec.data", "e"}


def test_nothing_imports_a_recipe():
    for path in MODULES:
        assert not {name for name in imported_modules(ast.parse(path.read_text())) if name.split(".")[0] == "recipes"}
