import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.hub import load_recommender, save_recommender
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.item_index import ItemIndex
from hf_rec.recommenders.prompt_vectors import PromptVectors, token_batches
from hf_rec.recommenders.retrieval import RetrievalRecommender


HISTORIES = [[100, 101], [], [111, 103, 102], [107]]
TIMES = [[0, 86_400], [], [0, 0, 10**9], [5]]


@pytest.fixture(scope="module")
def model(tiny_lm, tiny_catalog, tmp_path_factory):
    root = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    teacher = SASRecModel(SASRecConfig(num_items=len(tiny_catalog), hidden_size=8, catalog_sha256=tiny_catalog.sha256))
    torch.nn.init.normal_(teacher.item_embedding.weight)
    teacher.save_pretrained(root / "teacher")
    tiny_lm().save_pretrained(root / "lm")
    return LLMSRecModel.from_frozen(root / "lm", root / "teacher", vector_size=6, head_size=16, seen_items=range(10))


@pytest.fixture(scope="module")
def recommender(model, bpe_tokenizer, tiny_catalog):
    return RetrievalRecommender(model, bpe_tokenizer, tiny_catalog, RetrievalPrompt(bpe_tokenizer, tiny_catalog))


def make_index(vectors, ids=None):
    catalog = Catalog.from_records([{"item_id": row} for row in range(len(vectors))])
    return ItemIndex(vectors, catalog, "prompt", np.arange(len(vectors)))


class TestIndex:
    def test_search_finds_the_highest_dot_products_in_chunks_too(self, monkeypatch):
        vectors, users = torch.randn(500, 6), torch.randn(40, 6)
        scores = users @ vectors.t()
        expected = scores.topk(7)
        for chunk in (500, 64):
            monkeypatch.setattr("hf_rec.recommenders.item_index.ITEMS_AT_ONCE", chunk)
            found, rows, _ = make_index(vectors).search(users, 7)
            torch.testing.assert_close(found, expected.values)
            assert rows.tolist() == expected.indices.tolist()

    def test_equal_scores_stand_in_row_order_and_nan_in_no_list(self, monkeypatch):
        vectors = torch.ones(10, 2)
        vectors[3] = torch.nan
        vectors[8] = 2.0
        for chunk in (10, 3):
            monkeypatch.setattr("hf_rec.recommenders.item_index.ITEMS_AT_ONCE", chunk)
            scores, rows, nan_scores = make_index(vectors).search(torch.ones(1, 2), 4)
            assert nan_scores.tolist() == [1]
            assert rows.tolist() == [[8, 0, 1, 2]] and scores.tolist() == [[4, 2, 2, 2]]

    def test_what_is_not_allowed_is_not_listed(self):
        vectors, users = torch.randn(9, 3), torch.randn(2, 3)
        allowed = AllowedItems([np.array([2, 5]), np.array([], dtype=np.int64)], True, 9)
        scores, rows, _ = make_index(vectors).search(users, 4, allowed)
        assert set(rows[0, :2].tolist()) == {2, 5} and rows[0, 2:].tolist() == [-1, -1]
        assert rows[1].tolist() == [-1] * 4 and (scores[1] == -torch.inf).all()

    def test_ranks_count_better_and_tied_items(self):
        vectors = torch.tensor([[1.0], [2.0], [2.0], [3.0]])
        users, targets = torch.ones(2, 1), torch.tensor([1, 0])
        better, tied, nll = make_index(vectors).rank(users, targets)
        assert (better.tolist(), tied.tolist()) == ([1, 3], [1, 0])
        torch.testing.assert_close(nll, -vectors[targets, 0] + vectors[:, 0].logsumexp(0))
        better, _, _ = make_index(vectors).rank(users, targets, torch.tensor([[3, -1], [1, 2]]))
        assert better.tolist() == [0, 1]

    def test_it_is_saved_with_the_hashes_of_what_it_belongs_to(self, model, tmp_path, tiny_catalog):
        model.save_pretrained(tmp_path)
        index = ItemIndex(torch.randn(12, 6), tiny_catalog, "prompt", np.arange(12))
        index.save(tmp_path)
        loaded = ItemIndex.load(tmp_path, tiny_catalog, "prompt")
        torch.testing.assert_close(loaded.vectors, index.vectors)
        with pytest.raises(ValueError, match="other prompt"):
            ItemIndex.load(tmp_path, tiny_catalog, "another")
        path = tmp_path / "item_index.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="truncated"):
            ItemIndex.load(tmp_path, tiny_catalog, "prompt")

    def test_the_approximate_search_finds_what_the_exact_one_does_when_it_reads_every_list(self):
        pytest.importorskip("faiss")
        vectors, users = torch.randn(2000, 8), torch.randn(5, 8)
        index = make_index(vectors)
        exact, near = index.search(users, 5), index.search_approximately(users, 5, probes=10_000)
        assert exact[1].tolist() == near[1].tolist()


class TestVectors:
    def test_batches_of_tokens_hold_every_place_once(self):
        lengths = np.random.default_rng(0).integers(1, 300, 200)
        batches = token_batches(lengths, budget=1000)
        assert sorted(np.concatenate(batches)) == list(range(200))
        assert all(lengths[batch].max() * len(batch) <= 1000 for batch in batches)
        assert [len(batch) for batch in token_batches(np.array([5000]), 1000)] == [1]

    def test_cold_items_are_counted(self, model, recommender):
        assert recommender.vectors.num_cold == 2  # the teacher has seen ten of twelve
        assert PromptVectors(model, recommender.prompt, np.full(12, -1)).num_cold == 12


class TestRecommender:
    def test_user_vectors_are_made_in_batches_of_the_size_asked(self, recommender, monkeypatch):
        expected, sizes = recommender.user_vectors(HISTORIES, TIMES), []
        users = recommender.vectors.users
        monkeypatch.setattr(
            recommender.vectors, "users", lambda rows, times: sizes.append(len(rows)) or users(rows, times)
        )
        np.testing.assert_allclose(
            recommender.user_vectors(HISTORIES, TIMES, batch_size=3), expected, rtol=1e-5, atol=1e-5
        )
        assert sizes == [3, 1]
        with pytest.raises(ValueError, match="`batch_size`"):
            recommender.user_vectors(HISTORIES, batch_size=0)

    def test_lists_are_those_of_all_scores(self, recommender, tiny_catalog):
        scores = recommender.score_all(HISTORIES, TIMES)
        found = recommender.recommend(HISTORIES, k=5, timestamps=TIMES)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        assert found.item_ids == [[tiny_catalog.ids[row] for row in rows] for rows in order]
        np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, axis=1), rtol=1e-5)
        assert found.certified.all()
        users, items = recommender.user_vectors(HISTORIES, TIMES), recommender.index.vectors.numpy()
        np.testing.assert_allclose(scores, users @ items.T, rtol=1e-4, atol=1e-5)

    def test_score_gives_the_same_numbers_and_exclusion_changes_none(self, recommender):
        found = recommender.recommend(HISTORIES, k=4, exclude=[[100, 103], [], [], [110]])
        again = recommender.score(HISTORIES, found.item_ids)
        np.testing.assert_allclose(np.stack(again), found.scores, rtol=1e-5, atol=1e-6)
        assert not {100, 103} & set(found.item_ids[0])
        everything = recommender.recommend([HISTORIES[0]], k=3, exclude=recommender.catalog.ids)
        assert everything.item_ids == [[]] and (everything.scores == -np.inf).all()

    def test_times_stand_in_the_prompt(self, recommender):
        with_dates, without = (recommender.user_vectors(HISTORIES, times) for times in (TIMES, None))
        changed = np.abs(with_dates - without).max(axis=1) > 1e-4
        assert changed.tolist() == [True, False, True, True]

    def test_the_approximate_search_is_not_certified(self, model, bpe_tokenizer, tiny_catalog, recommender):
        pytest.importorskip("faiss")
        near = RetrievalRecommender(
            model, bpe_tokenizer, tiny_catalog, recommender.prompt, recommender.index, approximate=True
        )
        exact = recommender.recommend(HISTORIES, k=3, exclude=[100])
        found = near.recommend(HISTORIES, k=3, exclude=[100])
        assert found.item_ids == exact.item_ids and not found.certified.any()

    def test_another_catalog_is_refused(self, model, bpe_tokenizer, tiny_catalog):
        for catalog, message in (
            (tiny_catalog.subset(range(11)), "11 items"),
            (tiny_catalog.subset([1, 0, *range(2, 12)]), "another catalog"),
        ):
            with pytest.raises(ValueError, match=message):
                RetrievalRecommender(model, bpe_tokenizer, catalog, RetrievalPrompt(bpe_tokenizer, catalog))


class TestOtherItems:
    def test_a_changed_catalog_encodes_new_and_renamed_items_alone(self, recommender, tiny_catalog, monkeypatch):
        encoded = []
        plain = PromptVectors.items
        monkeypatch.setattr(
            PromptVectors, "items", lambda self, rows=None: (encoded.append(rows), plain(self, rows))[1]
        )
        records = [{"item_id": 999, "title": "Ran"}]
        records += [
            {"item_id": tiny_catalog.ids[row], "title": "Alien 4" if row == 2 else tiny_catalog.titles[row]}
            for row in range(11, -1, -1)
            if row != 7
        ]
        changed, number = recommender.refreshed(Catalog.from_records(records))
        assert number == 2 and encoded[-1].tolist() == [0, changed.catalog.row(102)]
        old, new = recommender.index, changed.index
        for item_id in (100, 104, 111):
            row, old_row = changed.catalog.row(item_id), tiny_catalog.row(item_id)
            torch.testing.assert_close(new.vectors[row], old.vectors[old_row])
            assert new.teacher_items[row] == old_row
        assert new.teacher_items[0] == -1 and new.teacher_items[changed.catalog.row(102)] == 2
        history = [[100, 104]]
        np.testing.assert_allclose(changed.user_vectors(history), recommender.user_vectors(history), rtol=1e-5)

    def test_items_of_another_domain_are_known_by_text_alone(self, recommender):
        books = Catalog.from_records([{"item_id": f"b{row}", "title": title} for row, title in enumerate("XYZ")])
        other = recommender.for_catalog(books)
        assert other.vectors.num_cold == 3
        assert len(other.recommend([["b0", "b1"]], k=2).item_ids[0]) == 2


class TestFolder:
    def test_a_folder_comes_back_with_its_index_or_without(self, recommender, model, bpe_tokenizer, tmp_path):
        save_recommender(
            tmp_path,
            catalog=recommender.catalog,
            kind="llm_srec",
            prompt=recommender.prompt,
            tokenizer=bpe_tokenizer,
            model=model,
            scoring="exact",
        )
        expected = recommender.recommend(HISTORIES, k=3, timestamps=TIMES)
        for saved in (False, True):
            if saved:
                recommender.index.save(tmp_path)
            loaded = load_recommender(tmp_path, device="cpu")
            found = loaded.recommend(HISTORIES, k=3, timestamps=TIMES)
            assert found.item_ids == expected.item_ids
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)

    def test_a_refreshed_recommender_is_saved_with_its_slots(self, recommender, model, bpe_tokenizer, tmp_path):
        records = [{"item_id": 999, "title": "Ran"}, {"item_id": 103, "title": "Solaris"}]
        changed, _ = recommender.refreshed(Catalog.from_records(records))
        save_recommender(
            tmp_path,
            catalog=changed.catalog,
            kind="llm_srec",
            prompt=changed.prompt,
            tokenizer=bpe_tokenizer,
            model=model,
            scoring="exact",
        )
        changed.index.save(tmp_path)
        loaded = load_recommender(tmp_path, device="cpu")
        assert loaded.index.teacher_items.tolist() == [-1, 3]
        np.testing.assert_allclose(loaded.score_all([[999, 103]]), changed.score_all([[999, 103]]), rtol=1e-5)
