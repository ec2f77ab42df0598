"""Lists for a table of users: those of `recommend`, in order, ranked once each, and never over something else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_rec.cli import main as cli
from hf_rec.data.catalog import Catalog
from hf_rec.evaluation.user_lists import recommend_users
from hf_rec.hub import load_recommender, save_control
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender


ROWS = [{"history": [row, (row * 5 + 1) % 12], "target": (row * 7) % 12} for row in range(12)]
HISTORIES = [[100 + (3 * row + step) % 12 for step in range(row % 4)] for row in range(11)]


@pytest.fixture
def recommender(tiny_catalog, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / "last"
    save_control(folder, LastItemRecommender(tiny_catalog, ROWS))
    return load_recommender(folder)


@pytest.fixture
def users(tmp_path):
    table = pa.table({"user_id": [f"u{row}" for row in range(11)], "history": HISTORIES, "more": list(range(11))})
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=5)
    return tmp_path / "users.parquet"


def test_the_lists_are_those_of_recommend_in_the_order_of_the_users(recommender, users, tmp_path):
    out = tmp_path / "recs.parquet"
    assert recommend_users(recommender, users, out, k=3, exclude_history=True, part_rows=4)
    table = pq.read_table(out).to_pydict()
    expected = recommender.recommend(HISTORIES, k=3, exclude=HISTORIES)
    assert table["user_id"] == [f"u{row}" for row in range(11)]
    assert table["item_ids"] == expected.item_ids
    assert table["scores"] == expected.scores.tolist()
    assert table["certified"] == expected.certified.tolist()
    catalog = recommender.catalog
    assert table["titles"] == [[catalog.titles[catalog.row(item)] for item in ids] for ids in expected.item_ids]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recs.parquet", "users.parquet"]


def test_what_was_ranked_before_an_interruption_is_not_ranked_again(recommender, users, tmp_path, monkeypatch):
    out, ranked = tmp_path / "recs.parquet", []
    recommend = recommender.recommend

    def interrupted(histories, **options):
        ranked.extend(histories)
        if len(ranked) == 8:
            raise KeyboardInterrupt
        return recommend(histories, **options)

    monkeypatch.setattr(recommender, "recommend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recommend_users(recommender, users, out, k=3, part_rows=4)
    assert not out.exists() and (tmp_path / "recs.parquet.parts" / "part-00000.parquet").is_file()
    with pytest.raises(FileExistsError, match="k differ"):
        recommend_users(recommender, users, out, k=2, part_rows=4)
    ranked.clear()
    assert recommend_users(recommender, users, out, k=3, part_rows=4)
    assert ranked == HISTORIES[4:]
    assert pq.read_table(out)["item_ids"].to_pylist() == recommend(HISTORIES, k=3).item_ids
    ranked.clear()
    assert not recommend_users(recommender, users, out, k=3, part_rows=4) and not ranked, "it is finished"


def test_lists_of_another_recommender_are_not_taken_for_finished(tiny_catalog, recommender, users, tmp_path):
    out = tmp_path / "recs.parquet"
    recommend_users(LastItemRecommender(tiny_catalog, ROWS), users, out, k=3)
    other = PopularityRecommender(tiny_catalog, [{"history": [0], "target": 11, "supervise_from": 1}])
    with pytest.raises(FileExistsError, match="overwrite"):
        recommend_users(other, users, out, k=3)  # neither of the two has a folder
    recommend_users(recommender, users, out, k=3, overwrite=True)
    assert recommend_users(recommender, users, out, k=3) is None
    recommender.tau = 2.0
    with pytest.raises(FileExistsError, match="overwrite"):
        recommend_users(recommender, users, out, k=3)


def test_another_result_is_overwritten_only_where_this_is_asked_for(recommender, users, tmp_path):
    out = tmp_path / "recs.parquet"
    out.write_text("something else")
    with pytest.raises(FileExistsError, match="overwrite"):
        recommend_users(recommender, users, out)
    assert out.read_text() == "something else"
    assert recommend_users(recommender, users, out, overwrite=True)
    assert len(pq.read_table(out)) == 11


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user_id": [1]}, "no column history"),
        ({"user_id": [1, 2], "history": [[100], [7]]}, "row 1: Item 7"),
        ({"user_id": [1, 2], "history": [[100], None]}, "row 1 has no `history`"),
    ],
)
def test_what_cannot_be_ranked_names_its_row(recommender, tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    with pytest.raises(ValueError, match=words):
        recommend_users(recommender, tmp_path / "users.parquet", tmp_path / "recs.parquet")
    assert not (tmp_path / "recs.parquet").exists()


def test_users_may_bring_lists_of_what_they_must_not_see(recommender, tmp_path):
    table = pa.table({"user_id": [1, 2], "history": [[100], []], "exclude": [[103], []]})
    pq.write_table(table, tmp_path / "users.parquet")
    recommend_users(recommender, tmp_path / "users.parquet", tmp_path / "recs.parquet", k=12)
    ids = pq.read_table(tmp_path / "recs.parquet")["item_ids"].to_pylist()
    assert 103 not in ids[0] and 103 in ids[1]


def test_the_command_ranks_a_table_of_users(recommender, users, tmp_path, capsys):
    save_control(tmp_path / "model", recommender)
    words = [
        "recommend",
        "--model",
        tmp_path / "model",
        "--users",
        users,
        "--out",
        tmp_path / "recs.parquet",
        "--k",
        2,
    ]
    assert cli.main(list(map(str, words))) == 0
    assert "11 lists of 2 items" in capsys.readouterr().out
    assert (
        pq.read_table(tmp_path / "recs.parquet")["item_ids"].to_pylist()
        == recommender.recommend(HISTORIES, k=2).item_ids
    )
    assert cli.main(list(map(str, words))) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.main([*map(str, words), "--json"]) == cli.BAD_INPUT
    assert "`--json` has no effect" in capsys.readouterr().err


def test_recommendations_become_a_table_with_titles(recommender):
    found = recommender.recommend([[100], []], k=2)
    table = found.to_pandas(["a", "b"])
    assert list(table.columns) == ["user", "place", "item_id", "title", "score", "certified"]
    assert table["user"].tolist() == ["a", "a", "b", "b"] and table["place"].tolist() == [1, 2, 1, 2]
    assert table["item_id"].tolist() == [item for ids in found.item_ids for item in ids]
    catalog = recommender.catalog
    assert table["title"].tolist() == [catalog.titles[catalog.row(item)] for item in table["item_id"]]
    assert table["score"].tolist() == found.scores.ravel().tolist()
    assert found.to_pandas()["user"].tolist() == [0, 0, 1, 1]
    bare = LastItemRecommender(Catalog.from_records({"item_id": row} for row in range(12)), ROWS)
    assert bare.recommend([[0]], k=1).to_pandas()["title"].isna().all()
    with pytest.raises(ValueError, match="`users` has 1"):
        found.to_pandas(["a"])


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_write_the_lists_of_one(launch, recommender, users, tmp_path):
    save_control(tmp_path / "model", recommender)
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys; from hf_rec.hub import load_recommender; from hf_rec.processes import end_processes\n"
        "from hf_rec.evaluation.user_lists import recommend_users\n"
        "recommend_users(load_recommender(sys.argv[1]), sys.argv[2], sys.argv[3], k=3, part_rows=2); end_processes()\n"
    )
    launch(script, tmp_path / "model", users, tmp_path / "two.parquet")
    recommend_users(load_recommender(tmp_path / "model"), users, tmp_path / "one.parquet", k=3, part_rows=2)
    assert pq.read_table(tmp_path / "two.parquet").equals(pq.read_table(tmp_path / "one.parquet"))
