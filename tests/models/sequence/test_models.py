"""What holds for all sequence models: what a history may be, what it may depend on, and how models are saved."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.utils import hub

import hf_rec
from hf_rec import (
    BERT4RecConfig,
    CaserConfig,
    ESASRecConfig,
    FMLPRecConfig,
    GRU4RecConfig,
    LRURecConfig,
    MFConfig,
    SASRecConfig,
)
from hf_rec.models.sequence.base import SequenceModelConfig
from hf_rec.models.sequence.ragged import RaggedBatch


N, L = 20, 8  # items, longest history
CONFIGS = {
    "sasrec": SASRecConfig(num_items=N, hidden_size=8, max_length=L, num_attention_heads=2),
    "sasrec_query": SASRecConfig(num_items=N, hidden_size=8, max_length=L, residual="query"),
    "esasrec": ESASRecConfig(num_items=N, hidden_size=8, max_length=L, num_attention_heads=2),
    "gru4rec": GRU4RecConfig(num_items=N, hidden_size=8, max_length=L, recurrent_size=6),
    "fmlprec": FMLPRecConfig(num_items=N, hidden_size=8, max_length=L, num_hidden_layers=2, initializer_range=0.5),
    "caser": CaserConfig(num_items=N, hidden_size=8, max_length=L, num_horizontal=3),
    "lrurec": LRURecConfig(num_items=N, hidden_size=8, max_length=L, initializer_range=0.5),
    "mf": MFConfig(num_items=N, hidden_size=8, max_length=L),
    "bert4rec": BERT4RecConfig(num_items=N, hidden_size=8, max_length=L, initializer_range=0.5),
}
HISTORIES = [[3, 7, 1, 19, 0], [5], [2, 2, 4], [0, 1, 2, 3, 4, 5, 6, 7], [11, 12]]


def make(name):
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIGS[name], trust_remote_code=False).eval()


def pad(histories, width=None, side="left"):
    width = width or max(map(len, histories))
    fill = [[-1] * (width - len(history)) for history in histories]
    pairs = zip(fill, histories, strict=True)
    return torch.tensor([f + h if side == "left" else h + f for f, h in pairs], dtype=torch.long).view(-1, width)


@pytest.fixture(params=CONFIGS)
def model(request):
    return make(request.param)


@pytest.fixture(params=[name for name in CONFIGS if make(name).causal])
def causal_model(request):
    return make(request.param)


def test_every_model_has_public_names():
    for config_class in SequenceModelConfig.__subclasses__():
        name = config_class.__name__.removesuffix("Config")
        assert {f"{name}Config", f"{name}Model"} <= set(hf_rec.__all__)


class TestEveryModel:
    def test_histories_in_a_batch_are_read_as_if_alone(self, model):
        together = model.user_vectors(pad(HISTORIES))
        alone = torch.cat([model.user_vectors(torch.tensor([history])) for history in HISTORIES])
        torch.testing.assert_close(together, alone)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("width", [8, 13])
    def test_neither_side_nor_amount_of_padding_matters(self, model, side, width):
        torch.testing.assert_close(model.user_vectors(pad(HISTORIES, width, side)), model.user_vectors(pad(HISTORIES)))

    def test_an_attention_mask_says_the_same_as_minus_one(self, model):
        input_ids = pad(HISTORIES)
        mask = input_ids >= 0
        masked = model.user_vectors(input_ids.masked_fill(~mask, 4), attention_mask=mask.long())
        torch.testing.assert_close(masked, model.user_vectors(input_ids))

    def test_a_row_of_padding_disturbs_no_other_row(self, model):
        input_ids = torch.cat([pad(HISTORIES), torch.full((1, L), -1)])
        vectors = model.user_vectors(input_ids)
        assert vectors.isfinite().all()
        torch.testing.assert_close(vectors[:-1], model.user_vectors(pad(HISTORIES)))
        assert model.user_vectors(input_ids[-1:]).isfinite().all()  # also where it is the whole batch
        for batch in (input_ids, input_ids[-1:]):
            assert (model(input_ids=batch).user_vector[-1] == 0).all()

    def test_of_a_long_history_the_newest_events_are_read(self, model):
        read = L - 1 if model.masked else L
        old, new = torch.tensor([[9, 9, 9, 9]]), torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])[:, :read]
        torch.testing.assert_close(model.user_vectors(torch.cat([old, new], dim=1)), model.user_vectors(new))

    def test_the_order_of_events_matters_but_to_matrix_factorisation(self, model):
        first, second = (model.user_vectors(torch.tensor([history])) for history in ([3, 7, 1], [7, 3, 1]))
        assert torch.allclose(first, second) == (model.config.model_type == "mf")

    def test_an_item_without_a_row_in_the_table_is_named(self, model):
        for wrong in (N + model.num_special_items, -2):
            with pytest.raises(ValueError, match=f"the item {wrong}, but this model knows the items 0..19"):
                model.user_vectors(torch.tensor([[1, wrong]]))

    def test_scores_of_some_items_are_those_among_all(self, model):
        vectors = model.user_vectors(pad(HISTORIES))
        scores = model.score_items(vectors)
        assert scores.shape == (len(HISTORIES), N)
        items = torch.tensor([[1, 5], [0, 19], [3, 3], [4, 2], [18, 17]])
        torch.testing.assert_close(model.score_items(vectors, items), scores.gather(1, items))
        torch.testing.assert_close(model.score_items(vectors, items[0]), scores[:, items[0]])

    def test_a_saved_model_comes_back_through_the_auto_classes(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
        assert type(loaded) is type(model)
        assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)) is type(model.config)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)  # the same bytes
        torch.testing.assert_close(loaded.user_vectors(pad(HISTORIES)), model.user_vectors(pad(HISTORIES)))

    def test_a_model_is_pushed_with_its_config_and_safe_weights(self, model, monkeypatch):
        pushed = {}

        class Api:
            def create_repo(self, repo_id, **kwargs):
                return SimpleNamespace(repo_id=repo_id)

            def create_commit(self, repo_id, operations, **kwargs):
                pushed[repo_id] = {operation.path_in_repo for operation in operations}

        monkeypatch.setattr(hub, "hf_api", Api)
        monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: Mock())
        model.push_to_hub("me/recommender")
        assert {"config.json", "model.safetensors"} <= pushed["me/recommender"]
        assert not [name for name in pushed["me/recommender"] if name.endswith((".bin", ".pt", ".py"))]

    def test_every_weight_gets_a_gradient(self, model):
        model.train()
        vectors = model.user_vectors(pad(HISTORIES))
        F.cross_entropy(model.score_items(vectors), torch.tensor([1, 2, 3, 4, 5])).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        assert model.item_embedding.weight.grad[0].abs().sum() == 0  # padding is not learned

    def test_the_padding_row_starts_at_zero(self, model):
        assert model.item_embedding.weight[0].abs().sum() == 0


class TestCausality:
    def test_an_event_does_not_see_those_after_it(self, causal_model):
        first, second = torch.tensor([[3, 7, 1, 5, 2]]), torch.tensor([[3, 7, 1, 9, 8]])
        before = causal_model(first).last_hidden_state
        after = causal_model(second).last_hidden_state
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert not torch.allclose(before[:, 3:], after[:, 3:])

    def test_the_user_is_the_state_after_the_newest_event(self, causal_model):
        outputs = causal_model(pad(HISTORIES))
        torch.testing.assert_close(outputs.user_vector, outputs.last_hidden_state[:, -1])
        assert outputs.last_hidden_state[1, :-1].abs().sum() == 0  # padding

    def test_a_filter_sees_what_comes_after(self):
        # The guard of `causal = False`: trained at all positions, FMLP-Rec would read its labels
        model = make("fmlprec")
        states = torch.randn(1, L, 8)
        changed = states.clone()
        changed[:, -1] += 1
        filtered = model.blocks[0].filter
        assert not torch.allclose(filtered(states)[:, 0], filtered(changed)[:, 0])
        assert not model.causal and model(torch.tensor([[1, 2]])).last_hidden_state is None

    @pytest.mark.parametrize("length", [7, 8])
    def test_a_filter_at_the_last_position_is_that_of_the_whole_row(self, length):
        config = FMLPRecConfig(num_items=N, hidden_size=8, max_length=length, initializer_range=0.5)
        filtered = AutoModel.from_config(config, trust_remote_code=False).blocks[0].filter
        states = torch.randn(3, length, 8)
        torch.testing.assert_close(filtered.last(states), filtered(states)[:, -1:])

    def test_a_bidirectional_encoder_sees_what_comes_after(self):
        model = make("bert4rec")
        first, second = torch.tensor([[3, 7, 1]]), torch.tensor([[3, 7, 2]])
        assert not torch.allclose(model(first).last_hidden_state[:, 0], model(second).last_hidden_state[:, 0])


class TestGRU4Rec:
    @pytest.mark.parametrize("layers", [1, 2])
    def test_rows_in_packed_form_are_the_padded_rows_one_after_the_other(self, layers):
        torch.manual_seed(0)
        model = AutoModel.from_config(
            GRU4RecConfig(num_items=N, hidden_size=8, max_length=L, num_hidden_layers=layers),
            trust_remote_code=False,
        )
        model.eval()
        states = model(pad([*HISTORIES, []], side="right")).last_hidden_state
        for found, history in zip(states, HISTORIES, strict=False):
            expected = model.dense(model.gru(model.item_embedding(torch.tensor([history]) + 1))[0])[0]
            torch.testing.assert_close(found[: len(history)], expected)


class TestLinearRecurrence:
    """States of all events at once, against one step after the other."""

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_doubling_gives_the_states_of_a_loop(self, side):
        generator = torch.Generator().manual_seed(0)
        batch = RaggedBatch(pad([*HISTORIES, []], 11, side) >= 0)
        inputs = torch.randn(len(batch.cells), 3, dtype=torch.complex64, generator=generator)
        decay = torch.polar(torch.tensor([0.99, 0.8, 1.0]), torch.tensor([0.0, 3.0, 6.0]))
        found, given = batch.pad(batch.linear_recurrence(inputs, decay)), batch.pad(inputs)
        for row, mask in enumerate(pad([*HISTORIES, []], 11, side) >= 0):
            state = torch.zeros(3, dtype=torch.complex64)
            for place in mask.nonzero().flatten():
                state = decay * state + given[row, place]
                torch.testing.assert_close(found[row, place], state)

    def test_gradients_are_those_of_the_loop(self):
        batch = RaggedBatch(pad([[1, 2, 3], [4]]) >= 0)  # the single event comes first
        inputs = torch.randn(4, 2, dtype=torch.complex128, requires_grad=True)
        decay = torch.tensor([0.5 + 0.5j, -0.9j], dtype=torch.complex128, requires_grad=True)
        assert torch.autograd.gradcheck(batch.linear_recurrence, (inputs, decay))
        one, first, second, third = inputs
        expected = torch.stack([one, first, decay * first + second, decay * (decay * first + second) + third])
        torch.testing.assert_close(batch.linear_recurrence(inputs, decay), expected)

    def test_an_event_is_the_same_to_the_last_bit_whatever_else_is_in_the_batch(self):
        batch, inputs = RaggedBatch(pad(HISTORIES) >= 0), torch.randn(19, 4)
        together = batch.pad(batch.linear_recurrence(inputs, torch.full((4,), 0.9)))
        given = batch.pad(inputs)
        for row, history in enumerate(HISTORIES):
            alone = RaggedBatch(torch.ones(1, len(history), dtype=torch.bool))
            states = alone.linear_recurrence(given[row, -len(history) :], torch.full((4,), 0.9))
            assert torch.equal(states, together[row, -len(history) :])


class PublishedLRU(nn.Module):
    """A recurrent unit of the published code, with complex weights and one event after the other."""

    def __init__(self, unit):
        super().__init__()
        real, imaginary = (unit.input.weight.unflatten(0, (-1, 2))[:, part] for part in (0, 1))
        self.input, self.input_bias = torch.complex(real, imaginary), unit.input.bias.view(-1, 2)
        real, imaginary = unit.output.weight.unflatten(1, (-1, 2)).unbind(-1)
        self.output = torch.complex(real, -imaginary)  # Re((a - ib)(x + iy)) = ax + by
        self.output_bias = unit.output.bias
        self.decay = torch.exp(torch.complex(-unit.decay_log.exp(), unit.angle_log.exp()))
        self.gamma = unit.scale_log.exp()

    def forward(self, states):
        bias, state, outputs = torch.view_as_complex(self.input_bias), 0, []
        for x in states:
            state = self.decay * state + self.gamma * (self.input @ x.to(torch.complex64) + bias)
            outputs.append((self.output @ state).real + self.output_bias)
        return torch.stack(outputs)


class TestLRURec:
    def test_it_is_the_published_network_one_event_after_the_other(self):
        model = make("lrurec")
        items = torch.tensor(HISTORIES[0])
        states = model.embedding_norm(model.item_embedding(items + 1))
        for block in model.blocks:
            states = block.unit_norm(PublishedLRU(block.unit)(states) + states)
            states = block.feed_forward_norm(block.outer(F.gelu(block.inner(states))) + states)
        torch.testing.assert_close(model(items[None]).last_hidden_state[0], states, rtol=1e-4, atol=1e-5)
        scores = model.score_items(states[-1:])
        torch.testing.assert_close(scores, states[-1:] @ model.item_vectors().t() + model.item_bias())
        assert model.item_bias().abs().sum() > 0

    def test_a_state_starts_in_the_ring_between_the_radii_and_is_kept_at_a_like_size(self):
        unit = (
            AutoModel.from_config(LRURecConfig(num_items=N, hidden_size=512), trust_remote_code=False).blocks[0].unit
        )
        radius = unit.factors().abs()
        assert 0.8 <= radius.min() < 0.81 and 0.98 < radius.max() <= 0.99
        angle = unit.angle_log.exp()
        assert 0 < angle.min() < 0.1 and 6.1 < angle.max() < 6.3
        torch.testing.assert_close(unit.scale_log.exp() ** 2 + radius**2, torch.ones_like(radius))

    def test_radii_outside_the_unit_circle_are_refused(self):
        for radii in ((0.9, 0.8), (0.5, 1.0), (-0.1, 0.5)):
            with pytest.raises(ValueError, match=f"`smallest_radius` must be at least 0 .* got {radii[0]} and"):
                LRURecConfig(smallest_radius=radii[0], largest_radius=radii[1])


class TestMF:
    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_the_user_is_the_sum_of_the_factors_of_the_history_over_a_power_of_its_length(self, power):
        config = MFConfig(num_items=N, hidden_size=8, max_length=L, length_power=power)
        model = AutoModel.from_config(config, trust_remote_code=False).eval()
        vectors = model.user_vectors(pad(HISTORIES))
        for found, history in zip(vectors, HISTORIES, strict=True):
            expected = sum(model.history_embedding.weight[item + 1] for item in history) / len(history) ** power
            torch.testing.assert_close(found, expected)
        nn.init.normal_(model.output_bias.weight)
        expected = vectors @ model.item_embedding.weight[1:].t() + model.output_bias.weight[1:, 0]
        torch.testing.assert_close(model.score_items(vectors), expected)

    def test_a_power_beyond_the_mean_is_refused(self):
        with pytest.raises(ValueError, match=r"`length_power` must be between 0 \(sum\) and 1 \(mean\), got 1.5"):
            MFConfig(length_power=1.5)


class TestBERT4Rec:
    def test_the_user_is_what_fills_a_hidden_event_behind_the_history(self):
        model = make("bert4rec")
        hidden = torch.tensor([[3, 7, 1, model.mask_item]])
        torch.testing.assert_close(model(hidden).user_vector, model.user_vectors(hidden[:, :3]))


class PublishedSASRec(nn.Module):
    """The network of the SCE paper's code, padding and all, on top of torch's attention module."""

    def __init__(self, model):
        super().__init__()
        self.model, config = model, model.config
        self.attentions = nn.ModuleList()
        for block in model.blocks:
            attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
            source, key_bias = block.attention, torch.randn(config.hidden_size)  # shifts all scores of a query alike
            attention.in_proj_weight.data = torch.cat([source.query.weight, source.key.weight, source.value.weight])
            attention.in_proj_bias.data = torch.cat([source.query.bias, key_bias, source.value_bias])
            attention.out_proj = source.output
            self.attentions.append(attention)

    def forward(self, rows):
        padding = (rows == 0)[..., None]
        states = self.model.item_embedding(rows) * self.model.config.hidden_size**0.5
        states = (states + self.model.position_embedding.weight).masked_fill(padding, 0)
        future = torch.ones(L, L, dtype=torch.bool).triu(1)
        for block, attention in zip(self.model.blocks, self.attentions, strict=True):
            query = block.attention_norm(states)
            attended = attention(query, states, states, attn_mask=future, need_weights=False)[0]
            states = block.feed_forward_norm(attended + (states if block.residual == "input" else query))
            states = states + block.outer(F.relu(block.inner(states)))
            states = states.masked_fill(padding, 0)
        return self.model.norm(states)


@pytest.mark.parametrize("name", ["sasrec", "sasrec_query"])
class TestPublishedSASRec:
    def test_without_padding_it_is_the_published_network(self, name):
        model = make(name)
        for block in model.blocks:
            nn.init.normal_(block.attention.value_bias)
            nn.init.normal_(block.attention.query.bias)
        published = PublishedSASRec(model)
        input_ids = pad(HISTORIES, L)
        expected = published(input_ids + 1)
        real = input_ids >= 0
        torch.testing.assert_close(model(input_ids).last_hidden_state[real], expected[real])
        torch.testing.assert_close(model(pad(HISTORIES, side="right")).user_vector, expected[:, -1])

    def test_gradients_are_those_of_the_published_network(self, name):
        model, input_ids = make(name), pad(HISTORIES, L)
        real = input_ids >= 0
        published = PublishedSASRec(model)
        target = torch.randn(int(real.sum()), 8)
        (published(input_ids + 1)[real] * target).sum().backward()
        expected = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
        for number, attention in enumerate(published.attentions):
            parts = attention.in_proj_weight.grad.chunk(3)
            for part, grad in zip(("query", "key", "value"), parts, strict=True):
                expected[f"blocks.{number}.attention.{part}.weight"] = grad
            expected[f"blocks.{number}.attention.value_bias"] = attention.in_proj_bias.grad.chunk(3)[2]
            expected[f"blocks.{number}.attention.query.bias"] = attention.in_proj_bias.grad.chunk(3)[0]
        model.zero_grad()
        (model(input_ids).last_hidden_state[real] * target).sum().backward()
        found = {key: weight.grad for key, weight in model.named_parameters()}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class TestESASRec:
    """Against the block written out for one row of events, with torch's attention."""

    def test_a_block_adds_gated_attention_and_a_gated_feed_forward_layer(self):
        model = make("esasrec")
        attention = nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        items = torch.tensor([3, 7, 1, 19])
        states = model.item_embedding(items + 1) + model.position_embedding.weight[-4:]
        for block in model.blocks:
            attention.in_proj_weight = block.query_key_value.weight
            attention.in_proj_bias = block.query_key_value.bias
            attention.out_proj = block.output
            normed = block.attention_norm(states)
            future = torch.ones(4, 4, dtype=torch.bool).triu(1)
            attended = attention(normed, normed, normed, attn_mask=future, need_weights=False)[0]
            states = states + torch.sigmoid(block.attention_gate(states)) * attended
            gate, up = block.gate_and_up.weight.chunk(2)
            normed = block.feed_forward_norm(states)
            added = block.down(F.silu(normed @ gate.t()) * (normed @ up.t()))
            states = states + torch.sigmoid(block.feed_forward_gate(states)) * added
        torch.testing.assert_close(model(items[None]).last_hidden_state[0], states)

    def test_settings_that_make_no_sense_are_refused(self):
        with pytest.raises(ValueError, match="`num_attention_heads` must divide `hidden_size` = 64, got 5"):
            ESASRecConfig(num_attention_heads=5)
        with pytest.raises(ValueError, match="`intermediate_size` must be at least 1, got 0"):
            ESASRecConfig(intermediate_size=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_items": 0}, "`num_items` must be a whole number of at least 1, got 0"),
        ({"max_length": 0}, "`max_length` must be"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and less than 1"),
        ({"residual": "both"}, "`residual` must be 'input' or 'query', got 'both'"),
        ({"num_attention_heads": 3}, "`num_attention_heads` must divide `hidden_size` = 64, got 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SASRecConfig(**settings)
