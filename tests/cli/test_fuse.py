"""`hf-rec fuse`: weights given or chosen on validation, one folder that the other commands take."""

import json

import pytest
import torch

from hf_rec import ItemTrie, Prompt, SASRecConfig, SASRecModel, load_recommender
from hf_rec.cli import main as cli
from hf_rec.data.prepare import load_prepared, prepare
from hf_rec.hub import save_control, save_recommender
from hf_rec.recommenders.controls import PopularityRecommender


def run(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bpe_tokenizer, tiny_lm):
    """Prepared data, a language model, a sequence model, and a control of another catalog."""
    root = tmp_path_factory.mktemp("fuse")
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
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=len(catalog), hidden_size=8, catalog_sha256=catalog.sha256))
    save_recommender(root / "sasrec", catalog=catalog, kind="sequence", scoring="exact", model=model)
    for folder, seconds in (("lm", 30.0), ("sasrec", 12.0)):
        (root / folder / "cost.json").write_text(json.dumps({"seconds": seconds, "seed": 0}))
    other = prepare("demo", root / "other", num_users=20, seed=1) and load_prepared(root / "other")[0]
    save_control(root / "control", PopularityRecommender(other, []))
    return root


def test_weights_by_flag_and_the_folder_in_other_commands(folders, tmp_path, capsys):
    out = tmp_path / "fused"
    parts = ("--model", folders / "lm", "--prior", folders / "sasrec")
    assert run("fuse", *parts, "--weights", 1, -0.2, "--out", out, "--device", "cpu") == 0
    assert load_recommender(out, device="cpu").weights.tolist() == [[1, -0.2]]
    assert json.loads((out / "cost.json").read_text()) == {"seconds": 42.0, "seed": 0}
    words = ("--data", folders / "data", "--limit", 5, "--out", out / "test", "--seen", "mask", "--num-beams", 30)
    assert run("evaluate", "--model", out, *words) == 0
    metrics = json.loads((out / "test" / "metrics.json").read_text())
    assert "full/search=beam30/seen=mask/split=loo/ndcg@10" in metrics["metrics"] and metrics["scoring"] == "valid"
    assert metrics["cost"]["seconds"] == 42 and metrics["name"] == "fused"
    assert run("recommend", "--model", out, "--history", "Star Harbour", "--k", 3) == 0
    assert "probability" not in capsys.readouterr().out


def test_weights_are_chosen_on_validation_and_kept(folders, tmp_path, capsys):
    out = tmp_path / "fused"
    parts = ("--model", folders / "lm", "--prior", folders / "sasrec", "--prior", "last-item")
    words = ("--fit", "ndcg@10", "--data", folders / "data", "--seen", "mask", "--limit", 12, "--by-length", 9)
    assert run("fuse", *parts, *words, "--out", out, "--device", "cpu") == 0
    fit = json.loads((out / "fusion.json").read_text())
    assert fit["split"] == "validation" and fit["rows"] == 12 and len(fit["grid"]) == 66
    assert fit["recommenders"] == ["lm", "sasrec", "last-item"]
    loaded = load_recommender(out, device="cpu")
    assert loaded.lengths == [0, 9] and loaded.weights.tolist() == [entry["weights"] for entry in fit["by_length"]]
    assert loaded.fit == {key: fit[key] for key in ("metric", "split", "seen", "rows")} | {
        "value": fit["best"]["value"]
    }
    assert (out / "fusion.png").read_bytes().startswith(b"\x89PNG")
    shown = " ".join(capsys.readouterr().out.split())
    assert "ndcg@10 on 12 rows of validation" in shown and "9 and more" in shown


FIT = ("--fit", "ndcg@10", "--data", "data")


@pytest.mark.parametrize(
    "words, message",
    [
        ((*FIT, "--split", "test"), "chosen on the test rows"),
        ((*FIT, "--split", "nights"), "`--split` must be one of"),
        (("--fit", "ndcg@10"), "`--data` is needed with `--fit`"),
        (("--fit", "recall@10", "--data", "data"), "`--fit` must be one of ndcg@k, hit_rate@k, mrr@k"),
        (("--fit", "ndcg@0", "--data", "data"), "`--fit` must be one of"),
        (("--weights", 1, 1, "--seen", "mask"), "`--seen` has no effect without `--fit`"),
        (("--weights", 1, 1, "--by-length"), "`--by-length` has no effect"),
        (("--weights", 1, 1, "--data", "data"), "`--data` has no effect"),
        ((*FIT, "--by-length", 9, 5), "must ascend"),
        ((*FIT, "--limit", 0), "`--limit` must be at least 1"),
        (("--weights", 0, 0), "must not all be 0"),
        (("--weights", 1), "`--weights` needs one weight for each of the 2 recommenders"),
        (("--weights", 1, "nan"), "finite"),
        (("--weights", 1, 1, 1, "--prior", "control"), "different catalogs"),
        ((*FIT, "--prior", "control"), "made for another catalog"),
        (("--weights", 1, 1, 1, "--prior", "popularity"), "`--data` is needed for the control popularity"),
    ],
)
def test_bad_input_is_one_message_and_no_folder(folders, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folders)
    code = run("fuse", "--model", "lm", "--prior", "sasrec", *words, "--out", tmp_path / "out", "--device", "cpu")
    error = capsys.readouterr().err
    assert code == cli.BAD_INPUT and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(folders, tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    code = run("fuse", "--model", folders / "lm", "--prior", folders / "sasrec", "--weights", 1, 1, "--out", tmp_path)
    assert code == cli.BAD_INPUT and "is not empty" in capsys.readouterr().err
