"""What many tests share: a catalog of twelve films, a tokenizer trained on them, and tiny language models."""

import os
import socket
import subprocess
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from hf_rec.data.catalog import Catalog


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

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


ROOT = Path(__file__).parents[1]


def run_command(words: list[object], timeout: float = 240) -> None:
    """Run a command from the root of the repository; what it and its children wrote is in the assertion."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | os.environ
    done = subprocess.run(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stdout[-12000:]}"


@pytest.fixture(scope="session")
def launch():
    """
    `launch(*words, processes=2)`: run a Python script, or `-m` and a module, on so many processes. Each line of output
    says its rank; the store listens on a port that the system picks.
    """

    def run(*words, processes=2):
        if processes == 1:
            return run_command([sys.executable, *words])
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--tee", "3", f"--nproc_per_node={processes}"]
        return run_command([sys.executable, *torchrun, *words])

    return run


@pytest.fixture(scope="session")
def accelerate_launch():
    """
    `accelerate_launch(config, *words)`: start a script as `accelerate launch --config_file CONFIG` does.

    The port that accelerate is told stays taken until the end, so it lets the system pick another one. A port that it
    finds free itself may be taken by the time it is used.
    """

    def run(config, *words):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = ("--main_process_port", taken.getsockname()[1])
            launcher = [sys.executable, "-m", "accelerate.commands.launch", *port, "--config_file", config]
            run_command([*launcher, *words])

    return run


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
    `tiny_lm(kind="gpt2", vocab_size=None, seed=0)`: a fresh language model of two layers and hidden size 32, in eval
    mode.

    `kind` is `"gpt2"` (tied head), `"llama"` (untied head) or `"t5"` (encoder-decoder, tied and scaled head);
    `vocab_size` defaults to that of `bpe_tokenizer`.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

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
            if kind == "t5":
                layers = {"num_layers": 2, "num_heads": 2}
                config = T5Config(
                    d_model=32, d_kv=16, d_ff=64, decoder_start_token_id=tokens["pad_token_id"], **layers, **tokens
                )
                model = T5ForConditionalGeneration(config)
                for block in model.decoder.block:  # prompts and distances matter, as in a trained model
                    block.layer[1].EncDecAttention.o.weight.data.mul_(4)
                model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.mul_(8)
                return model.eval()
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


@pytest.fixture(scope="session")
def generated_scores():
    """
    `generated_scores(recommender, history)`: scores of the best 11 paths after a history of catalog rows, best first,
    as `generate()` finds them with the recommender's logits processor.
    """

    def run(recommender, history):
        prompt = torch.tensor([recommender.prompt.encode_history(history)])
        length = 1 if recommender.model.config.is_encoder_decoder else prompt.shape[1]
        out = recommender.model.generate(
            prompt,
            logits_processor=[recommender.logits_processor(length)],
            num_beams=11,
            num_return_sequences=11,
            length_penalty=0.0,
            max_new_tokens=recommender.trie.max_depth + 1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        return out.sequences_scores.numpy()

    return run
