"""Python in documents: what it imports and passes exists; some pages run as they stand, with a tiny model in place."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from hf_rec import MSLTrainer, SoftmaxDPOTrainer


ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.md")
    for page in ROOT.glob(pattern)
    if "```python" in page.read_text(encoding="utf-8")
)


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_lm, bpe_tokenizer):
    """A function that runs code in an empty folder where `Qwen/Qwen2.5-0.5B` is a folder with a tiny Llama."""
    tiny_lm("llama").save_pretrained(tmp_path / "Qwen/Qwen2.5-0.5B")
    bpe_tokenizer.save_pretrained(tmp_path / "Qwen/Qwen2.5-0.5B")
    monkeypatch.chdir(tmp_path)
    return lambda code: exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})


def test_the_page_of_msl_and_that_of_softmax_dpo_which_goes_on_from_it(run, capsys):
    (msl,) = snippets((ROOT / "docs/methods/msl.md").read_text(encoding="utf-8"))
    items, text, self_play, _ = snippets((ROOT / "docs/methods/softmax_dpo.md").read_text(encoding="utf-8"))
    for code in (msl, items, text, self_play):
        run(code)
    assert "[['film-" in capsys.readouterr().out
    (example,) = snippets(inspect.getdoc(SoftmaxDPOTrainer))
    run(example)


def test_the_page_of_item_paths(run, capsys):
    codes, by_hand = snippets((ROOT / "docs/methods/paths.md").read_text(encoding="utf-8"))
    run(codes)
    assert re.search(r"\[\['\w+', '\w+'\]\]", capsys.readouterr().out)
    model = "AutoModelForCausalLM.from_pretrained('Qwen/Qwen2.5-0.5B', trust_remote_code=False)"
    tokenizer = "AutoTokenizer.from_pretrained('Qwen/Qwen2.5-0.5B', trust_remote_code=False)"
    run(
        "from hf_rec import Catalog\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model, tokenizer = {model}, {tokenizer}\ncatalog = Catalog.load('runs/codes')\n{by_hand}"
        "assert prompt.largest_token < len(model.get_input_embeddings().weight)"
    )


def test_the_example_of_the_msl_trainer(run, capsys):
    (example,) = snippets(inspect.getdoc(MSLTrainer))
    run(example)
    assert re.search(r"\[\['(a1|s1)'\]\]", capsys.readouterr().out)


def check_calls(code, known):
    """Raises where code imports from hf_rec, or passes to what it imported, what does not exist."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hf_rec":
            module = importlib.import_module(node.module)
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            named = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
            inspect.signature(known[node.func.id]).bind_partial(*node.args, **named)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_of_a_page_imports_and_passes_what_exists(page):
    known = {}
    for code in snippets(page.read_text(encoding="utf-8")):
        check_calls(code, known)


@pytest.mark.parametrize(
    "code",
    [
        "from hf_rec import NoSuchTrainer",
        "from hf_rec import MSLConfig\nMSLConfig('runs/mine', no_such_argument=1)",
        "from hf_rec.no_such_room import Nothing",
        "from hf_rec import",
    ],
)
def test_python_that_could_not_run_is_found(code):
    with pytest.raises((AttributeError, ImportError, SyntaxError, TypeError)):
        check_calls(code, {})
