"""What many tests share: a catalog of twelve films, a tokenizer trained on them, and tiny language models."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from hf_rec.data.catalog import Catalog


torch.set_num_threads(1)

FILMS = [
    "Alien",
    "Aliens",
    "Alien 3",
    "Solaris",
    "Solaris",
    "The Fly",
    "The Fly II",
    'The "Great" Escape, Part 1',
    "七人の侍",
    "Amélie",
    "Stalker",
    "Heat",
]


@pytest.fixture(scope="session")
def tiny_catalog():
    """Twelve films. Title 0 is the beginning of 1 and 2, and 5 that of 6; rows 3 and 4 have the same one."""
    return Catalog.from_records([{"item_id": 100 + row, "title": title} for row, title in enumerate(FILMS)])


@pytest.fixture(scope="session")
def bpe_tokenizer():
    """Byte-level BPE of about 400 tokens trained on the films, with `<s>`, `</s>` and `<pad>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(FILMS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tiny_lm(bpe_tokenizer):
    """
    `tiny_lm(kind="gpt2", vocab_size=None, seed=0)`: a fresh causal LM of two layers and hidden size 32, in eval mode.

    `kind` is `"gpt2"` (tied head) or `"llama"` (untied head); `vocab_size` defaults to that of `bpe_tokenizer`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def build(kind="gpt2", vocab_size=None, seed=0):
        tokens = {
            "vocab_size": vocab_size or len(bpe_tokenizer),
            "bos_token_id": bpe_tokenizer.bos_token_id,
            "eos_token_id": bpe_tokenizer.eos_token_id,
            "pad_token_id": bpe_tokenizer.pad_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "gpt2":
                # Ten times the usual scale of the weights, so that untrained models have preferences to test.
                config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.2, **tokens)
                return GPT2LMHeadModel(config).eval()
            config = LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=512,
                initializer_range=0.2,
                **tokens,
            )
            return LlamaForCausalLM(config).eval()

    return build
