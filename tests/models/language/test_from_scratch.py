"""Small models with random weights."""

import torch
from transformers import AutoModelForSeq2SeqLM

from hf_rec.models.language.from_scratch import new_seq2seq_lm, new_tokenizer


def test_a_seq2seq_model_has_the_shape_of_tiger_and_is_what_its_folder_holds(tmp_path):
    tokenizer = new_tokenizer(["Alien", "Solaris"], 300)
    before = torch.get_rng_state()
    model = new_seq2seq_lm(tokenizer, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    config = model.config
    assert (config.d_model, config.num_layers, config.num_decoder_layers) == (128, 4, 4)
    assert (config.num_heads, config.d_kv, config.d_ff, config.dropout_rate) == (6, 64, 1024, 0.1)
    assert config.decoder_start_token_id == tokenizer.pad_token_id
    # 8 blocks of 4 matrices of attention, 4 more of the decoder's other attention, and 2 of feed-forward each
    blocks = 12 * 4 * 128 * 6 * 64 + 8 * 2 * 128 * 1024
    norms = (4 * 2 + 4 * 3 + 2) * 128
    assert model.num_parameters() == blocks + norms + 2 * 32 * 6 + len(tokenizer) * 128
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert torch.equal(loaded.lm_head.weight, model.shared.weight)
    same = new_seq2seq_lm(tokenizer, seed=3)
    assert torch.equal(same.shared.weight, model.shared.weight)
