"""DLLM2Rec in SequentialTrainer: what lists and text teach, by hand, and which of them are refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rec import (
    BERT4RecConfig,
    BERT4RecModel,
    CaserConfig,
    CaserModel,
    GRU4RecConfig,
    GRU4RecModel,
    MFConfig,
    MFModel,
    SASRecConfig,
    SASRecModel,
)
from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, SUPERVISE_FROM, TARGET, TEACHER_LIST, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.evaluation.ranked_lists import read_lists, write_lists
from hf_rec.hub import load_recommender
from hf_rec.losses.robust import item_shares, robust_loss
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer


N = 20
CATALOG = Catalog.from_records(
    [{"item_id": f"item-{item}", "title": f"word{item} word{item % 3}"} for item in range(N)]
)


def cycle(count, length=5, more=0):
    """One row a user; with `more`, the rows that follow them, as of validation."""
    walks = [[(start * 7 + step) % N for step in range(length + more)] for start in range(count)]
    return Dataset.from_dict(
        {
            USER_ID: [str(user) for user in range(count)],
            HISTORY: [walk[:-1] for walk in walks],
            TARGET: [walk[-1] for walk in walks],
            SUPERVISE_FROM: [length + more - 1 if more else 1] * count,
        }
    )


def network(kind=(SASRecModel, SASRecConfig), seed=0, **settings):
    torch.manual_seed(seed)
    return kind[0](kind[1](num_items=N, hidden_size=8, max_length=6, dropout=0.0, **settings))


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Lists of a network that was never trained, before every label of 16 rows."""
    folder = tmp_path_factory.mktemp("lists") / "lists"
    teacher = SequenceRecommender(network(seed=5), CATALOG)
    write_lists(teacher, cycle(16), folder, split="train", name="t", k=4, every_label=True)
    return folder


@pytest.fixture
def make_trainer(tmp_path):
    def build(folder="run", model=None, train=None, catalog=CATALOG, **settings):
        settings = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.03,
            "logging_steps": 1,
        } | settings
        settings = {"teacher_top_k": 3, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"} | settings
        args = SequentialConfig(str(tmp_path / folder), **settings)
        return SequentialTrainer(model or network(), args, cycle(16) if train is None else train, catalog=catalog)

    return build


def batch_of(trainer):
    return trainer._train_collator(trainer.train_dataset.__getitems__([0, 1, 2, 3]))


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


class TestLists:
    @pytest.mark.parametrize("robust_weight", [0.0, 0.4])
    def test_the_lesson_is_that_of_the_formula(self, make_trainer, lists, robust_weight):
        settings = {"teacher_weight": 0.7, "consistency_weight": 0.2, "robust_weight": robust_weight}
        trainer = make_trainer(teacher_lists=str(lists), **settings)
        batch = batch_of(trainer)
        plain = make_trainer(robust_weight=robust_weight).compute_loss(trainer.model, dict(batch))
        found = trainer.compute_loss(trainer.model, dict(batch))
        hidden = trainer.model(batch[INPUT_IDS]).last_hidden_state
        given = read_lists(lists, CATALOG)
        counts = torch.zeros(N, dtype=torch.long)
        for row in cycle(16):
            counts[row[HISTORY] + [row[TARGET]]] += 1
        shares, total, count = item_shares(counts, 0.05), 0.0, 0
        negatives = []
        keep = trainer.model.score_items

        def noting(users, items=None):
            if items is not None and items.dim() == 2:
                negatives.extend(items[:, -1].tolist())
            return keep(users, items)

        trainer.model.score_items = noting
        trainer.compute_loss(trainer.model, dict(batch))
        trainer.model.score_items = keep
        for row, place in (batch[LABELS] >= 0).nonzero().tolist():
            history = [item for item in batch[INPUT_IDS][row, : place + 1].tolist() if item >= 0]
            number = given.histories.index(history)
            items, values = given.items[number, :3].tolist(), given.scores[number, :3]
            scores = trainer.model.score_items(hidden[row, place][None])[0]
            best = scores.topk(3).indices.tolist()
            by_place = np.exp(-np.arange(3)) / np.exp(-np.arange(3)).sum()
            by_score = np.exp(values) / np.exp(values).sum()
            negative = negatives[count]
            assert negative not in [*items, batch[LABELS][row, place].item()]
            for k, item in enumerate(items):
                weight = 0.3 * by_place[k] + 0.5 * by_score[k] + 0.2 * (item in best)
                own = -scores[item].sigmoid().log() - (1 - scores[negative].sigmoid()).log()
                own = own + robust_weight * robust_loss(scores[None], torch.tensor([item]), shares, 1.0)[0]
                total = total + weight * own
            count += 1
        torch.testing.assert_close(found, plain + 0.7 * total / count, rtol=1e-4, atol=1e-5)

    def test_lists_before_targets_teach_these_labels_alone(self, make_trainer, tmp_path):
        teacher = SequenceRecommender(network(seed=5), CATALOG)
        write_lists(teacher, cycle(16), tmp_path / "lists", split="train", name="t", k=4)
        batch = batch_of(make_trainer(teacher_lists=str(tmp_path / "lists")))
        assert ((batch[TEACHER_LIST] >= 0).sum(dim=1) == 1).all()
        assert (batch[TEACHER_LIST][:, -1] >= 0).all()

    def test_a_student_comes_to_give_the_lists_of_its_teacher(self, make_trainer, lists):
        trainer = make_trainer(
            model=network((CaserModel, CaserConfig)),  # which reads prefixes
            teacher_lists=str(lists),
            teacher_weight=20.0,
            consistency_weight=0.0,
            max_steps=50,
            logging_steps=10,
        )
        trainer.train()
        given = read_lists(lists, CATALOG)
        raw = [[CATALOG.ids[item] for item in history] for history in given.histories]
        found = trainer.recommender().recommend(raw, k=3).item_ids
        shared = [
            len(set(CATALOG.rows(own)) & set(items[:3]))
            for own, items in zip(found, given.items.tolist(), strict=True)
        ]
        assert np.mean(shared) > 1.5  # of 3; by chance .45
        assert [entry for entry in trainer.state.log_history if "teacher_loss" in entry]

    def test_lists_after_validation_rows_are_refused(self, make_trainer, tmp_path):
        teacher = SequenceRecommender(network(seed=5), CATALOG)
        write_lists(teacher, cycle(16, more=1), tmp_path / "lists", split="validation", name="t", k=4)
        with pytest.raises(ValueError, match=r"list 0 of .* follows no history of the training rows.*'validation'"):
            make_trainer(teacher_lists=str(tmp_path / "lists"))

    def test_what_they_cannot_teach_is_refused(self, make_trainer, lists):
        few = Catalog.from_records([{"item_id": f"item-{item + 1}"} for item in range(N)])
        with pytest.raises(ValueError, match="names an item that the catalog does not have"):
            make_trainer(teacher_lists=str(lists), catalog=few)
        with pytest.raises(ValueError, match="give the trainer the `catalog`"):
            make_trainer(teacher_lists=str(lists), catalog=None)
        with pytest.raises(ValueError, match="`teacher_top_k` is 5, but the lists in .* hold 4 items"):
            make_trainer(teacher_lists=str(lists), teacher_top_k=5)

    def test_lists_that_leave_no_negative_are_refused(self, make_trainer, tmp_path):
        teacher = SequenceRecommender(network(seed=5), CATALOG)
        write_lists(teacher, cycle(16), tmp_path / "long", split="train", name="t", k=N + 5)
        with pytest.raises(ValueError, match=f"`teacher_top_k` is {N - 1}, but of the {N} items one must be left"):
            make_trainer(teacher_lists=str(tmp_path / "long"), teacher_top_k=N - 1)
        make_trainer(teacher_lists=str(tmp_path / "long"), teacher_top_k=N - 2).train()
        with pytest.raises(ValueError, match="need the rows of a whole data set, got IterableDataset"):
            make_trainer(teacher_lists=str(lists), train=cycle(16).to_iterable_dataset())
        with pytest.raises(ValueError, match="fills in hidden events"):
            make_trainer(teacher_lists=str(lists), model=network((BERT4RecModel, BERT4RecConfig)))

    def test_a_resumed_run_takes_the_steps_of_the_whole_one_and_other_lists_are_refused(
        self, make_trainer, lists, tmp_path
    ):
        settings = {"save_strategy": "steps", "save_steps": 2, "robust_weight": 0.1, "item_text_columns": ["title"]}
        whole = make_trainer("whole", teacher_lists=str(lists), **settings)
        whole.train()
        checkpoint = str(tmp_path / "whole" / "checkpoint-2")
        moved = tmp_path / "moved"
        lists.rename(moved)
        resumed = make_trainer("resumed", teacher_lists=str(moved), **settings)
        resumed.train(resume_from_checkpoint=checkpoint)
        moved.rename(lists)
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-5, atol=1e-6)
        teacher = SequenceRecommender(network(seed=6), CATALOG)
        write_lists(teacher, cycle(16), tmp_path / "others", split="train", name="t", k=4)
        with pytest.raises(ValueError, match="`teacher_lists`"):
            make_trainer("other", teacher_lists=str(tmp_path / "others"), **settings).train(
                resume_from_checkpoint=checkpoint
            )
        with pytest.raises(ValueError, match="`teacher_lists`"):
            make_trainer("none", **settings).train(resume_from_checkpoint=checkpoint)


class TestText:
    @pytest.fixture
    def vectors(self, tmp_path):
        found = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
        np.save(tmp_path / "text.npy", found)
        return found

    @pytest.mark.parametrize(
        "kind", [(SASRecModel, SASRecConfig), (GRU4RecModel, GRU4RecConfig), (BERT4RecModel, BERT4RecConfig)]
    )
    def test_text_is_read_beside_the_item_and_scores_do_not_see_it(self, make_trainer, tmp_path, vectors, kind):
        model = network(kind)
        table, histories = model.item_vectors().detach().clone(), torch.tensor([[-1, 3, 4], [7, 8, 9]])
        model.eval()
        before = model.user_vectors(histories)
        make_trainer(model=model, item_text_vectors=str(tmp_path / "text.npy"), text_weight=0.5)
        model.eval()
        projection = model.text_vectors.projection
        rows = torch.tensor([4, 5, 0])
        expected = model.item_embedding(rows)
        expected[:2] += 0.5 * torch.from_numpy(vectors[3:5]) @ projection.t()
        torch.testing.assert_close(model.read_items(rows), expected)  # padding has no text
        assert torch.equal(model.item_vectors(), table)
        assert not torch.allclose(model.user_vectors(histories), before)
        with torch.no_grad():
            projection.zero_()
        torch.testing.assert_close(model.user_vectors(histories), before)

    def test_the_saved_folder_holds_the_text_and_trains_on(self, make_trainer, tmp_path, vectors):
        path = str(tmp_path / "text.npy")
        trainer = make_trainer(item_text_vectors=path)
        start = weights(trainer)["text_vectors.projection"]
        trainer.train()
        assert not torch.equal(weights(trainer)["text_vectors.projection"], start)
        trainer.save_model()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "text.npy").unlink()
        loaded = load_recommender(tmp_path / "elsewhere", device="cpu")
        histories = [["item-1", "item-2"], ["item-7"]]
        np.testing.assert_allclose(
            loaded.score_all(histories), trainer.recommender().score_all(histories), rtol=1e-5, atol=1e-6
        )
        again = make_trainer("again", model=str(tmp_path / "elsewhere"))  # it has its text with it
        np.testing.assert_allclose(again.recommender().score_all(histories), loaded.score_all(histories), rtol=1e-5)
        np.save(tmp_path / "other.npy", vectors + 1)
        with pytest.raises(ValueError, match="trained with other text vectors"):
            make_trainer("other", model=str(tmp_path / "elsewhere"), item_text_vectors=str(tmp_path / "other.npy"))

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (np.zeros((N - 1, 5)), f"has {N - 1} rows, the catalog {N} items"),
            (np.zeros(N), "must be a table of shape"),
            (np.full((N, 5), np.nan), f"has {N} rows that are not finite numbers"),
        ],
    )
    def test_vectors_of_a_wrong_shape_or_without_numbers_are_refused(self, make_trainer, tmp_path, found, message):
        np.save(tmp_path / "bad.npy", found)
        with pytest.raises(ValueError, match=f"`item_text_vectors`: .*{message}"):
            make_trainer(item_text_vectors=str(tmp_path / "bad.npy"))

    def test_a_missing_file_a_missing_column_and_a_model_without_item_vectors_are_refused(self, make_trainer):
        with pytest.raises(FileNotFoundError, match="`item_text_vectors`: There is no nonesuch.npy"):
            make_trainer(item_text_vectors="nonesuch.npy")
        with pytest.raises(ValueError, match="names 'plot', which no item has"):
            make_trainer(item_text_columns=["plot"])
        with pytest.raises(ValueError, match="MFModel does not read item vectors"):
            make_trainer(model=network((MFModel, MFConfig)), item_text_columns=["title"])
        with pytest.raises(ValueError, match="give the trainer the `catalog`"):
            make_trainer(item_text_columns=["title"], catalog=None)
