import pytest

from hf_rec.cli.main import main
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.hub import load_recommender, save_control, save_recommender
from hf_rec.recommenders.controls import LastItemRecommender


@pytest.fixture
def folders(tmp_path, tiny_catalog, bpe_tokenizer, tiny_lm):
    """A retriever and a re-ranker of letters."""
    rows = [{"history": [0, 1, 2, 3], "target": 5, "supervise_from": 0}]
    save_control(tmp_path / "retriever", LastItemRecommender(tiny_catalog, rows))
    save_recommender(
        tmp_path / "reranker",
        catalog=tiny_catalog,
        kind="reranker",
        prompt=RerankPrompt(bpe_tokenizer, tiny_catalog, "letters", num_candidates=4, max_length=400),
        scoring="letters",
        tokenizer=bpe_tokenizer,
        model=tiny_lm(),
        extra={"permutations": 1, "candidate_order": "shuffled", "seed": 0},
    )
    return tmp_path


def run(folders, *words, retriever="retriever", reranker="reranker"):
    parts = ["--retriever", str(folders / retriever), "--reranker", str(folders / reranker), "--device", "cpu"]
    return main(["rerank", *parts, "--out", str(folders / "out"), *map(str, words)])


def test_two_folders_become_one_that_recommends(folders, capsys):
    assert run(folders, "--n", 3, "--permutations", 2) == 0
    assert "the first 3 of" in capsys.readouterr().out
    made = load_recommender(folders / "out", device="cpu")
    assert (made.n, made.reranker.permutations) == (3, 2)
    before = load_recommender(folders / "retriever").recommend([[100]], k=6).item_ids[0]
    after = made.recommend([[100]], k=6).item_ids[0]
    assert sorted(after[:3]) == sorted(before[:3]) and after[3:] == before[3:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", 5], "`n` is 5, but the re-ranker has 4 letters"),
        (["--permutations", 9], "`permutations` must be from 1 to the 4 candidates"),
        (["--data", "somewhere"], "`--data` has no effect with a retriever from a folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folders, capsys, words, message):
    assert run(folders, *words) == 2
    assert message in capsys.readouterr().err and not (folders / "out").exists()


def test_a_folder_that_judges_nothing_is_no_reranker(folders, capsys):
    assert run(folders, reranker="retriever") == 2
    assert "is a LastItemRecommender. Give a folder that recipes/rerank.py wrote" in capsys.readouterr().err
