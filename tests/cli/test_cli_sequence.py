"""The commands on a sequence model and a data set that has ids and nothing else."""

import json

import pytest
import torch

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.cli import main as cli
from hf_rec.data.prepare import load_prepared
from hf_rec.hub import save_recommender


def run(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sequence")
    lines = [" ".join(map(str, [user, *(1 + (user + step) % 15 for step in range(6))])) for user in range(1, 31)]
    (root / "walks.txt").write_text("\n".join(lines) + "\n")
    assert run("prepare", "--source", "sequence-text", "--path", root / "walks.txt", "--out", root / "data") == 0
    catalog, _, _ = load_prepared(root / "data")
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=len(catalog), hidden_size=8, catalog_sha256=catalog.sha256))
    save_recommender(root / "model", catalog=catalog, kind="sequence", scoring="exact", model=model)
    return root


def test_recommend_lists_ids_and_has_no_column_of_titles(folders, capsys):
    assert run("recommend", "--model", folders / "model", "--history", 1, 15, "--k", 3, "--exclude-history") == 0
    out = " ".join(capsys.readouterr().out.split())  # the head of the table is wrapped
    assert "After item 1 → item 15" in out and "Certified" in out and "title" not in out
    assert run("recommend", "--model", folders / "model", "--history", 1, "--k", 20, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["items"]) == 15 and {item["title"] for item in found["items"]} == {None}


def test_an_unknown_id_is_one_message(folders, capsys):
    assert run("recommend", "--model", folders / "model", "--history", 1, 99) == cli.BAD_INPUT
    assert "'99' is neither an id nor a title of the 15 items" in capsys.readouterr().err


@pytest.mark.parametrize("seen", ["keep", "mask"])
def test_evaluate_ranks_all_items_exactly(folders, capsys, tmp_path, seen):
    out = tmp_path / "out"
    assert run("evaluate", "--model", folders / "model", "--data", folders / "data", "--out", out, "--seen", seen) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"] == 30 and f"full/search=exact/seen={seen}/split=loo/ndcg@10" in metrics["metrics"]
    assert "100.0 % of the lists certified" in capsys.readouterr().out


def test_a_model_of_another_catalog_is_refused(folders, capsys, tmp_path):
    (tmp_path / "walks.txt").write_text("\n".join(f"{user} 1 2 3 4" for user in range(1, 9)) + "\n")
    run("prepare", "--source", "sequence-text", "--path", tmp_path / "walks.txt", "--out", tmp_path / "data")
    words = ("--model", folders / "model", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert run("evaluate", *words) == cli.BAD_INPUT
    assert "was made for another catalog (15 items)" in capsys.readouterr().err
