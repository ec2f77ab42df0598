"""Damage to any file of a folder: the same result, or a refusal that names the file. Never another result."""

import shutil

import numpy as np
import pytest

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.hub import load_recommender, save_recommender


HISTORIES = [[100, 105], [111], []]
DAMAGES = {
    "deleted": None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)),
    "one byte": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
}


def make_full(folder, parts, tiny_lm):
    save_recommender(folder, **parts, model=tiny_lm(), tau=1.5)


def make_adapter(folder, parts, tiny_lm):
    from peft import LoraConfig, get_peft_model

    base = folder.parent / "base"
    tiny_lm("llama").save_pretrained(base)
    model = type(tiny_lm("llama")).from_pretrained(base, trust_remote_code=False)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    save_recommender(folder, **parts, model=get_peft_model(model, config).eval())


def make_sequence(folder, parts, tiny_lm):
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, num_attention_heads=1))
    save_recommender(folder, catalog=parts["catalog"], kind="sequence", scoring="exact", model=model)


@pytest.mark.parametrize("make", [make_full, make_adapter, make_sequence])
def test_a_damaged_file_is_named_and_gives_no_other_result(make, parts, tiny_lm, tmp_path):
    whole = tmp_path / "whole"
    make(whole, parts, tiny_lm)
    expected = load_recommender(whole, device="cpu").recommend(HISTORIES, k=5)
    checked = 0
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        for kind, damage in DAMAGES.items():
            folder = tmp_path / "damaged"
            shutil.copytree(whole, folder)
            (folder / path.name).unlink()
            if damage is not None:
                (folder / path.name).write_bytes(damage(path.read_bytes()))
            try:
                found = load_recommender(folder, device="cpu").recommend(HISTORIES, k=5)
            except (ValueError, OSError) as error:
                assert type(error) in (ValueError, FileNotFoundError), (path.name, kind, error)
                assert path.name in str(error), (path.name, kind, error)
                assert "\n" not in str(error), (path.name, kind, error)
            else:
                assert path.name == "README.md", (path.name, kind)
                assert found.item_ids == expected.item_ids
                np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
            checked += 1
            shutil.rmtree(folder)
    assert checked >= 25
