"""
Vectors of a catalog of 10,000 items, and lists for 10,000 users.

python benchmarks/encode_catalog.py [--data prepared/books --items 10000 --hidden_size 256 --layers 4]

Baseline: whole prompts in catalog order, padded to the longest of a batch. Ours: batches of prompts of about equal
length behind a prefix that is read once. Then users: each is encoded once; all lists come from a matrix product in
chunks, against one product and sort a user.
"""

import argparse
import time

import torch
from llm_srec_epoch import make_catalog, make_frozen, make_rows

from hf_rec import Catalog, LLMSRecModel
from hf_rec.columns import ATTENTION_MASK, HISTORY, HISTORY_TIMESTAMPS, INPUT_IDS, SLOT_ITEMS
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.recommenders.item_index import ItemIndex
from hf_rec.recommenders.prompt_vectors import PromptVectors


@torch.no_grad()
def in_catalog_order(model: LLMSRecModel, prompt: RetrievalPrompt, batch_size: int) -> torch.Tensor:
    """Every item from its first token, in batches as they come."""
    vectors = []
    prefix = torch.tensor(prompt.item_prefix)
    embed = model.language_model.get_input_embeddings()
    for start in range(0, len(prompt), batch_size):
        inputs = prompt.item_inputs(range(start, min(start + batch_size, len(prompt))))
        ids, mask, slots = (inputs[name] for name in (INPUT_IDS, ATTENTION_MASK, SLOT_ITEMS))
        words = embed(ids)
        row, column = (slots >= 0).nonzero(as_tuple=True)
        words[row, column] = model._slot_vectors(slots[row, column])
        everyone, last = torch.arange(len(ids)), mask.sum(dim=1) - 1
        words[everyone, last] = model.item_query.weight
        words = torch.cat([embed(prefix).expand(len(ids), -1, -1), words], dim=1)
        mask = torch.cat([mask.new_ones(len(ids), len(prefix)), mask], dim=1)
        states = model.language_model(inputs_embeds=words, attention_mask=mask, use_cache=False).last_hidden_state
        vectors.append(model.item_head(states[everyone, last + len(prefix)]))
    return torch.cat(vectors)


def one_user_at_a_time(users: torch.Tensor, items: torch.Tensor, k: int) -> None:
    for user in users:
        (items @ user).sort(descending=True).indices[:k].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        items=10_000,
        users=10_000,
        encoded_users=300,
        hidden_size=256,
        layers=4,
        vocab_size=8000,
        batch_size=64,
        repeats=2,
        threads=1,
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", help="folder of `hf-rec prepare` whose items to encode, in place of generated ones")
    parser.add_argument(
        "--attributes", nargs="*", default=[], help="attributes of its items to write beside the title"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that is shared")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    catalog = make_catalog(args.items) if args.data is None else Catalog.load(args.data)
    tokenizer, language_model, teacher = make_frozen(args, catalog)
    model = LLMSRecModel.from_frozen(language_model, teacher)
    prompt = RetrievalPrompt(tokenizer, catalog, max_item_tokens=128, item_attributes=args.attributes)
    encoder = PromptVectors(model, prompt)
    ways = {"catalog order": lambda: in_catalog_order(model, prompt, args.batch_size), "ours": encoder.items}
    best, vectors = {}, {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            begin = clock()
            vectors[name] = way()
            best[name] = min(best.get(name, float("inf")), clock() - begin)
    difference = (vectors["ours"] - vectors["catalog order"]).abs().max()
    print(
        f"{prompt.item_lengths.mean():.1f} tokens an item (longest {prompt.item_lengths.max()}) behind "
        f"{len(prompt.item_prefix)} shared"
    )
    for name, seconds in best.items():
        print(f"{name:14} {len(catalog) / seconds:8.0f} items a second")
    print(
        f"ours against catalog order: {best['catalog order'] / best['ours']:.1f}x; largest difference {difference:.1e}"
    )

    index = ItemIndex(vectors["ours"], catalog, prompt.sha256, encoder.teacher_items)
    rows = make_rows(args.encoded_users, len(catalog))
    begin = clock()
    encoder.users(list(rows[HISTORY]), list(rows[HISTORY_TIMESTAMPS]))
    encoding = (clock() - begin) / args.encoded_users
    users = torch.randn(args.users, vectors["ours"].shape[1])
    begin = clock()
    index.search(users, 10)
    product = clock() - begin
    begin = clock()
    one_user_at_a_time(users[:500], index.vectors, 10)
    alone = (clock() - begin) / 500 * args.users
    print(
        f"{args.users:,} users: {encoding * args.users:.1f} s to encode each once (from {args.encoded_users} of "
        f"them), {product:.2f} s to search"
    )
    print(f"one matrix product against one user at a time: {alone / product:.1f}x")


if __name__ == "__main__":
    main()
