"""
Users per CPU second of the trie search against `generate()`, on the same model.

python benchmarks/recommend.py [--users 32 --num_beams 20 --vocab_size 8000 --hidden_size 256 --batch_size 8]

- generate, fair: `generate(num_beams, length_penalty=0)` with a vectorised mask from a flat trie, and with keys and
  values of the prompt computed once a user, as a good engineer would write it;
- generate, published: with a Python `prefix_allowed_tokens_fn` over nested dictionaries, as in published code;
- ours, full_vocab: the same scores, so the lists must be the same, which is checked;
- ours, valid: the default, log P_valid; a beam ends once one item is left.

The model is a small random one; all ways rank the ten best of the catalog for the same users, in one process and in
turns. Titles are those of Books where HF_REC_DATA is set, else generated ones.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.models.language.from_scratch import new_tokenizer
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


HISTORY = 10  # items
K = 10


def make_catalog() -> Catalog:
    folder = os.environ.get("HF_REC_DATA")
    if folder:
        titles = json.loads(Path(folder, "msl_amazon_books/id2name4Rec.json").read_text(encoding="utf-8"))
        return Catalog.from_records([{"item_id": key, "title": title} for key, title in titles.items()])
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioulnrstmk"), rng.integers(3, 9))) for _ in range(3000)]
    lengths = rng.integers(2, 9, size=6344)
    return Catalog.from_records(
        {"item_id": row, "title": " ".join(words[word % 3000] for word in rng.zipf(1.3, length))}
        for row, length in enumerate(lengths)
    )


def make_model(args: argparse.Namespace, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(args.vocab_size, len(tokenizer)),
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        initializer_range=0.1,  # so that a random model has preferences
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


class TrieMask(LogitsProcessor):
    """Plain constrained decoding: what the trie does not have is `-inf`, what it has keeps its score."""

    def __init__(self, trie: TrieCSR, prompt_length: int, separator: int):
        self.trie, self.prompt_length, self.separator = trie, prompt_length, separator

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nodes = torch.full((len(input_ids),), self.trie.root)
        for column in input_ids[:, self.prompt_length :].unbind(dim=1):
            nodes = self.trie.step(nodes, column)
        children = self.trie.children(nodes)
        children = torch.where(children >= 0, children, children[:, :1])
        children = torch.where(children >= 0, children, self.separator)  # after a whole item
        return torch.full_like(scores, -torch.inf).scatter_(1, children, scores.gather(1, children))


def prefix_function(recommender: LanguageModelRecommender, width: int, separator: int):
    """Tokens that may follow, from nested dictionaries."""
    root = {}
    for path in recommender.prompt.encode_items():
        node = root
        for token in path:
            node = node.setdefault(token, {})

    def allowed(user, tokens):
        node = root
        for token in tokens[width:].tolist():
            node = node.get(token, {})
        return list(node) or [separator]

    return allowed


def read_prompts(model, input_ids, attention_mask, num_beams: int) -> DynamicCache:
    """Keys and values of all prompt tokens but the last, read once a user and copied to each beam."""
    mask = attention_mask[:, :-1]
    positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(num_beams)
    return cache


@torch.no_grad()
def generate_lists(
    recommender: LanguageModelRecommender, rows: list[list[int]], num_beams: int, batch_size: int, fair: bool
):
    """Token paths and scores for each user, by `generate()`."""
    (separator,) = recommender.prompt.separator_ids
    lists = []
    for start in range(0, len(rows), batch_size):
        input_ids, attention_mask = recommender.prompt_tokens(rows[start : start + batch_size])
        width = input_ids.shape[1]
        config = GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=K,
            length_penalty=0.0,
            max_new_tokens=recommender.trie.max_depth,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=separator,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        if fair:
            constraint = {
                "logits_processor": [TrieMask(recommender.trie, width, separator)],
                "past_key_values": read_prompts(recommender.model, input_ids, attention_mask, num_beams),
            }
        else:
            constraint = {"prefix_allowed_tokens_fn": prefix_function(recommender, width, separator)}
        out = recommender.model.generate(
            input_ids, attention_mask=attention_mask, generation_config=config, **constraint
        )
        for path, score in zip(out.sequences[:, width:].tolist(), out.sequences_scores.tolist(), strict=True):
            lists.append((tuple(path[: path.index(separator) + 1]), score))
    return [lists[start : start + K] for start in range(0, len(lists), K)]


def searched_lists(recommender: LanguageModelRecommender, histories, num_beams: int):
    """Like `generate_lists`, by `recommend`: one entry for each path, as items of one title share it."""
    found = recommender.recommend(histories, k=K, num_beams=num_beams)
    lists = []
    for items, scores in zip(found.item_ids, found.scores.tolist(), strict=True):
        paths = [tuple(recommender.prompt.encode_item(row)) for row in recommender.catalog.rows(items)]
        lists.append(list(dict(zip(paths, scores, strict=False)).items()))
    return lists, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(
        users=32, num_beams=20, vocab_size=8000, hidden_size=256, layers=4, batch_size=8, threads=2, repeats=2
    )
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    catalog = make_catalog()
    tokenizer = new_tokenizer([catalog.text(row) for row in range(len(catalog))], 8000)
    prompt = Prompt(tokenizer, catalog)
    csr = ItemTrie.build(prompt.encode_items()).csr()
    model = make_model(args, tokenizer)
    valid, full = (
        LanguageModelRecommender(model, tokenizer, catalog, prompt, csr, scoring=scoring, batch_size=args.batch_size)
        for scoring in ("valid", "full_vocab")
    )
    rng = np.random.default_rng(0)
    rows = sorted(
        rng.integers(len(catalog), size=(args.users, HISTORY)).tolist(),
        key=lambda row: -len(prompt.encode_history(row)),
    )
    histories = [[catalog.ids[row] for row in history] for history in rows]
    shortest, longest = len(prompt.encode_history(rows[-1])), len(prompt.encode_history(rows[0]))
    print(f"{csr}\nprompts of {shortest} .. {longest} tokens, {model.num_parameters():,} weights")

    ways = {
        "generate, fair": lambda: generate_lists(valid, rows, args.num_beams, args.batch_size, fair=True),
        "generate, published": lambda: generate_lists(valid, rows, args.num_beams, args.batch_size, fair=False),
        "ours, full_vocab": lambda: searched_lists(full, histories, args.num_beams),
        "ours, valid": lambda: searched_lists(valid, histories, args.num_beams),
    }
    seconds, results = dict.fromkeys(ways, float("inf")), {}
    for _ in range(args.repeats):
        for name, run in ways.items():
            start = time.process_time()
            results[name] = run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    print(f"{'':20} {'users/CPU s':>12} {'of fair':>9} {'of published':>13}")
    for name, value in seconds.items():
        ratios = [seconds[f"generate, {way}"] / value for way in ("fair", "published")]
        print(f"{name:20} {args.users / value:12.2f} {ratios[0]:8.2f}x {ratios[1]:12.2f}x")

    fair, listed, (searched, _), (_, found) = results.values()
    agree = sum(
        [path for path, _ in one] == [path for path, _ in other] for one, other in zip(fair, listed, strict=True)
    )
    print(f"identical lists of both ways to generate: {agree} of {len(listed)}")
    same = [
        [path for path, _ in one[: len(other)]] == [path for path, _ in other]
        for one, other in zip(listed, searched, strict=True)
    ]
    gap = max(
        abs(dict(one).get(path, score) - score)
        for one, other in zip(listed, searched, strict=True)
        for path, score in other
    )
    print(f"identical lists under full_vocab: {sum(same)} of {len(same)}, scores differ by at most {gap:.1e}")
    print(f"certified lists under valid: {found.certified.sum()} of {len(found.certified)}")
    if not all(same) or seconds["generate, fair"] < 5 * seconds["ours, valid"]:
        raise SystemExit("The claim does not hold: identical lists, and 5 times the users of a fair generate().")


if __name__ == "__main__":
    main()
