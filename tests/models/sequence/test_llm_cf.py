"""In-context examples of a sequence model: which rows are found, by exhaustive search, and what they change."""

import math

import pytest
import torch

from hf_rec import LLMCFModel, LLMCFModelConfig, SASRecConfig, SASRecModel
from hf_rec.models.sequence.examples import ExampleIndex


N, R, E = 12, 30, 6


def draw(*shape, high=N, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stored():
    """Rows of unlike length, some items twice."""
    histories = draw(R, E)
    lengths = draw(R, high=E, seed=1)[:, None] + 1
    histories = torch.where(torch.arange(E) >= E - lengths, histories, -1)
    return histories, draw(R, seed=2), draw(R, high=100, seed=3)


@pytest.fixture
def index(stored):
    index = ExampleIndex(R, E, 0, N)
    index.fill(*stored, None)
    return index


def similarities(histories, query):
    """Cosine of two sets of items, weighted by how few rows hold an item; row by row."""
    rows = [set(row) - {-1} for row in histories.tolist()]
    weight = [math.log((1 + R) / (1 + sum(item in row for row in rows))) + 1 for item in range(N)]
    query = set(query) - {-1}

    def length(items):
        return math.sqrt(sum(weight[item] ** 2 for item in items))

    return [sum(weight[item] ** 2 for item in row & query) / max(length(row) * length(query), 1e-9) for row in rows]


def by_search(stored, query, count, before=None, user=None, users=None):
    histories, targets, times = stored
    found = []
    for row, value in enumerate(similarities(histories, query)):
        allowed = value > 0 and targets[row].item() not in query
        allowed = allowed and (before is None or times[row] < before) and (users is None or users[row] != user)
        if allowed:
            found.append((value + 1e-5 * row / (R - 1), row))
    return [row for _, row in sorted(found, reverse=True)[:count]]


@pytest.mark.parametrize("bounded", [False, True])
def test_examples_are_those_of_an_exhaustive_search(stored, index, bounded):
    queries = torch.cat([torch.full((20, 1), -1), draw(20, 3, seed=5)], dim=1)
    before, users, own = draw(20, high=100, seed=6), draw(R, high=4, seed=7), draw(20, high=4, seed=8)
    more = {"before": before, "users": own, "users_of_rows": users} if bounded else {}
    found = index.find(queries, 4, **more)
    for place, query in enumerate(queries.tolist()):
        limits = (before[place].item(), own[place], users) if bounded else ()
        expected = by_search(stored, query, 4, *limits)
        assert found[place].tolist() == expected + [-1] * (4 - len(expected))


def test_what_comes_next_in_an_example_is_new_to_the_history_and_an_empty_one_has_none(stored, index):
    histories, targets, _ = stored
    own = torch.cat([histories, targets[:, None]], dim=1)
    found = index.find(own, 4)
    for row, examples in enumerate(found.tolist()):
        assert row not in examples  # the user's own row, whose target the user has
        assert all(targets[example].item() not in own[row].tolist() for example in examples if example >= 0)
    assert index.find(torch.full((1, 3), -1), 4).eq(-1).all()


@pytest.fixture
def make_model(stored):
    def build(texts=None, **settings):
        torch.manual_seed(0)
        config = LLMCFModelConfig(num_items=N, hidden_size=8, max_length=6, example_length=E, dropout=0.0, **settings)
        model = LLMCFModel(config)
        model.set_examples(*stored, texts)
        return model.eval()

    return build


def test_without_weight_it_is_sasrec_and_with_it_every_kind_of_part_is_read(make_model):
    model = make_model(texts=torch.randn(R, 5))
    model.config.feature_weight = 0.5
    histories = torch.tensor([[-1, 1, 2], [3, 4, 5]])
    plain = SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=6, dropout=0.0)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    output = model(histories)
    torch.testing.assert_close(output.user_vector, plain(histories).user_vector + 0.5 * output.feature)
    torch.testing.assert_close(output.last_hidden_state, plain(histories).last_hidden_state)
    output.feature.square().sum().backward()
    used = model.examples.find(histories, 4)
    used = used[used >= 0].unique()
    assert len(used)
    for rows in (model.examples.targets[used].long(), model.examples.histories[used].flatten().long()):
        assert model.item_embedding.weight.grad[rows[rows >= 0] + 1].abs().sum(dim=1).gt(0).all()
    assert model.text_input.weight.grad.abs().sum() > 0


def test_places_read_the_examples_they_are_given(make_model):
    model = make_model()
    histories, examples = torch.tensor([[-1, 1, 2], [3, 4, 5]]), torch.tensor([[3, 7, -1, -1], [9, -1, -1, -1]])
    at_end = model(histories, examples=examples)
    at_places = model(histories, examples=examples, places=torch.tensor([2, 5]))
    torch.testing.assert_close(at_places.last_hidden_state[:, -1], at_end.user_vector)
    torch.testing.assert_close(at_places.last_hidden_state[:, 0], at_end.last_hidden_state[:, 0])
    none = model(histories, examples=torch.full((2, 4), -1))
    assert none.feature.eq(0).all()
    order = model(histories, examples=examples.flip(1))  # a set, padded on either side
    torch.testing.assert_close(order.feature, at_end.feature)


def test_a_loaded_model_finds_and_reads_the_same(make_model, tmp_path):
    model = make_model(texts=torch.randn(R, 5), reconstructs_text=False)
    model.save_pretrained(tmp_path)
    loaded = LLMCFModel.from_pretrained(tmp_path, trust_remote_code=False).eval()
    histories = draw(9, 3, seed=5)
    assert torch.equal(loaded.examples.find(histories, 4), model.examples.find(histories, 4))
    torch.testing.assert_close(loaded.user_vectors(histories), model.user_vectors(histories))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`num_examples` must be at least 1, got 0"):
        LLMCFModelConfig(num_examples=0)
    with pytest.raises(ValueError, match="`num_decoder_heads` must divide `hidden_size` = 64, got 5"):
        LLMCFModelConfig(num_decoder_heads=5)
