"""T5 with a vector for each item of the history, added to all tokens of that item."""

import torch
from peft import LoraConfig, get_peft_model

from hf_rec.hub import load_recommender, save_recommender
from hf_rec.models.language.whole_words import WholeWordT5Config, WholeWordT5Model
from hf_rec.models.loading import load_language_model


def make(seed=0, **settings):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    tokens = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WholeWordT5Model(WholeWordT5Config(word_end_token_id=9, **sizes, **tokens, **settings)).eval()


def test_tokens_of_an_item_share_an_index_and_late_items_share_the_last():
    encoder = make(max_words=3).encoder
    rows = torch.tensor([[4, 5, 9, 6, 9, 7, 9, 7, 9], [9, 9, 4, 4, 9, 0, 0, 0, 0]])
    assert encoder.word_index(rows).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 2, 2, 2, 2, 2, 2, 2]]


@torch.no_grad()
def test_the_encoder_adds_one_vector_an_item_to_the_embeddings_of_its_tokens():
    model = make()
    rows = torch.tensor([[4, 5, 9, 6, 9]])
    words = model.encoder.word_embeddings.weight[[0, 0, 0, 1, 1]]
    found = model.encoder(input_ids=rows).last_hidden_state
    by_hand = model.encoder(inputs_embeds=model.shared(rows) + words).last_hidden_state
    torch.testing.assert_close(found, by_hand)
    assert not torch.allclose(found, model.encoder(inputs_embeds=model.shared(rows)).last_hidden_state)


@torch.no_grad()
def test_a_folder_brings_the_vectors_back_without_code(tmp_path):
    model, rows = make(max_words=7), torch.tensor([[4, 5, 9, 6, 9]])
    model.save_pretrained(tmp_path)
    loaded = load_language_model(tmp_path).eval()
    assert type(loaded) is WholeWordT5Model and loaded.config.word_end_token_id == 9
    assert torch.equal(loaded.encoder.word_embeddings.weight, model.encoder.word_embeddings.weight)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    start = torch.tensor([[0]])
    assert torch.equal(
        loaded(input_ids=rows, decoder_input_ids=start).logits, model(input_ids=rows, decoder_input_ids=start).logits
    )


def test_search_and_generate_see_the_vectors(tiny_catalog, bpe_tokenizer, generated_scores, tmp_path):
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.trie.item_trie import ItemTrie

    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    model = make(seed=1)
    model.resize_token_embeddings(len(bpe_tokenizer), mean_resizing=False)
    model.encoder.config.word_end_token_id = model.config.word_end_token_id = prompt.separator_ids[-1]
    trie = ItemTrie.build(prompt.encode_items())
    save_recommender(
        tmp_path,
        catalog=tiny_catalog,
        kind="language_model",
        prompt=prompt,
        trie=trie,
        tokenizer=bpe_tokenizer,
        model=model,
    )
    recommender = load_recommender(tmp_path, device="cpu")
    found = recommender.recommend([[100, 105, 107]], k=12)
    scores = torch.tensor(found.scores[0]).unique().flip(0)
    generated = torch.from_numpy(generated_scores(recommender, [0, 5, 7]))
    torch.testing.assert_close(generated, scores, rtol=1e-4, atol=1e-4)
    recommender.model.encoder.word_embeddings.weight.data.zero_()
    without = recommender.recommend([[100, 105, 107]], k=12)
    assert abs(without.scores[0] - found.scores[0]).max() > 1e-3


def test_an_adapter_leaves_the_vectors_in_place():
    model = make()
    rows, start = torch.tensor([[4, 5, 9, 6, 9]]), torch.tensor([[0]])
    before = model(input_ids=rows, decoder_input_ids=start).logits
    adapted = get_peft_model(model, LoraConfig(target_modules=["q"], task_type="SEQ_2_SEQ_LM")).eval()
    torch.testing.assert_close(adapted(input_ids=rows, decoder_input_ids=start).logits, before)
