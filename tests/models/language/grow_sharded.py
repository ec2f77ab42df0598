"""A model that ZeRO-3 keeps in pieces grows by path tokens: `grow_sharded.py BASE OUT`, on CPU processes."""

import os
import sys


os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from hf_rec.models.language.path_tokens import grow_vocabulary, num_rows
from hf_rec.processes import end_processes


def main(base: str, out: str) -> None:
    deepspeed.init_distributed("gloo")
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    rows = num_rows(model)
    assert config.is_zero3() and model.get_input_embeddings().weight.numel() == 0, "the weights are in pieces"
    grow_vocabulary(model, rows + 3, [rows, rows + 1, rows + 2], seed=1)
    assert num_rows(model) == rows + 3
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.save(whole, f"{out}/{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_processes()
