"""
What re-ranking a user's candidates costs with the user's part of the prompt read once, against whole prompts.

python benchmarks/rerank.py
"""

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rec.search.answer_logits import answer_logits
from hf_rec.trie.item_trie import ItemTrie


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=args.width,
        intermediate_size=4 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    draw = torch.Generator().manual_seed(1)
    users = [torch.randint(2000, (args.prompt,), generator=draw).tolist() for _ in range(args.users)]
    lists = [torch.randint(2000, (args.candidates, args.item), generator=draw).tolist() for _ in users]
    columns, probe = torch.tensor([1, 2]), ItemTrie.build([[token] for token in range(8)]).csr()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    found = {}
    for _ in range(1 + args.repeats):  # the first round also probes the model
        for shared in (True, False):
            start = time.process_time()
            with torch.no_grad():
                found[shared] = answer_logits(model, users, lists, columns, probe, shared)
            seconds[shared].append(time.process_time() - start)
    gap = max(float((a - b).abs().max()) for a, b in zip(found[True], found[False], strict=True))
    best = {shared: min(times[1:]) / args.users for shared, times in seconds.items()}
    print(f"{args.candidates} candidates of {args.item} tokens behind {args.prompt}, CPU seconds a user:")
    print(f"shared {best[True]:.3f}, whole {best[False]:.3f}: {best[False] / best[True]:.1f}x; largest gap {gap:.1g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--prompt", type=int, default=400, help="tokens that all candidates share")
    parser.add_argument("--item", type=int, default=24, help="tokens of a candidate and the question behind it")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args())
