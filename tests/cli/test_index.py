"""`hf-rec index` writes codes into prepared data, and says what they rest on."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.cli import main as cli
from hf_rec.data.catalog import Catalog
from hf_rec.data.prepare import load_prepared
from hf_rec.hub import save_recommender


WORDS = ("red", "blue", "green", "pen", "chair", "lamp")
TABLE = ("codes_codes.json", "codes_codes.md", "codes_codes.png")


def run(*words) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    lines = [" ".join(map(str, [user, *((user + step) % 30 for step in range(6))])) for user in range(31, 61)]
    (root / "walks.txt").write_text("\n".join(lines) + "\n")
    items = [
        {"id": row, "title": f"{WORDS[row % 3]} {WORDS[3 + row % 2]} number {row}", "kind": WORDS[row % 3]}
        for row in range(30)
    ]
    items[7]["title"] = ""
    (root / "items.json").write_text(json.dumps(items))
    words = ("--path", root / "walks.txt", "--items", root / "items.json", "--items-id-column", "id")
    assert run("prepare", "--source", "sequence-text", *words, "--out", root / "data") == 0
    return root / "data"


def test_a_new_folder_has_the_codes_beside_what_was_there(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("index", "--data", data, "--out", out, "--levels", 2, "--codes", 4) == 0
    printed = capsys.readouterr()
    assert "items without text: 1 of 30" in printed.out and "| level | codes used |" in printed.out
    assert "level 2: error" in printed.err
    before, after = load_prepared(data), load_prepared(out)
    codes = [item["codes"] for item in after[0].attributes]
    assert {len(path) for path in codes} == {2} and all(0 <= code < 4 for path in codes for code in path)
    expected = [item | {"codes": path} for item, path in zip(before[0].attributes, codes, strict=True)]
    assert after[0].attributes == expected
    assert (before[0].sha256, before[2]["sha256"]) == (after[0].sha256, after[2]["sha256"])
    assert all((out / name).is_file() for name in TABLE)
    assert after[2]["codes"]["codes"]["events"] == "none: text alone"
    assert "## Codes `codes`" in (out / "README.md").read_text()
    report = json.loads((out / TABLE[0]).read_text())["report"]
    assert report["items"] == 30 and report["paths"] == len({tuple(path) for path in codes})

    again = tmp_path / "again"
    assert run("index", "--data", data, "--out", again, "--levels", 2, "--codes", 4) == 0
    assert (again / "catalog.jsonl").read_bytes() == (out / "catalog.jsonl").read_bytes()


def test_the_folder_itself_gets_one_more_column_and_no_other_is_overwritten(data, tmp_path, capsys):
    out, vectors = tmp_path / "out", tmp_path / "v.npy"
    np.save(vectors, np.arange(60).reshape(30, 2))
    words = ("--levels", 1, "--codes", 3, "--vectors", vectors)
    assert run("index", "--data", data, "--out", out, *words) == 0
    more = ("--column", "even", "--balanced", "--deduplicate")
    assert run("index", "--data", out, "--out", out, *words, *more) == 0
    catalog, splits, card = load_prepared(out)
    even = np.array([item["even"] for item in catalog.attributes])
    assert np.bincount(even[:, 0]).tolist() == [10, 10, 10] and len(np.unique(even, axis=0)) == 30
    assert list(card["codes"]) == ["codes", "even"] and len(splits["test"]) == 30
    assert card["codes"]["even"]["events"] == "as that file was made"
    capsys.readouterr()
    assert run("index", "--data", out, "--out", out, *words) == cli.BAD_INPUT
    assert "`column` 'codes' stands in the catalog" in capsys.readouterr().err
    assert run("index", "--data", data, "--out", out, "--column", "third", *words) == cli.BAD_INPUT
    assert "exists and is not empty" in capsys.readouterr().err
    assert "third" not in Catalog.load(out).attributes[0]


def test_the_digit_of_an_item_does_not_tell_its_row(data, tmp_path):
    vectors = tmp_path / "v.npy"
    np.save(vectors, np.zeros((30, 1)))  # one path
    words = ("--vectors", vectors, "--levels", 1, "--codes", 1, "--deduplicate")
    assert run("index", "--data", data, "--out", tmp_path / "out", *words) == 0
    catalog = Catalog.load(tmp_path / "out")
    digits = np.array([item["codes"][1] for item in catalog.attributes])
    keys = [hashlib.sha256(json.dumps(item_id).encode()).digest() for item_id in catalog.ids]
    assert sorted(range(30), key=keys.__getitem__) == np.argsort(digits).tolist()


def test_the_table_of_a_sequence_model_is_marked_as_learned_from_events(data, tmp_path, capsys):
    catalog, _, _ = load_prepared(data)
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=len(catalog), hidden_size=8, catalog_sha256=catalog.sha256))
    save_recommender(tmp_path / "sasrec", catalog=catalog, kind="sequence", scoring="exact", model=model)
    words = ("--sequence-model", tmp_path / "sasrec", "--levels", 1, "--codes", 3)
    assert run("index", "--data", data, "--out", tmp_path / "out", *words) == 0
    found, _, card = load_prepared(tmp_path / "out")
    table = torch.nn.functional.normalize(model.item_vectors().detach()).numpy()
    codes = np.array([item["codes"][0] for item in found.attributes])
    centroids = np.stack([table[codes == code].mean(axis=0) for code in range(3)])
    assert (((table[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1) == codes).mean() > 0.9
    assert "training events of that model" in card["codes"]["codes"]["events"]
    assert card["codes"]["codes"]["vectors"] == "item table of the sequence model sasrec"
    assert "training events of that model" in (tmp_path / "out" / "README.md").read_text()

    other = catalog.subset(range(len(catalog) - 1, -1, -1))
    model.config.catalog_sha256 = other.sha256
    save_recommender(tmp_path / "other", catalog=other, kind="sequence", scoring="exact", model=model)
    words = ("--sequence-model", tmp_path / "other")
    assert run("index", "--data", data, "--out", tmp_path / "no", *words) == cli.BAD_INPUT
    assert "made for other items" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--levels", 0), "`--levels` must be at least 1"),
        (("--seed", -1), "`--seed` must be from 0"),
        (("--column", "title"), "`column` must be a word"),
        (("--column", "a b"), "`column` must be a word"),
        (("--column", "kind"), "'kind' stands in the catalog"),
        (("--text", "brand"), "`text` names 'brand', which no item has"),
        (("--vectors", "brand"), "`vectors` names 'brand', which no item has"),
        (("--vectors", "none.npy"), "There is no none.npy"),
        (("--vectors", "kind"), "Each item needs as many numbers"),
        (("--vectors", "kind", "--text", "title"), "`--text` has no effect with `--vectors`"),
        (("--sequence-model", "nowhere"), "nowhere"),
        (("--sentence-transformers", "x"), "pip install sentence-transformers"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_written(data, tmp_path, capsys, words, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run("index", "--data", data, "--out", tmp_path / "out", *words) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("library", "module", "message"),
    [("faiss", "faiss", "pip install hf_rec[faiss]"), ("sklearn", "sklearn.cluster", "pip install hf_rec[index]")],
)
def test_a_library_that_is_not_installed_is_told_before_any_vector_is_made(
    data, tmp_path, capsys, monkeypatch, library, module, message
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("hf_rec.item_codes.item_vectors.item_texts", lambda *_: pytest.fail("texts were read"))
    words = ("--kmeans", library, "--levels", 1, "--codes", 10_000)  # more than items: nothing would be fitted
    assert run("index", "--data", data, "--out", tmp_path / "out", *words) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_picture_is_left_out_with_a_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("index", "--data", data, "--out", tmp_path / "out", "--levels", 1, "--codes", 2) == 0
    assert "no picture of the codes: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "out" / TABLE[2]).exists() and ".png" not in (tmp_path / "out" / TABLE[1]).read_text()
