"""The two autoencoders of A-LLMRec: what they encode, what stays frozen, and what is known of items without events."""

import pytest
import torch
from transformers import AutoModel

from hf_rec.models.a_llmrec.model import ALLMRecModel
from hf_rec.models.sequence.gru4rec import GRU4RecConfig, GRU4RecModel
from hf_rec.models.sequence.mf import MFConfig, MFModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel


N, D, T, J = 12, 8, 5, 6


def sasrec():
    torch.manual_seed(0)
    return SASRecModel(SASRecConfig(num_items=N, hidden_size=D, max_length=6, dropout=0.5, catalog_sha256="abc"))


def texts():
    return torch.randn(N, T, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def model():
    return ALLMRecModel.from_parts(sasrec(), texts(), seen_items=range(10), joint_size=J)


class TestVectors:
    def test_joint_vectors_by_hand(self, model):
        teacher, joint = sasrec(), model.joint_vectors()
        scale = teacher.item_vectors()[:10].square().mean().rsqrt()
        by_item = torch.sigmoid(model.item_encoder(teacher.item_vectors() * scale))
        by_text = torch.sigmoid(model.text_encoder(texts() / texts().square().mean().sqrt()))
        assert joint.shape == (N, J)
        torch.testing.assert_close(joint[:10], by_item[:10])
        torch.testing.assert_close(joint[10:], by_text[10:])  # which no event speaks of
        torch.testing.assert_close(model.joint_vectors(torch.tensor([[11, 0]])), joint[[11, 0]][None])

    def test_scores_go_through_the_decoder(self, model):
        teacher, history = sasrec().eval(), torch.tensor([[1, 5, 2]])
        user = teacher.user_vectors(history)
        expected = user @ (model.item_decoder(model.joint_vectors()) / model.item_scale).t()
        torch.testing.assert_close(model.score_items(model.user_vectors(history)), expected)
        some = torch.tensor([[3, 11]])
        torch.testing.assert_close(model.score_items(user, some), expected[:, [3, 11]])

    def test_an_event_that_was_never_seen_is_left_out(self, model):
        with_it, without = torch.tensor([[1, 11, 2, 10]]), torch.tensor([[1, 2]])
        torch.testing.assert_close(model.user_vectors(with_it), model.user_vectors(without))

    def test_biases_are_those_of_the_sequence_model_and_their_mean_for_what_is_new(self):
        torch.manual_seed(0)
        teacher = MFModel(MFConfig(num_items=N, hidden_size=D))
        teacher.output_bias.weight.data[1:, 0] = torch.arange(N).float()
        model = ALLMRecModel.from_parts(teacher, texts(), seen_items=range(10), joint_size=J)
        assert model.item_bias().tolist() == [*range(10), 4.5, 4.5]
        assert model.item_bias(torch.tensor([[11, 2]])).tolist() == [[4.5, 2.0]]


class TestForward:
    def test_outputs_have_the_shapes_they_say(self, model):
        items = torch.tensor([[3, 4], [5, 6], [7, 8]])
        outputs = model(torch.tensor([[-1, 0, 1], [2, 3, 4]]), torch.tensor([2, 4, 5]), items)
        shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        assert shapes == {
            "user_vectors": (3, D),
            "scores": (3, 2),
            "item_vectors": (3, 2, D),
            "rebuilt_items": (3, 2, D),
            "text_vectors": (3, 2, T),
            "rebuilt_texts": (3, 2, T),
            "item_joints": (3, 2, J),
            "text_joints": (3, 2, J),
        }
        everything = model.score_items(outputs.user_vectors)
        torch.testing.assert_close(outputs.scores, everything.gather(1, items))

    def test_a_gradient_goes_to_the_part_that_it_is_of(self, model):
        model.train()
        assert not model.sequence_model.training
        inputs = (torch.tensor([[0, 1]]), torch.tensor([1]), torch.tensor([[3, 4]]))
        expected = {
            "scores": {"item_encoder", "item_decoder"},
            "item_joints": {"item_encoder"},
            "text_joints": {"text_encoder"},
            "rebuilt_items": {"item_encoder", "item_decoder"},
            "rebuilt_texts": {"text_encoder", "text_decoder"},
        }
        for name, parts in expected.items():
            model.zero_grad()
            model(*inputs)[name].sum().backward()
            assert {key.split(".")[0] for key, param in model.named_parameters() if param.grad is not None} == parts

    def test_a_model_that_is_not_causal_gives_the_user_of_each_row(self):
        torch.manual_seed(0)
        teacher = GRU4RecModel(GRU4RecConfig(num_items=N, hidden_size=D)).eval()
        model = ALLMRecModel.from_parts(teacher, texts(), joint_size=J)
        rows, items = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5]])
        outputs = model(rows, torch.tensor([1]), items, whole_rows=False)
        torch.testing.assert_close(outputs.user_vectors, teacher.user_vectors(rows)[1:])


def test_a_folder_holds_everything(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded) is ALLMRecModel and loaded.config.catalog_sha256 == "abc"
    torch.testing.assert_close(loaded.joint_vectors(), model.joint_vectors(), rtol=0, atol=0)
    history = torch.tensor([[1, 5, 2]])
    torch.testing.assert_close(loaded.user_vectors(history), model.user_vectors(history), rtol=0, atol=0)
    assert not any(param.requires_grad for param in loaded.sequence_model.parameters())


@pytest.mark.parametrize(
    "vectors, message",
    [
        (torch.ones(N - 1, T), r"shape \(12, width\), .* got \(11, 5\)"),
        (torch.ones(N), r"got \(12,\)"),
        (texts().index_fill(0, torch.tensor([7]), torch.nan), "NaN or infinity for 1 items, .* row 7"),
        (torch.zeros(N, T), "text vectors have the mean square 0"),
    ],
)
def test_text_vectors_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        ALLMRecModel.from_parts(sasrec(), vectors)


def test_other_models_are_refused(tiny_lm):
    with pytest.raises(ValueError, match="must be a sequence model of `hf_rec.models`, got GPT2LMHeadModel"):
        ALLMRecModel.from_parts(tiny_lm(), texts())
    with pytest.raises(ValueError, match="knows no item"):
        ALLMRecModel.from_parts(sasrec(), texts(), seen_items=[])
