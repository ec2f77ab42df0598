"""Collaborative tokens against the sequence model itself, run on each history by hand."""

import copy

import pytest
import torch
from peft import LoraConfig

from hf_rec import GRU4RecConfig, GRU4RecModel, LLMCFModel, LLMCFModelConfig, SASRecConfig, SASRecModel
from hf_rec.item_token_ids import FIRST, UNKNOWN_ROW, candidate_tokens, event_tokens, user_token
from hf_rec.models.a_llmrec.model import ALLMRecModel
from hf_rec.models.language.item_tokens import (
    INPUT_DEVIATION,
    ItemTokens,
    SequenceKnowledge,
    check_item_tokens,
    train_projector,
)
from hf_rec.trainers.causal_lm import add_adapter
from hf_rec.trainers.msl.config import MSLConfig


NUM_ITEMS = 12


def sequence_model(kind="sasrec", max_length=4):
    settings = {"num_items": NUM_ITEMS, "hidden_size": 8, "max_length": max_length}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SASRecModel(SASRecConfig(**settings)) if kind == "sasrec" else GRU4RecModel(GRU4RecConfig(**settings))


@pytest.fixture
def with_tokens(tiny_lm):
    def build(features="item", user_token=False, known=None, kind="gpt2", model=None):
        language_model = tiny_lm(kind)
        vocab_size = language_model.get_input_embeddings().weight.shape[0]
        knowledge = SequenceKnowledge(sequence_model() if model is None else model, features, user_token, known)
        ItemTokens(knowledge, vocab_size).attach(language_model)
        ItemTokens.of(language_model).wrap(language_model)
        return language_model, vocab_size

    return build


def state(model, history, scale):
    return model.eval().user_vectors(torch.tensor([history]))[0] * scale


def test_an_item_embeds_as_the_projection_of_its_scaled_vector(with_tokens):
    model, start = with_tokens("item")
    ids = torch.tensor([[3, *event_tokens(start, [5, 7]), 9]])
    found = model.get_input_embeddings()(ids)[0]
    table = sequence_model().item_vectors()
    layers = model.item_tokens.items
    for place, row in ((1, 5), (2, 7)):
        hidden = layers[0].weight @ (table[row] * INPUT_DEVIATION / table.std(correction=0)) + layers[0].bias
        expected = layers[2].weight @ torch.nn.functional.gelu(hidden) + layers[2].bias
        torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-6)
    words = model.get_input_embeddings().weight
    assert torch.equal(found[0], words[3]) and torch.equal(found[3], words[9])


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_a_state_is_what_the_sequence_model_gives_for_the_row_up_to_there(kind):
    """Rows longer than the model reads, two of them end to end, a candidate, users, and padding on either side."""
    model = sequence_model(kind)
    knowledge = SequenceKnowledge(model, "both", user_token=True)
    start, scale = 50, knowledge.scales["state"]
    one, two = [1, 2, 7, 8, 3, 4], [5, 6]
    ids = [9, *event_tokens(start, one), 9, user_token(start, True), *candidate_tokens(start, [3])]
    packed = [*ids, *event_tokens(start, two), user_token(start, True)]
    rows = [packed, [0] * 5 + event_tokens(start, two).tolist() + [0] * (len(packed) - 7)]
    read = knowledge.read(torch.tensor(rows), start)
    histories = [one[: place + 1] for place in range(6)] + [[*one, 3]] + [two[:1], two] * 2
    for vector, history in zip(read.items, histories, strict=True):
        expected = torch.cat(
            [model.item_vectors()[history[-1]] * knowledge.scales["item"], state(model, history, scale)]
        )
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)
    for vector, history in zip(read.users, [one, two], strict=True):
        torch.testing.assert_close(vector, state(model, history, scale), rtol=1e-5, atol=1e-6)


def test_a_history_that_was_read_before_is_not_computed_again():
    knowledge = SequenceKnowledge(sequence_model(), "state")
    calls, run = [], knowledge.model.user_vectors
    knowledge.model.user_vectors = lambda windows: calls.append(len(windows)) or run(windows)
    one, two = (torch.tensor([event_tokens(50, rows).tolist()]) for rows in ([1, 2, 1, 2, 1, 2], [1, 2, 3]))
    first = knowledge.read(one, 50).items
    again = knowledge.read(one, 50).items
    other = knowledge.read(two, 50).items
    assert calls == [5, 1]  # the fourth and the sixth event end one window; of the other history one is new
    assert torch.equal(first, again) and torch.equal(other[:2], first[:2])
    torch.testing.assert_close(
        other[2], state(run.__self__, [1, 2, 3], knowledge.scales["state"]), rtol=1e-5, atol=1e-6
    )


def test_an_unknown_item_has_a_learned_vector_and_is_no_event(with_tokens):
    known = torch.ones(NUM_ITEMS, dtype=torch.bool)
    known[[2, 4]] = False
    model, start = with_tokens("state", user_token=True, known=known)
    embed = model.get_input_embeddings()
    found = embed(torch.tensor([[*event_tokens(start, [2, 1, 4, 3]), user_token(start, True)]]))[0]
    without = embed(torch.tensor([[*event_tokens(start, [1, 3]), user_token(start, True)]]))[0]
    torch.testing.assert_close(found[[1, 3, 4]], without, rtol=1e-5, atol=1e-6)
    unknown = model.item_tokens.unknown
    assert torch.equal(found[0], unknown[0]) and torch.equal(found[2], unknown[0])
    hidden = torch.tensor([[start + FIRST + UNKNOWN_ROW, start + 1, user_token(start, False)]])
    assert torch.equal(embed(hidden)[0][[0, 2]], unknown)


def test_a_history_of_unknown_items_alone_has_an_unknown_user(with_tokens):
    known = torch.arange(NUM_ITEMS) > 5
    model, start = with_tokens("both", user_token=True, known=known)
    ids = torch.tensor([[*event_tokens(start, [2, 1]), user_token(start, True)]])
    assert torch.equal(model.get_input_embeddings()(ids)[0, 2], model.item_tokens.unknown[1])


def test_joint_vectors_are_another_table(with_tokens):
    model = sequence_model()
    table = torch.randn(NUM_ITEMS, 5, generator=torch.Generator().manual_seed(0))
    object.__setattr__(model, "joint_vectors", lambda: table)
    language_model, start = with_tokens("joint", model=model)
    assert language_model.item_tokens.items[0].weight.shape[1] == 5
    found = language_model.get_input_embeddings()(torch.tensor([event_tokens(start, [3]).tolist()]))[0, 0]
    scaled = table[3] * INPUT_DEVIATION / table.std(correction=0)
    torch.testing.assert_close(found, language_model.item_tokens.items(scaled), rtol=1e-5, atol=1e-6)


def test_every_weight_of_the_projector_gets_a_gradient_where_no_token_is_collaborative(with_tokens):
    model, _ = with_tokens("both", user_token=True)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.item_tokens.parameters())


def test_the_sequence_model_stays_as_it_was_given(with_tokens):
    given = sequence_model().train()
    model, _ = with_tokens("state", model=given)
    kept = ItemTokens.of(model).knowledge.model
    model.train()
    assert given.training and not kept.training and kept is not given
    assert not any(weight.requires_grad for weight in kept.parameters())
    assert all(weight.requires_grad for weight in given.parameters())


def test_a_copy_of_the_model_has_a_projector_of_its_own(with_tokens):
    model, start = with_tokens("item")
    ids = torch.tensor([event_tokens(start, [5, 7]).tolist()])
    before = model.get_input_embeddings()(ids)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.item_tokens.items[2].bias.add_(1)
    torch.testing.assert_close(model.get_input_embeddings()(ids), before, rtol=0, atol=0)
    torch.testing.assert_close(other.get_input_embeddings()(ids), before + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens"]])
def test_an_adapter_trains_a_whole_copy_of_the_projector_and_no_low_rank_one(with_tokens, targets, tmp_path):
    model, start = with_tokens("item", kind="llama")
    ids = torch.tensor([[3, *event_tokens(start, [5, 7])]])
    before = model(input_ids=ids).logits
    config = train_projector(LoraConfig(target_modules=targets, task_type="CAUSAL_LM"), model)
    adapted = add_adapter(model, config, MSLConfig(str(tmp_path), use_cpu=True))
    torch.testing.assert_close(adapted(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad and "item_tokens" in name}
    assert len(trained) == 5 and all(".modules_to_save.default." in name for name in trained)


def test_a_prompt_without_the_tokens_of_the_model_is_refused(with_tokens):
    model, start = with_tokens("item")
    check_item_tokens(ItemTokens.of(model), start, False)
    for wrong in ((None, False), (start + 1, False), (start, True)):
        with pytest.raises(ValueError, match="`prompt` has `item_token_start`"):
            check_item_tokens(ItemTokens.of(model), *wrong)
    with pytest.raises(ValueError, match="`prompt` has `item_token_start`"):
        check_item_tokens(None, start, False)


class TestWhatIsRefused:
    def test_a_model_without_joint_vectors(self):
        with pytest.raises(ValueError, match="`collaborative` is 'joint', but `sequence_model` is a SASRecModel"):
            SequenceKnowledge(sequence_model(), "joint")

    def test_a_language_model(self, tiny_lm):
        with pytest.raises(ValueError, match="must be a sequence model of `hf_rec.models`, got GPT2LMHeadModel"):
            SequenceKnowledge(tiny_lm(), "item")

    def test_vectors_with_nan(self):
        model = sequence_model()
        with torch.no_grad():
            model.item_embedding.weight[3] = torch.nan
        with pytest.raises(ValueError, match="with NaN"):
            SequenceKnowledge(model, "item")

    def test_a_model_that_knows_nothing(self):
        with pytest.raises(ValueError, match="knows no item of the catalog"):
            SequenceKnowledge(sequence_model(), "item", known=torch.zeros(NUM_ITEMS, dtype=torch.bool))


def test_a_model_that_would_find_the_row_it_is_trained_on_is_refused():
    """The example that is most like the history of a training row is that row; what came next there is its label."""
    model = LLMCFModel(LLMCFModelConfig(num_items=NUM_ITEMS, hidden_size=8, max_length=4, example_length=4))
    model.set_examples(torch.tensor([[-1, 1, 5, 2]]), torch.tensor([7]), torch.tensor([0]))
    assert model.examples.find(torch.tensor([[1, 5, 2]]), 1).tolist() == [[0]]
    with pytest.raises(ValueError, match="`sequence_model` is a LLMCFModel, which looks training rows up"):
        SequenceKnowledge(model, "state")
    with pytest.raises(ValueError, match="looks training rows up"):
        SequenceKnowledge(model, "item", user_token=True)
    with pytest.raises(ValueError, match="looks training rows up"):
        ALLMRecModel.from_parts(model, torch.randn(NUM_ITEMS, 4))
    SequenceKnowledge(model, "item")  # vectors of items alone look nothing up
