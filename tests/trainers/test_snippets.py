"""The examples of the method pages and of the trainers run as they stand, on a tiny model under the name they use."""

import inspect
import re
from pathlib import Path

import pytest

from hf_rec import MSLTrainer, SoftmaxDPOTrainer


ROOT = Path(__file__).parents[2]


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
