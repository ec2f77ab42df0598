"""The project's own promises: light imports, two commands, documents whose links and paths exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_rec


ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md", "hf_rec/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# `recipes/msl.py`, `docs/results/`, `accelerate_configs/cpu.yaml`: a path of the repository in backticks or a command
PATH = re.compile(r"(?<![\w/.-])((?:accelerate_configs|benchmarks|docs|hf_rec|recipes|tests)/[\w./-]*[\w/])")


def bash_blocks(text: str) -> list[str]:
    return [block.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_readme_begins_with_the_two_commands():
    assert bash_blocks((ROOT / "README.md").read_text())[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_of_documents_exist(document):
    text = document.read_text()
    targets = [target.split("#")[0] for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in targets if target and not (document.parent / target).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = [target.split("#")[0] for target in LINK.findall(page.read_text()) if "://" not in target]
        pages = {(page.parent / target).resolve() for target in targets if target.endswith(".md")}
        waiting.extend(pages - reached)
    assert set(DOCUMENTS) - reached <= {ROOT / "CHANGELOG.md"}


def test_every_room_of_the_package_stands_in_the_readme_and_for_contributors():
    rooms = {path.name for path in (ROOT / "hf_rec").iterdir() if (path / "__init__.py").is_file() or path.suffix}
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        named = set(re.findall(r"(?<![\w./])([\w.]+)(?=[/`\s])", text))
        assert rooms - {"__init__.py"} <= named, document


def test_every_method_has_a_page_settings_and_tests():
    methods = {path.name for path in (ROOT / "hf_rec" / "trainers").iterdir() if (path / "__init__.py").is_file()}
    listed = re.search(r"`docs/results`: ([^.]+)\.", (ROOT / "CONTRIBUTING.md").read_text())[1]
    assert methods == set(re.findall(r"`(\w+)`", listed))
    for method in methods:
        for place in ("recipes/configs/{}", "recipes/{}.py", "docs/methods/{}.md", "tests/trainers/{}"):
            assert (ROOT / place.format(method)).exists(), place.format(method)


def test_every_yaml_of_a_recipe_stands_in_the_readme_of_the_recipes():
    text = (ROOT / "recipes" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (`.*) \|$", text, re.MULTILINE)
    listed = {script: set(re.findall("`([^`]+)`", names)) for script, names in rows}
    configs = ROOT / "recipes" / "configs"
    assert listed == {path.name: {file.stem for file in path.glob("*.yaml")} for path in configs.iterdir()}


def test_every_make_target_of_the_documents_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for line in re.findall(r"^make ([a-z ]+)$", document.read_text(), re.MULTILINE):
            assert set(line.split()) <= targets


def test_importing_the_package_loads_no_torch_and_is_quick():
    code = (
        "import sys, time; start = time.perf_counter(); import hf_rec; took = time.perf_counter() - start; "
        "print(took, [m for m in ('torch', 'transformers', 'numpy', 'datasets') if m in sys.modules])"
    )
    took, modules = run_python(code).split(" ", 1)
    assert modules.strip() == "[]"
    assert float(took) < 0.3


def test_public_names_are_listed_and_unknown_ones_are_refused():
    assert set(hf_rec.__all__) == set(hf_rec._MODULES) <= set(dir(hf_rec))
    written = re.findall(r"^    from (\S+) import (\w+) as \2$", Path(hf_rec.__file__).read_text(), re.MULTILINE)
    assert {name: module for module, name in written} == hf_rec._MODULES, "type checkers see the same names"
    with pytest.raises(AttributeError, match="NoSuchName"):
        hf_rec.NoSuchName  # noqa: B018


@pytest.mark.slow
def test_public_names_load():
    assert run_python("import hf_rec; print(all(getattr(hf_rec, name) for name in hf_rec.__all__))").strip() == "True"


def test_constraints_name_exact_versions_of_every_dependency_but_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {re.split(r"[<>=\[]", item)[0].lower().replace("_", "-") for group in groups for item in group}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert wanted - {"hf-rec", "torch"} == pinned
    assert re.search(r"^TORCH \?= torch==\d", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_launch_config_starts_with_its_launch_line():
    configs = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
    for path in configs:
        assert path.read_text().startswith(f"# accelerate launch --config_file accelerate_configs/{path.name} ")


@pytest.mark.parametrize(
    ("name", "kind", "processes", "machines"),
    [
        ("cpu", "NO", 1, 1),
        ("cpu_2", "MULTI_GPU", 2, 1),
        ("single_gpu", "NO", 1, 1),
        ("multi_gpu", "MULTI_GPU", 8, 1),
        ("multi_node", "MULTI_GPU", 16, 2),
        ("zero2", "DEEPSPEED", 8, 1),
        ("zero3", "DEEPSPEED", 8, 1),
        ("zero3_offload", "DEEPSPEED", 8, 1),
    ],
)
def test_a_launch_config_is_one_that_accelerate_reads(name, kind, processes, machines):
    from accelerate.commands.config.config_args import load_config_from_file

    assert (ROOT / "accelerate_configs" / f"{name}.yaml").is_file()
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    found = (config.distributed_type, config.num_processes, config.num_machines)
    assert found == (kind, processes, machines)
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[4])
        device = "cpu" if name.endswith("offload") else "none"
        assert config.deepspeed_config["offload_param_device"] == device
        assert config.deepspeed_config["offload_optimizer_device"] == device


# What loads no model of its own, and knows no `trust_remote_code`
LOADS_NO_CODE = {"PeftConfig", "PeftModel"}


@pytest.mark.parametrize("folder", ["hf_rec", "recipes", "benchmarks", "tests"])
def test_every_load_says_that_no_code_of_a_folder_is_run(folder):
    loads = [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("from_pretrained", "from_config")
        if ast.unparse(node.func.value) not in LOADS_NO_CODE
    ]
    trusting = [
        place
        for place, call in loads
        if not any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in call.keywords)
    ]
    assert not trusting


def test_files_are_replaced_in_one_way():
    own = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "hf_rec").rglob("*.py"))
        if "os.replace(" in path.read_text() and path.name != "files.py"
    ]
    assert not own, "use hf_rec.files.replacing"
