"""One recommender, many threads: each call gets the lists that it gets alone."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.item_tokens import ItemTokens, SequenceKnowledge
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.controls import LastItemRecommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
from hf_rec.recommenders.retrieval import RetrievalRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


HISTORIES = [[100], [], [105] * 7, [108, 109, 110, 111]]


@pytest.fixture(autouse=True)
def quick_switches():
    """Threads take turns often, so that what they share shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def make(tiny_catalog, bpe_tokenizer, tiny_lm, tmp_path):
    def language_model(adapted=False, kind="llama"):
        model = tiny_lm(kind)
        if adapted:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(
                model,
                LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False, lora_dropout=0.5),
            )
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        csr = ItemTrie.build(prompt.encode_items()).csr()
        return LanguageModelRecommender(model, bpe_tokenizer, tiny_catalog, prompt, csr)

    def collaborative():
        model = tiny_lm("llama")
        torch.manual_seed(0)
        knowledge = SequenceKnowledge(SASRecModel(SASRecConfig(num_items=12, hidden_size=8)), "both", user_token=True)
        start = model.get_input_embeddings().num_embeddings
        ItemTokens(knowledge, start).attach(model)
        ItemTokens.of(model).wrap(model)
        prompt = Prompt(bpe_tokenizer, tiny_catalog, item_token_start=start, user_token=True)
        csr = ItemTrie.build(prompt.encode_items()).csr()
        return LanguageModelRecommender(model, bpe_tokenizer, tiny_catalog, prompt, csr)

    def reranked():
        prompt = RerankPrompt(bpe_tokenizer, tiny_catalog, "letters", None, 4, max_length=400)
        judge = Reranker(tiny_lm("llama"), bpe_tokenizer, tiny_catalog, prompt)
        return RerankedRecommender(control(), judge, 4)

    def sequence():
        config = SASRecConfig(num_items=12, hidden_size=8, dropout=0.5, initializer_range=0.5)
        return SequenceRecommender(SASRecModel(config), tiny_catalog)

    def retrieval():
        teacher = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, catalog_sha256=tiny_catalog.sha256))
        teacher.save_pretrained(tmp_path / "teacher")
        tiny_lm().save_pretrained(tmp_path / "lm")
        model = LLMSRecModel.from_frozen(tmp_path / "lm", tmp_path / "teacher", vector_size=6, head_size=16)
        return RetrievalRecommender(model, bpe_tokenizer, tiny_catalog, RetrievalPrompt(bpe_tokenizer, tiny_catalog))

    def control():
        return LastItemRecommender(tiny_catalog, [{"history": [0, 1, 2], "target": 3, "supervise_from": 0}])

    kinds = {
        "language model": language_model,
        "adapter": lambda: language_model(adapted=True),
        "encoder-decoder": lambda: language_model(kind="t5"),
        "sequence": sequence,
        "retrieval": retrieval,
        "control": control,
        "collaborative": collaborative,
        "re-ranked": reranked,
        "fused": lambda: FusedRecommender([language_model(), control()], [0.6, 0.4]),
    }
    return lambda kind: kinds[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        *("language model", "adapter", "encoder-decoder", "collaborative", "sequence", "retrieval"),
        *("control", "fused", "re-ranked"),
    ],
)
def test_lists_from_many_threads_are_those_from_one(make, kind):
    recommender = make(kind)
    model = getattr(recommender, "model", None)
    if model is not None:
        model.train()
    expected = [recommender.recommend([history], k=5, num_beams=7) for history in HISTORIES]
    fresh = make(kind)  # whatever a first call sets up, threads set up together
    if model is not None:
        fresh.model.load_state_dict(model.state_dict())
        fresh.model.train()
    for num_threads in (1, 2, 4, 8):
        start = threading.Barrier(num_threads)

        def work(first, start=start):
            start.wait(timeout=60)
            order = HISTORIES[first % 4 :] + HISTORIES[: first % 4]
            return order, [fresh.recommend([history], k=5, num_beams=7) for history in order]

        with ThreadPoolExecutor(num_threads) as pool:
            results = [pool.submit(work, first) for first in range(num_threads)]
        for result in results:
            for history, found in zip(*result.result(), strict=True):
                alone = expected[HISTORIES.index(history)]
                assert found.item_ids == alone.item_ids
                np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5, atol=1e-5)
                assert found.certified.tolist() == alone.certified.tolist()
    assert model is None or fresh.model.training


def test_a_model_stays_in_evaluation_mode_until_its_last_user_is_done():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model.train()
    model[1].eval()
    first, second = evaluation_mode(model), evaluation_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.training and not model[0].training
    second.__exit__(None, None, None)
    assert model.training and model[0].training and not model[1].training


def test_items_are_encoded_once_however_many_threads_ask_first(make, monkeypatch):
    recommender, calls = make("retrieval"), []
    encode = recommender.vectors.items
    monkeypatch.setattr(recommender.vectors, "items", lambda: calls.append(1) or encode())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: recommender.index, range(4)))
    assert len(calls) == 1
