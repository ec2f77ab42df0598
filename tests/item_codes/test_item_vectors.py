import sys

import numpy as np
import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.item_codes.item_vectors import (
    checked_vectors,
    item_texts,
    sentence_vectors,
    tfidf_vectors,
    vectors_from_column,
    vectors_from_file,
)


@pytest.fixture
def catalog():
    return Catalog.from_records(
        [
            {"item_id": 1, "title": "Red <b>Pen</b>", "tags": ["Ink", "Office"], "size": [1, 2], "price": 3},
            {"item_id": 2, "title": None, "tags": [], "size": [0, 4], "price": 4},
            {"item_id": 3, "title": "Blue pen", "tags": None, "size": [5, 6], "price": 5},
        ]
    )


def test_text_is_the_title_and_the_named_columns(catalog):
    assert item_texts(catalog, ["title"]) == ["Red Pen", "", "Blue pen"]
    assert item_texts(catalog, ["title", "tags"]) == ["Red Pen Ink, Office", "", "Blue pen"]
    with pytest.raises(ValueError, match="`text` names 'brand', which no item has.* 'title', 'price', 'size', 'tags'"):
        item_texts(catalog, ["brand"])
    with pytest.raises(ValueError, match="'price', which holds 3"):
        item_texts(catalog, ["price"])


def test_tfidf_vectors_have_length_one_and_items_without_words_none():
    vectors = tfidf_vectors(["red pen", "", "red pen", "blue chair", "!!"], seed=0)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors[0], [1, 0, 1, 0, 0], atol=1e-5)
    with pytest.raises(ValueError, match="No item has a word"):
        tfidf_vectors(["", "?"], seed=0)


def test_many_words_are_reduced_and_near_texts_stay_near():
    texts = [f"brand{number % 2} thing{number} of kind{number % 2}" for number in range(200)]
    vectors = tfidf_vectors(texts, seed=0)
    assert vectors.shape == (200, 128)
    same, other = vectors[2:] @ vectors[0], vectors[1:] @ vectors[0]
    assert same[::2].mean() > 0.1 > 0.05 > abs(other[::2].mean())
    np.testing.assert_array_equal(vectors, tfidf_vectors(texts, seed=0))


def test_a_file_gives_one_row_an_item(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, np.arange(6, dtype=np.int16).reshape(3, 2))
    np.testing.assert_array_equal(vectors_from_file(path, 3), [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2)), "has 4 rows, the catalog 3 items"),
        (np.zeros(3), r"holds \(3,\)"),
        (np.zeros((3, 0)), r"holds \(3, 0\)"),
        (np.array([[1.0], [np.nan], [np.inf]]), "2 rows that are not finite numbers; the first is row 1"),
        (np.array([["a"], ["b"], ["c"]]), "values of type <U1"),
        (np.array([[1e300], [0], [0]]), "the first is row 0"),
        (np.array([[{}], [1], [2]], dtype=object), "is no .npy file of plain numbers"),
        (b"no array", "is no .npy file of plain numbers"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_file_that_does_not_fit_is_refused(tmp_path, array, message):
    path = tmp_path / "v.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    with pytest.raises(ValueError, match=message) as refusal:
        vectors_from_file(path, 3)
    assert "pickle" not in str(refusal.value)  # no advice to load it unsafely


def test_several_arrays_in_one_file_are_refused(tmp_path):
    with open(tmp_path / "v.npy", "wb") as file:
        np.savez(file, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="holds NpzFile"):
        vectors_from_file(tmp_path / "v.npy", 3)
    with pytest.raises(FileNotFoundError, match="a .npy file or a column"):
        vectors_from_file(tmp_path / "none.npy", 3)


def test_a_column_of_lists_gives_vectors(catalog):
    np.testing.assert_array_equal(vectors_from_column(catalog, "size"), [[1, 2], [0, 4], [5, 6]])
    for column, message in (("tags", "None for item 2"), ("price", "3 for item 0"), ("none", "'none', which no item")):
        with pytest.raises(ValueError, match=message):
            vectors_from_column(catalog, column)
    for values, message in (([[1], [1, 2]], r"lengths \[1, 2\]"), ([["a"], ["b"]], "other things than numbers")):
        other = Catalog.from_records({"item_id": row, "size": value} for row, value in enumerate(values))
        with pytest.raises(ValueError, match=message):
            vectors_from_column(other, "size")


def test_a_missing_library_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ValueError, match="pip install sentence-transformers"):
        sentence_vectors(["a"], "name")
    with pytest.raises(ValueError, match=r"hf_rec\[index\]"):
        tfidf_vectors(["a"], seed=0)
    from hf_rec.item_codes.clusters import fit_centroids

    with pytest.raises(ValueError, match=r"hf_rec\[index\]"):
        fit_centroids(np.eye(4, dtype=np.float32), 2, "sklearn", 0)


def test_a_model_of_the_library_is_asked_to_run_no_code(monkeypatch):
    class Model:
        def __init__(self, name, trust_remote_code):
            assert (name, trust_remote_code) == ("some/model", False)

        def encode(self, texts, **settings):
            return np.array([[3.0, 4.0]] * len(texts))

    monkeypatch.setitem(sys.modules, "sentence_transformers", type(sys)("sentence_transformers"))
    sys.modules["sentence_transformers"].SentenceTransformer = Model
    np.testing.assert_allclose(sentence_vectors(["a", "b"], "some/model"), [[0.6, 0.8]] * 2, rtol=1e-6)


def test_a_table_that_is_no_array_is_refused():
    with pytest.raises(ValueError, match="holds list"):
        checked_vectors([[1]], 1, "It")
