"""CoLLM: collaborative tokens in prompts of one candidate, first the text alone, then the projector."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hf_rec.hub import load_recommender
from hf_rec.item_token_ids import CANDIDATE, FIRST, USER
from hf_rec.models.language.item_tokens import MODULE, ItemTokens
from hf_rec.models.sequence.mf import MFConfig, MFModel
from hf_rec.trainers.rerank.config import RerankConfig
from hf_rec.trainers.rerank.trainer import RerankTrainer


@pytest.fixture
def rows():
    events = torch.randint(0, 12, (12, 4), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict(
        {
            "user_id": [f"u{row % 3}" for row in range(12)],
            "history": [event[:2] for event in events],
            "disliked": [event[2:3] for event in events],
            "target": [event[3] for event in events],
            "liked": [row % 2 for row in range(12)],
        }
    )


@pytest.fixture
def factors():
    torch.manual_seed(0)
    return MFModel(MFConfig(num_items=12, hidden_size=8, initializer_range=0.9)).eval()


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, rows):
    def build(model, folder, sequence_model=None, peft_config=None, **settings):
        args = RerankConfig(
            str(tmp_path / folder),
            form="yes_no",
            verbalizers=["Y", "N"],
            max_length=400,
            max_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        )
        given = {"processing_class": bpe_tokenizer, "catalog": tiny_catalog, "sequence_model": sequence_model}
        return RerankTrainer(model, args, train_dataset=rows, peft_config=peft_config, **given)

    return build


TOKENS = {"collaborative": "item", "user_token": True}


def test_prompts_hold_a_token_of_each_liked_item_of_the_user_and_of_the_candidate(make_trainer, tiny_lm, factors):
    trainer = make_trainer(tiny_lm("llama"), "run", factors, **TOKENS)
    start = ItemTokens.of(trainer.model).vocab_size
    user, ending = trainer.prompt.encode_user([3, 5], [9]), trainer.prompt.encode_candidates([7])
    assert [token - start for token in user if token >= start] == [3 + FIRST, 5, USER]
    assert [token - start for token in ending if token >= start] == [7 + CANDIDATE]
    knowledge = ItemTokens.of(trainer.model).knowledge
    projector = getattr(trainer.model, MODULE)
    embedded = trainer.model.get_input_embeddings()(torch.tensor([[start + CANDIDATE + 7]]))
    expected = projector.items(factors.item_vectors()[[7]] * knowledge.scales["item"])
    torch.testing.assert_close(embedded[0], expected)


def test_candidates_behind_a_shared_prefix_score_as_in_whole_prompts(make_trainer, tiny_lm, factors):
    reranker = make_trainer(tiny_lm("llama"), "run", factors, **TOKENS).reranker()
    found = reranker.judge([[3, 5], []], [[7, 1, 2], [4, 6]], [[9], []])
    reranker.shared_prefix = False
    for shared, whole in zip(found, reranker.judge([[3, 5], []], [[7, 1, 2], [4, 6]], [[9], []]), strict=True):
        np.testing.assert_allclose(shared, whole, rtol=1e-5, atol=1e-4)
    other = reranker.judge([[3, 11]], [[7]], [[9]])[0]
    assert abs(other[0] - found[0][0]) > 1e-3  # what the user liked matters


def test_the_second_step_trains_the_projector_of_the_merged_model_alone(make_trainer, tiny_lm, factors, tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    first = make_trainer(str(tmp_path / "base"), "first", peft_config=adapter)
    first.train()
    first.save_model()
    text = load_recommender(tmp_path / "first")
    second = make_trainer(str(tmp_path / "first"), "second", factors, freeze_language_model=True, **TOKENS)
    before = {name: weight.clone() for name, weight in second.model.named_parameters()}
    merged = dict(text.model.merge_and_unload().named_parameters())
    second.train()
    for name, weight in second.model.named_parameters():
        if MODULE in name:
            assert name.endswith("unknown") or not torch.equal(weight, before[name])  # every item here is known
        else:
            torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-6)
    second.save_model()
    loaded = load_recommender(tmp_path / "second")
    expected = second.reranker().judge([[3, 5]], [[7, 1]])[0]
    np.testing.assert_allclose(loaded.judge([[3, 5]], [[7, 1]])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_token": True}, "`user_token` needs `collaborative`"),
        ({"freeze_language_model": True}, "`freeze_language_model` leaves nothing to train"),
        ({"collaborative": "item"}, "`sequence_model` and `collaborative` go together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_trainer, tiny_lm, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_lm("llama"), "run", **settings)


def test_a_sequence_model_of_another_catalog_is_refused(make_trainer, tiny_lm):
    other = MFModel(MFConfig(num_items=11, hidden_size=8))
    with pytest.raises(ValueError, match="`sequence_model`"):
        make_trainer(tiny_lm("llama"), "run", other, **TOKENS)
