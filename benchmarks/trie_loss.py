"""
Cost of the masked softmax loss: ours against the fair plain way, and against dense logits with a boolean mask.

python benchmarks/trie_loss.py [--vocab_size 128256 --hidden_size 1024 --batch_size 4 --length 384 --answer 16]

- dense: logits `[B, T, V]`, a boolean mask `[B, T, V]`, log-softmax over what is left (the published code's way);
- fair: the head at the branching positions only, the children of each position gathered from rows of V logits;
- ours: `valid_logits`, the head on the columns that the trie allows.

Each way runs in a process of its own, with indices made ahead: time in CPU seconds is the best of several runs of
forward and backward to the hidden states, memory the growth of the peak resident size over what inputs and head take.
The trie holds the Books titles where HF_REC_DATA is set, else generated titles, with token ids spread over the
vocabulary. The head is frozen.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from hf_rec.columns import DEAD_NODE, IGNORE_INDEX
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.models.language.from_scratch import new_tokenizer
from hf_rec.trainers.trie_logits import root_children, valid_logits
from hf_rec.trie.item_trie import ItemTrie


class HeadOnly(nn.Module):
    """The last layer of a causal LM, as a model of its own."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False).requires_grad_(False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, hidden: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(hidden))


def item_titles() -> list[str]:
    """The Books titles where HF_REC_DATA is set, else generated ones."""
    folder = os.environ.get("HF_REC_DATA")
    if folder:
        return list(json.loads(Path(folder, "msl_amazon_books/id2name4Rec.json").read_text()).values())
    words = [f"word{number}" for number in range(900)]
    return [f"{words[i % 900]} {words[i * 7 % 900]} {words[i * 31 % 877]}" for i in range(6344)]


def item_paths(vocab_size: int) -> list[list[int]]:
    """Token paths of the titles, their ids spread over the vocabulary."""
    titles = item_titles()
    tokenizer = new_tokenizer(titles, 8000)
    spread = torch.randperm(vocab_size - 1, generator=torch.Generator().manual_seed(0))[: len(tokenizer)] + 1
    return [[*spread[tokenizer(title)["input_ids"]].tolist(), 0] for title in titles]


def make_batch(args: argparse.Namespace, trie: ItemTrie, paths: list[list[int]]):
    """Hidden states, labels whose last tokens are real paths of at least the answer's length, cut, and the targets."""
    torch.manual_seed(0)
    csr = trie.csr()
    long_paths = [path for path in paths if len(path) >= args.answer][: args.batch_size]
    labels = torch.full((args.batch_size, args.length), IGNORE_INDEX)
    nodes = torch.full_like(labels, DEAD_NODE)
    for row, path in enumerate(long_paths):
        node = torch.tensor(csr.root)
        for step, token in enumerate(path[: args.answer]):
            labels[row, args.length - args.answer + step] = token
            nodes[row, args.length - args.answer + step] = node
            node = csr.step(node, torch.tensor(token))
    rows, columns = ((nodes >= 0) & (csr.num_children[nodes.clamp(min=0)] > 1)).nonzero(as_tuple=True)
    found = (rows * args.length + columns - 1, labels[rows, columns], rows, nodes[rows, columns])
    targets = TrieTargets.among_children(*(part.numpy() for part in found), csr)  # as the collator does
    return torch.randn(args.batch_size, args.length, args.hidden_size), labels, nodes, targets, csr


def dense_loss(model, hidden, labels, mask):
    logits = model(hidden).logits[:, :-1]
    logits = logits.masked_fill(~mask[:, 1:], -torch.inf)
    flat = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return flat


def fair_loss(model, hidden, targets, children):
    logits = model(hidden.flatten(0, 1).index_select(0, targets.positions)).logits
    return masked_softmax_loss(logits, targets.tokens, children).sum()


def our_loss(model, head, hidden, targets, root_tokens):
    return valid_logits(model, head, {"hidden": hidden}, targets, root_tokens).losses(1.0).sum()


def measure(way: str, args: argparse.Namespace, queue) -> None:
    torch.set_num_threads(args.threads)
    paths = item_paths(args.vocab_size)
    hidden, labels, nodes, targets, csr = make_batch(args, ItemTrie.build(paths), paths)
    children, root_tokens = csr.children(targets.nodes), root_children(csr)
    model = HeadOnly(args.hidden_size, args.vocab_size)
    head = CompactHead.install(model)

    def step():
        leaf = hidden.clone().requires_grad_()
        if way == "dense":
            mask = torch.zeros(*labels.shape, args.vocab_size, dtype=torch.bool)
            for row, column in (labels != IGNORE_INDEX).nonzero().tolist():
                mask[row, column, csr.children(nodes[row, column][None])[0]] = True
            mask[labels == IGNORE_INDEX] = True
            begin = time.process_time()  # the published code makes its masks ahead of training
            loss = dense_loss(model, leaf, labels, mask)
        else:
            begin = time.process_time()
            if way == "fair":
                loss = fair_loss(model, leaf, targets, children)
            else:
                loss = our_loss(model, head, leaf, targets, root_tokens)
        loss.backward()
        return time.process_time() - begin, loss.item(), leaf.grad.norm().item()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = step()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    runs = [step() for _ in range(2 if way == "dense" else args.repeats)]
    queue.put(
        {"seconds": min(run[0] for run in [first, *runs]), "loss": first[1], "grad": first[2], "mib": memory / 1024}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        vocab_size=128_256, hidden_size=1024, batch_size=4, length=384, answer=16, repeats=20, threads=2
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = {}
    for way in ("fair", "dense", "ours"):
        queue = context.SimpleQueue()
        process = context.Process(target=measure, args=(way, args, queue))
        process.start()
        process.join()
        results[way] = queue.get()
    print(f"{'way':8}{'seconds':>12}{'extra MiB':>12}{'loss':>12}{'gradient':>12}")
    for way, result in results.items():
        print(f"{way:8}{result['seconds']:12.5f}{result['mib']:12.1f}{result['loss']:12.5f}{result['grad']:12.5f}")
    ours = results["ours"]
    for way in ("fair", "dense"):
        other = results[way]
        print(
            f"ours against {way}: {other['seconds'] / ours['seconds']:.1f}x faster, "
            f"{100 * ours['mib'] / max(other['mib'], 1e-9):.1f} % of its extra memory, "
            f"loss differs by {abs(other['loss'] - ours['loss']) / abs(other['loss']):.1e} (relative)"
        )


if __name__ == "__main__":
    main()
