"""
A small causal LM and its tokenizer, made from a catalog's texts: for experiments where no pretrained model is wanted.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_rec.models.language.whole_words import WholeWordT5Config, WholeWordT5Model


def new_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer, which can write any text.

    Args:
        texts (iterable of `str`): What to learn from, such as the titles of a catalog.
        vocab_size (`int`): Most tokens, at least 258: 256 bytes and two special ones, which is what there is without
            texts.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: With `<|endoftext|>` as beginning and end, and `<|pad|>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|pad|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise ValueError(f"`vocab_size` must be at least 258 (256 bytes and special tokens), got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[1]
    )


def new_causal_lm(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    dropout: float = 0.2,
    max_length: int = 512,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """
    Build a GPT-2 with random weights.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Gives the vocabulary and the special ids.
        hidden_size (`int`), num_layers (`int`), num_heads (`int`): The size.
        dropout (`float`, *optional*, defaults to `0.2`): Of embeddings, attention and residuals.
        max_length (`int`, *optional*, defaults to `512`): Positions.
        seed (`int`, *optional*, defaults to `0`): Of the weights; the global random state is left as it was.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=hidden_size,
        n_layer=num_layers,
        n_head=num_heads,
        n_positions=max_length,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def new_seq2seq_lm(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 6,
    head_size: int = 64,
    feed_forward_size: int = 1024,
    dropout: float = 0.1,
    seed: int = 0,
    word_end_token_id: int | None = None,
) -> T5ForConditionalGeneration:
    """
    Build a T5 with random weights; the default size is that of TIGER (https://huggingface.co/papers/2305.05065).

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Gives the vocabulary and the special ids. The decoder begins with its
            padding token.
        hidden_size (`int`): Width.
        num_layers (`int`): Blocks of the encoder, and as many of the decoder.
        num_heads (`int`), head_size (`int`): Attention heads, and the width of each.
        feed_forward_size (`int`): Width between the two layers of a feed-forward block.
        dropout (`float`, *optional*, defaults to `0.1`): Of embeddings, attention, feed-forward and residuals.
        seed (`int`, *optional*, defaults to `0`): Of the weights; the global random state is left as it was.
        word_end_token_id (`int`, *optional*): Token that ends each item of a history. With it the model is a
            [`WholeWordT5Model`], by default a plain T5.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "d_kv": head_size,
        "d_ff": feed_forward_size,
        "dropout_rate": dropout,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if word_end_token_id is None:
            return T5ForConditionalGeneration(T5Config(**settings))
        return WholeWordT5Model(WholeWordT5Config(word_end_token_id=word_end_token_id, **settings))
