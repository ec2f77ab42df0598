"""
An epoch of LLM-SRec: ours against the published loop.

python benchmarks/llm_srec_epoch.py [--data prepared/books --hidden_size 256 --layers 4 --users 200 --repeats 3]

The published loop, for every batch: runs the teacher again, reads the prompts of all users and of four candidates each
from their first token, puts vectors into their embeddings one position at a time, and computes the LM head, of which
nothing is used. It is given ready-made tokens here, so that both read the same ones; with `sample by sample` it reads
one user and that user's candidates at a time. Ours is `LLMSRecTrainer.compute_loss`. A step is forward, backward and
Adam (at a rate of 0, so that losses can be compared); the two ways alternate in one process.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rec import Catalog, LLMSRecConfig, LLMSRecModel, LLMSRecTrainer
from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, INPUT_IDS, SEEN, SLOT_ITEMS, TARGET
from hf_rec.data.prepare import load_prepared
from hf_rec.models.language.from_scratch import new_tokenizer
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel


def make_catalog(num_items: int, seed: int = 0) -> Catalog:
    """Titles of 1 to 20 words, 5 on average."""
    draw = np.random.default_rng(seed)
    words = ["".join(draw.choice(list("aeioubcdfglmnprst"), draw.integers(3, 9))) for _ in range(3000)]
    sizes = np.clip(draw.lognormal(1.4, 0.6, num_items).astype(int), 1, 20)
    return Catalog.from_records(
        [{"item_id": row, "title": " ".join(draw.choice(words, size))} for row, size in enumerate(sizes)]
    )


def make_rows(num_users: int, num_items: int, seed: int = 1) -> Dataset:
    """Histories of 4 to 30 items, the lengths of a 5-core set, of which prompts show the newest 10."""
    draw = np.random.default_rng(seed)
    sizes = np.clip(draw.lognormal(1.9, 0.6, num_users).astype(int), 4, 30)
    histories = [draw.integers(0, num_items, size).tolist() for size in sizes]
    times = [(1_400_000_000 + np.sort(draw.integers(0, 10**8, size))).tolist() for size in sizes]
    return Dataset.from_dict(
        {HISTORY: histories, HISTORY_TIMESTAMPS: times, TARGET: draw.integers(0, num_items, num_users).tolist()}
    )


def make_frozen(args: argparse.Namespace, catalog: Catalog):
    """A tokenizer, a language model with its head, and a teacher."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer((catalog.text(row) for row in range(len(catalog))), args.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    language_model = LlamaForCausalLM(config).eval().requires_grad_(False)
    teacher = SASRecModel(SASRecConfig(num_items=len(catalog), max_length=128)).eval()
    return tokenizer, language_model, teacher


def read_data(args: argparse.Namespace) -> tuple[Catalog, Dataset]:
    """Items, and the training rows of some users, evenly spread."""
    if args.data is None:
        return make_catalog(args.items), make_rows(args.users, args.items)
    catalog, splits, _ = load_prepared(args.data)
    train = splits["train"]
    return catalog, train.select([row * len(train) // args.users for row in range(args.users)])


def make_trainers(args: argparse.Namespace, model, rows, tokenizer, catalog) -> dict[str, LLMSRecTrainer]:
    """The published negatives, and those shared by a batch."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: LLMSRecTrainer(
                model,
                LLMSRecConfig(
                    folder,
                    negatives=negatives,
                    num_negatives=number,
                    use_cpu=True,
                    disable_tqdm=True,
                    save_strategy="no",
                ),
                train_dataset=rows,
                processing_class=tokenizer,
                catalog=catalog,
            )
            for name, negatives, number in (("ours", "random", 3), ("ours, shared negatives", "in_batch", args.shared))
        }


class PublishedLoop:
    """The released training step, over the same weights."""

    def __init__(self, model: LLMSRecModel, language_model, prompt, rows: Dataset, lm_head: bool, one_by_one: bool):
        self.model, self.language_model, self.prompt, self.rows = model, language_model, prompt, rows
        self.lm_head, self.one_by_one = lm_head, one_by_one

    def __call__(self, indices: list[int], negatives: torch.Tensor) -> torch.Tensor:
        rows, model = self.rows[indices], self.model
        users = [self.prompt.encode_user(*row) for row in zip(rows[HISTORY], rows[HISTORY_TIMESTAMPS], strict=True)]
        users = [
            (self.prompt.user_prefix + one[INPUT_IDS], [-1] * len(self.prompt.user_prefix) + one[SLOT_ITEMS])
            for one in users
        ]
        items = []
        for target, others in zip(rows[TARGET], negatives.tolist(), strict=True):
            for item in (target, *others):
                one = {name: part[0].tolist() for name, part in self.prompt.item_inputs([item]).items()}
                prefix = self.prompt.item_prefix
                items.append((prefix + one[INPUT_IDS], [-1] * len(prefix) + one[SLOT_ITEMS]))
        item_vectors = model.item_head(self.all_states(items, model.item_query, 1 + negatives.shape[1]))
        user_vectors = model.user_head(self.all_states(users, model.user_query, 1))
        longest = max(map(len, rows[HISTORY]))
        histories = torch.tensor([[-1] * (longest - len(one)) + one for one in rows[HISTORY]])
        with torch.no_grad():
            teacher = model.sequence_model.user_vectors(histories)
        teacher = model.teacher_head(teacher)
        scores = (item_vectors.view(len(users), -1, item_vectors.shape[1]) @ user_vectors[:, :, None]).squeeze(2)
        loss = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
        user_vectors, teacher = F.normalize(user_vectors), F.normalize(teacher)
        uniformity = sum(torch.pdist(part).pow(2).mul(-2).exp().mean() for part in (user_vectors, teacher))
        return loss + F.mse_loss(user_vectors, teacher) + uniformity

    def all_states(self, prompts, query: torch.nn.Embedding, size: int) -> torch.Tensor:
        size = size if self.one_by_one else len(prompts)
        return torch.cat([self.states(prompts[at : at + size], query) for at in range(0, len(prompts), size)])

    def states(self, prompts: list[tuple[list[int], list[int]]], query: torch.nn.Embedding) -> torch.Tensor:
        """Last hidden states at the queries of whole, padded prompts."""
        longest = max(len(ids) for ids, _ in prompts)
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in prompts])
        words = self.language_model.get_input_embeddings()(padded)
        spliced = []
        for row, (ids, slots) in enumerate(prompts):
            one = words[row]
            for place, item in enumerate(slots):
                if item >= 0:
                    vector = self.model.item_scale * self.model.sequence_model.item_vectors(torch.tensor([item]))
                    vector = self.model.item_projection(vector)
                    one = torch.cat([one[:place], vector, one[place + 1 :]])
            spliced.append(torch.cat([one[: len(ids) - 1], query.weight, one[len(ids) :]]))
        words = torch.stack(spliced)
        if self.lm_head:
            states = self.language_model(
                inputs_embeds=words, output_hidden_states=True, use_cache=False
            ).hidden_states[-1]
        else:
            states = self.language_model.model(inputs_embeds=words, use_cache=False).last_hidden_state
        return states[torch.arange(len(prompts)), torch.tensor([len(ids) - 1 for ids, _ in prompts])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        hidden_size=256,
        layers=4,
        vocab_size=8000,
        items=5000,
        users=100,
        batch_size=20,
        shared=16,
        repeats=3,
        threads=1,
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", help="folder of `hf-rec prepare`, in place of generated items and users")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that is shared")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    catalog, rows = read_data(args)
    tokenizer, language_model, teacher = make_frozen(args, catalog)
    torch.manual_seed(0)
    model = LLMSRecModel.from_frozen(language_model, teacher)
    trainers = make_trainers(args, model, rows, tokenizer, catalog)
    model.train()
    published = {
        name: PublishedLoop(model, language_model, trainers["ours"].prompt, rows, head, one_by_one)
        for name, head, one_by_one in (
            ("published", True, False),
            ("published, no LM head", False, False),
            ("published, sample by sample", True, True),
        )
    }
    optimizer = torch.optim.Adam(
        [param for param in model.parameters() if param.requires_grad], lr=0.0, betas=(0.9, 0.98)
    )
    batches = [
        list(range(start, start + args.batch_size))
        for start in range(0, args.users - args.batch_size + 1, args.batch_size)
    ]
    best, losses = {}, {}

    def epoch(name: str) -> None:
        seconds, values = 0.0, []
        for indices in batches:
            trainer = trainers.get(name, trainers["ours"])
            inputs = trainer.data_collator([trainer.train_dataset[index] for index in indices])
            negatives = trainers["ours"].negatives.by_user(0, torch.from_numpy(inputs[SEEN]))
            begin = clock()
            if name in published:
                loss = published[name](indices, negatives)
            else:
                inputs = trainer.data_collator([trainer.train_dataset[index] for index in indices])
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds += clock() - begin
            values.append(loss.item())
        best[name] = min(best.get(name, seconds), seconds)
        losses[name] = values

    for _ in range(args.repeats):
        for name in (*published, *trainers):
            epoch(name)
    tokens = sum(map(len, trainers["ours"].train_dataset[INPUT_IDS])) / args.users
    parameters = sum(param.numel() for param in language_model.model.parameters())
    print(
        f"{parameters:,} frozen parameters without head, {tokens:.0f} tokens a user, {len(batches)} steps of "
        f"{args.batch_size}"
    )
    for name, seconds in best.items():
        print(f"{name:28} {seconds:7.2f} s an epoch, loss of the first batch {losses[name][0]:.6f}")
    worst = max(abs(one - other) for one, other in zip(losses["published"], losses["ours"], strict=True))
    print(f"largest difference of the loss: {worst:.1e}")
    for name in trainers:
        for other in published:
            print(f"{name} against {other}: {best[other] / best[name]:.1f}x faster")


if __name__ == "__main__":
    main()
