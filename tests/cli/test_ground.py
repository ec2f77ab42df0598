"""`hf-rec ground`: gamma given or chosen on validation, one folder that the other commands take."""

import json

import numpy as np
import pytest

from hf_rec import ItemTrie, Prompt, load_recommender
from hf_rec.cli import main as cli
from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.prepare import load_prepared, prepare
from hf_rec.evaluation.fit_gamma import GAMMAS, fit_gamma
from hf_rec.hub import save_control, save_recommender
from hf_rec.recommenders.controls import PopularityRecommender


def run(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bpe_tokenizer, tiny_lm):
    """Prepared data, a language model that writes, and a base model with a tokenizer."""
    root = tmp_path_factory.mktemp("ground")
    prepare("demo", root / "data", num_users=30, seed=0)
    catalog, _, _ = load_prepared(root / "data")
    prompt = Prompt(bpe_tokenizer, catalog, max_length=256)
    save_recommender(
        root / "lm",
        catalog=catalog,
        prompt=prompt,
        trie=ItemTrie.build(prompt.encode_items()),
        tokenizer=bpe_tokenizer,
        kind="language_model",
        model=tiny_lm(),
    )
    (root / "lm" / "cost.json").write_text(json.dumps({"seconds": 30.0, "seed": 0}))
    tiny_lm("llama", seed=1).save_pretrained(root / "base")
    bpe_tokenizer.save_pretrained(root / "base")
    return root


def test_gamma_is_chosen_on_validation_and_the_folder_is_measured(folders, tmp_path, capsys):
    out, data = tmp_path / "grounded", ("--data", folders / "data")
    words = ("--model", folders / "lm", "--base", folders / "base", "--num-beams", 1, "--device", "cpu")
    fit = (*data, "--fit", "ndcg@10", "--seen", "mask", "--limit", 12)
    assert run("ground", *words, "--weight", "popularity", *fit, "--out", out) == 0
    found = json.loads((out / "grounding.json").read_text())
    assert found["split"] == "validation" and found["rows"] == 12 and len(found["grid"]) == len(GAMMAS)
    assert (out / "grounding.png").read_bytes().startswith(b"\x89PNG")
    loaded = load_recommender(out, device="cpu")
    assert loaded.gamma == found["best"]["gamma"] and loaded.fit["value"] == found["best"]["value"]
    assert "ndcg@10 on 12 rows of validation" in capsys.readouterr().out
    assert run("evaluate", "--model", out, *data, "--limit", 5, "--out", out / "test") == 0
    metrics = json.loads((out / "test" / "metrics.json").read_text())
    assert "full/search=exact/seen=keep/split=loo/ndcg@10" in metrics["metrics"]
    assert metrics["cost"] == {"seconds": 30.0, "seed": 0}


def test_values_of_gamma_are_those_of_an_evaluation_at_it(folders, tmp_path):
    words = ("--model", folders / "lm", "--base", folders / "base", "--num-beams", 1, "--device", "cpu")
    weighted = ("--weight", "popularity", "--data", folders / "data", "--gamma", 3)
    assert run("ground", *words, *weighted, "--out", tmp_path / "grounded") == 0
    recommender = load_recommender(tmp_path / "grounded", device="cpu")
    rows = load_prepared(folders / "data")[1]["validation"].select(range(4))
    found = fit_gamma(recommender, rows, "ndcg@100", seen="mask")
    histories = [[recommender.catalog.ids[item] for item in row[HISTORY]] for row in rows]
    lists = recommender.recommend(histories, k=100, exclude=histories).item_ids
    targets = [recommender.catalog.ids[target] for target in rows[TARGET]]
    expected = [
        1 / np.log2(listed.index(target) + 2) if target in listed else 0.0
        for listed, target in zip(lists, targets, strict=True)
    ]
    assert sum(expected) > 0
    np.testing.assert_allclose(found.values[GAMMAS.index(3.0)], expected, atol=1e-12)


def test_without_a_weight(folders, tmp_path, capsys):
    words = ("--model", folders / "lm", "--base", folders / "lm", "--out", tmp_path / "grounded", "--device", "cpu")
    assert run("ground", *words) == 0
    assert load_recommender(tmp_path / "grounded", device="cpu").weight is None
    assert "texts of" in capsys.readouterr().out


def test_a_sequence_model_writes_no_text(folders, tmp_path, capsys):
    save_control(tmp_path / "control", PopularityRecommender(load_prepared(folders / "data")[0], []))
    words = ("--model", tmp_path / "control", "--base", folders / "base", "--device", "cpu")
    assert run("ground", *words, "--out", tmp_path / "out") == cli.BAD_INPUT
    assert "is a PopularityRecommender, which writes no text" in capsys.readouterr().err


FIT = ("--weight", "popularity", "--fit", "ndcg@10", "--data", "data")


@pytest.mark.parametrize(
    "words, message",
    [
        ((*FIT, "--split", "test"), "chosen on the test rows"),
        ((*FIT, "--split", "nights"), "`--split` must be one of"),
        (("--weight", "popularity", "--fit", "ndcg@10"), "`--data` is needed with `--fit`"),
        (("--weight", "lm"), "`--weight` needs `--fit ndcg@10`"),
        (("--weight", "lm", "--gamma", 1, "--seen", "mask"), "`--seen` has no effect without `--fit`"),
        (("--gamma", 1), "`--gamma` has no effect without `--weight`"),
        (("--fit", "ndcg@10", "--data", "data"), "`--fit`, `--data` have no effect without `--weight`"),
        (("--weight", "lm", "--gamma", 101), "from 0 to 100"),
        (("--num-beams", 0), "`--num-beams` must be at least 1"),
        (("--revision", "main"), "`--revision` has no effect for base"),
    ],
)
def test_bad_input_is_one_message_and_no_folder(folders, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folders)
    code = run("ground", "--model", "lm", "--base", "base", *words, "--out", tmp_path / "out", "--device", "cpu")
    error = capsys.readouterr().err
    assert code == cli.BAD_INPUT and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
