"""
A whole training step of a small LM with a large vocabulary: ours against dense logits with a boolean mask.

python benchmarks/training_step.py [--vocab_size 128256 --hidden_size 512 --layers 4 --batch_size 4 --length 384]

A step is forward, backward and AdamW on LoRA weights; body and head are the same Llama blocks in both ways, which
alternate in one process. The trie is that of benchmarks/trie_loss.py.
"""

import argparse
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trie_loss import item_paths, make_batch

from hf_rec.columns import IGNORE_INDEX
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.trie_logits import labelled_positions, valid_logits
from hf_rec.trie.item_trie import ItemTrie


def make_model(args: argparse.Namespace):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        vocab_size=128_256, hidden_size=512, layers=4, batch_size=4, length=384, answer=16, repeats=4, threads=2
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    paths = item_paths(args.vocab_size)
    hidden, labels, nodes, csr = make_batch(args, ItemTrie.build(paths), paths)
    input_ids = torch.randint(1, args.vocab_size, labels.shape)
    input_ids[labels != IGNORE_INDEX] = labels[labels != IGNORE_INDEX]
    mask = torch.zeros(*labels.shape, args.vocab_size, dtype=torch.bool)  # made ahead of training, as published
    mask[labels == IGNORE_INDEX] = True
    for row, column in (labels != IGNORE_INDEX).nonzero().tolist():
        mask[row, column, csr.children(nodes[row, column][None])[0]] = True
    forced = (nodes >= 0) & (csr.num_children[nodes.clamp(min=0)] == 1)
    labelled = labelled_positions(labels.masked_fill(forced, IGNORE_INDEX), nodes)

    model = make_model(args)
    head = CompactHead.install(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.0)

    def dense():
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].masked_fill(~mask[:, 1:], -torch.inf)
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    def ours():
        return valid_logits(model, head, {"input_ids": input_ids}, labelled, csr).losses(1.0).sum()

    best, losses = {}, {}
    for _ in range(args.repeats):
        for way in (dense, ours):
            begin = time.perf_counter()
            loss = way()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - begin
            best[way.__name__] = min(best.get(way.__name__, seconds), seconds)
            losses[way.__name__] = loss.item()
    for name, seconds in best.items():
        print(f"{name:6} {seconds:8.3f} s a step, loss {losses[name]:.5f}")
    print(f"ours against dense: {best['dense'] / best['ours']:.1f}x faster")


if __name__ == "__main__":
    main()
