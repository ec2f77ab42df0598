"""The candidate protocol: lists that do not tell the target, files that cannot be changed, ties that are shared."""

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.columns import HISTORY, TARGET, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.evaluation.candidates import Candidates, draw_candidates, evaluate_candidates
from hf_rec.evaluation.run_files import compare_runs
from hf_rec.evaluation.valid_ratio import greedy_valid_ratio
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.report.collect import collect
from hf_rec.report.tables import results_table
from hf_rec.trie.item_trie import ItemTrie


@pytest.fixture(scope="module")
def catalog():
    return Catalog.from_records([{"item_id": 1000 + row, "title": f"Film {row // 2}"} for row in range(200)])


def split(count=40, users=None, targets=None):
    return Dataset.from_dict(
        {
            USER_ID: [f"u{row}" for row in range(count)] if users is None else users,
            HISTORY: [[(row * 5 + i) % 200 for i in range(4)] for row in range(count)],
            TARGET: [(row * 11 + 9) % 200 for row in range(count)] if targets is None else targets,
        }
    )


class Scorer(Recommender):
    """Scores items by a function of their row and the histories'."""

    def __init__(self, catalog, function):
        super().__init__(catalog)
        self.function = function

    def _score_rows(self, histories, candidates, timestamps):
        return [
            np.array([self.function(history, row) for row in rows], dtype=np.float32)
            for history, rows in zip(histories, candidates, strict=True)
        ]


class TestLists:
    def test_they_hold_the_target_once_and_nothing_that_the_user_knows_or_that_reads_the_same(self, catalog):
        dataset = split()
        lists = draw_candidates(dataset, catalog, 19).lists
        for listed, history, target in zip(lists, dataset[HISTORY], dataset[TARGET], strict=True):
            titles = [row // 2 for row in listed]
            assert len(set(titles)) == 20 and listed.count(target) == 1
            known = {row // 2 for row in history} - {target // 2}
            assert not known & set(titles)

    def test_the_same_target_is_not_recognised_by_its_list(self, catalog):
        """The released lists are seeded with the target: equal targets share a third of their list and their place."""
        lists = draw_candidates(split(200, targets=[7] * 200), catalog, 19).lists
        places = np.array([listed.index(7) for listed in lists])
        assert len(set(places.tolist())) > 15
        shared = [len(set(one) & set(other)) - 1 for one, other in zip(lists[::2], lists[1::2], strict=True)]
        assert np.mean(shared) < 3  # 19 * 19 / 196 = 1.8 by chance

    def test_a_row_depends_on_user_split_and_seed_and_not_on_its_target_or_other_rows(self, catalog):
        lists = draw_candidates(split(), catalog, 19).lists
        assert draw_candidates(split(10), catalog, 19).lists == lists[:10]
        other = draw_candidates(split(targets=[199] * 40), catalog, 19).lists
        for one, two, target in zip(lists, other, split()[TARGET], strict=True):
            assert two.index(199) == one.index(target)
            assert len(set(one) & set(two)) >= 17
        assert draw_candidates(split(), catalog, 19, seed=1).lists != lists
        assert draw_candidates(split(), catalog, 19, split="validation").lists != lists
        several = draw_candidates(split(2, users=["u", "u"], targets=[9, 9]), catalog, 19).lists
        assert several[0] != several[1]

    def test_a_file_is_read_as_it_was_written_or_not_at_all(self, catalog, tmp_path):
        candidates = draw_candidates(split(), catalog, 19)
        candidates.save(tmp_path / "candidates.json")
        assert Candidates.load(tmp_path / "candidates.json") == candidates
        text = (tmp_path / "candidates.json").read_text()
        (tmp_path / "candidates.json").write_text(text.replace('"seed": 0', '"seed": 1'))
        with pytest.raises(ValueError, match="edited"):
            Candidates.load(tmp_path / "candidates.json")
        (tmp_path / "candidates.json").write_text("[]")
        with pytest.raises(ValueError, match="no candidate file"):
            Candidates.load(tmp_path / "candidates.json")


class TestMeasurement:
    @pytest.mark.parametrize("num_negatives", [19, 99])
    def test_a_constant_scorer_hits_as_often_as_chance(self, catalog, tmp_path, num_negatives):
        dataset = split()
        catalog = Catalog.from_records([{"item_id": 1000 + row, "title": f"Film {row}"} for row in range(200)])
        candidates = draw_candidates(dataset, catalog, num_negatives)
        run = evaluate_candidates(
            Scorer(catalog, lambda history, row: 0.0), dataset, candidates, tmp_path / "run", name="constant"
        )
        key = f"candidates=1+{num_negatives}/file={candidates.sha256[:8]}/split=loo/hit_rate@1"
        assert run["metrics"][key]["mean"] == pytest.approx(1 / (num_negatives + 1))
        assert run["counts"]["tied_targets"] == 40
        assert Candidates.load(tmp_path / "run" / "candidates.json") == candidates

    def test_it_counts_the_targets_that_score_best_and_can_be_reported_and_compared(self, catalog, tmp_path):
        dataset = split()
        candidates = draw_candidates(dataset, catalog, 19)
        best = {tuple(history): target for history, target in zip(dataset[HISTORY], dataset[TARGET], strict=True)}
        half = set(list(best)[::2])
        scorers = {
            "half": lambda history, row: float(tuple(history) in half and best[tuple(history)] == row) - row / 1e6,
            "nothing": lambda history, row: float("nan"),
        }
        for name, function in scorers.items():
            run = evaluate_candidates(
                Scorer(catalog, function), dataset, candidates, tmp_path / name, name=name, warm_items=range(100)
            )
        assert run["counts"]["nan_scores"] == 40 * 20 and run["certified_share"] == 0
        lists = dict(zip(best, candidates.lists, strict=True))
        hits = np.mean([history in half or min(listed) == best[history] for history, listed in lists.items()])
        (comparison,) = compare_runs([tmp_path / "nothing", tmp_path / "half"], "hit_rate@1")
        assert (comparison.mean, comparison.baseline_mean) == (pytest.approx(hits), 0.0)
        sections, _ = collect([tmp_path])
        assert len(sections) == 1 and "H@1" in results_table(sections[0])

    def test_candidates_of_other_rows_or_items_are_refused(self, catalog, tmp_path):
        candidates, scorer = draw_candidates(split(), catalog, 19), Scorer(catalog, lambda history, row: 0.0)
        with pytest.raises(ValueError, match="`candidates` were drawn for other rows"):
            evaluate_candidates(scorer, split(10), candidates, tmp_path / "run", name="x")
        with pytest.raises(ValueError, match="`ks`"):
            evaluate_candidates(scorer, split(), candidates, tmp_path / "run", name="x", ks=(21,))
        with pytest.raises(ValueError, match="`num_negatives`"):
            draw_candidates(split(), catalog, 0)


def test_a_language_model_is_measured_and_its_free_writing_counted(tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path):
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    trie = ItemTrie.build(prompt.encode_items()).csr()
    recommender = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie)
    dataset = Dataset.from_dict({USER_ID: ["a", "b", "c"], HISTORY: [[0], [1, 2], []], TARGET: [5, 8, 9]})
    candidates = draw_candidates(dataset, tiny_catalog, 6)
    recommender.tau = 2.5
    run = evaluate_candidates(recommender, dataset, candidates, tmp_path / "run", name="lm")
    assert (run["tau"], run["scoring"]) == (2.5, "valid")
    assert (run["seen"], run["candidates"]) == (None, candidates.protocol)
    scores = recommender.score([[100], [101, 102], []], [[100 + row for row in listed] for listed in candidates.lists])
    hits = [
        listed[int(np.argmax(one))] == target
        for listed, one, target in zip(candidates.lists, scores, [5, 8, 9], strict=True)
    ]
    assert run["metrics"][f"{run['protocol']}/hit_rate@1"]["mean"] == pytest.approx(np.mean(hits))
    recommender.model.train()
    assert greedy_valid_ratio(recommender, dataset) == 0.0
    assert recommender.model.training, "the model is left as it was"

    forced = LanguageModelRecommender(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, trie)
    path = prompt.encode_item(8)

    def writes_an_item(input_ids, **kwargs):
        import torch

        return torch.cat([input_ids, torch.tensor([path + [7] * 3, path[:-1] + [7] * 4, path + [7] * 3])], dim=1)

    forced.model.generate = writes_an_item
    assert greedy_valid_ratio(forced, dataset) == pytest.approx(2 / 3)
