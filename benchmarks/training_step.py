"""
A whole training step of a small LM with a large vocabulary, against what a good engineer writes without the library.

python benchmarks/training_step.py [--vocab_size 128256 --hidden_size 512 --layers 4 --batch_size 4 --length 384]

Masked softmax, the same loss three ways:
- msl    `MSLTrainer`
- fair   the head at the answer's branching positions only, then the children of their nodes gathered from rows of V
         logits; columns and positions made ahead
- dense  logits `[B, T, V]` and a boolean mask made ahead, as in the published code
Plain fine-tuning, the same loss two ways:
- lml    `MSLTrainer(loss_type="lml")`
- trl    `trl.SFTTrainer` with its compact head on, which it takes by itself on a GPU only

A step is forward, backward and AdamW, on LoRA weights or with `--full` on all, without the data loader. Rows are
prompts of Books titles where HF_REC_DATA is set, else of generated ones, filled to about `--length` tokens. The ways
alternate in one process; CPU seconds, the best of several.
"""

import argparse
import tempfile
import time

import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trie_loss import item_titles
from trl import SFTConfig, SFTTrainer

from hf_rec import Catalog, MSLConfig, MSLTrainer
from hf_rec.columns import HISTORY, IGNORE_INDEX, LABELS, TARGET
from hf_rec.data.collators import padded
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.models.language.from_scratch import new_tokenizer


def make_model(args: argparse.Namespace):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=args.length,
    )
    model = LlamaForCausalLM(config)
    return model if args.full else get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))


def make_trainers(args: argparse.Namespace, folder: str) -> tuple[MSLTrainer, MSLTrainer, SFTTrainer]:
    """Ours for both losses, which share a model, and TRL's, all for the same rows."""
    titles = item_titles()
    catalog = Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(titles)])
    tokenizer = new_tokenizer(titles, 8000)
    generator = torch.Generator().manual_seed(1)
    events = torch.randint(0, len(titles), (args.batch_size, args.length // 4), generator=generator).tolist()
    rows = Dataset.from_dict({HISTORY: [row[:-1] for row in events], TARGET: [row[-1] for row in events]})
    shared = {
        "per_device_train_batch_size": args.batch_size,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 10**6,
        "gradient_checkpointing": False,
    }
    model, ours = make_model(args), []
    for loss_type in ("msl", "lml"):
        config = MSLConfig(f"{folder}/{loss_type}", loss_type=loss_type, max_length=args.length, **shared)
        ours.append(MSLTrainer(model, config, rows, processing_class=tokenizer, catalog=catalog))
    trl.trainer.utils._use_triton = lambda device: True
    skip = {"skip_prepare_dataset": True}
    config = SFTConfig(f"{folder}/trl", bf16=False, max_length=None, dataset_kwargs=skip, **shared)
    rows = ours[0].train_dataset
    theirs = SFTTrainer(make_model(args), config, train_dataset=rows, processing_class=tokenizer)
    return *ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        vocab_size=32_000, hidden_size=256, layers=4, batch_size=4, length=192, repeats=6, threads=1
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--full", action="store_true", help="train all weights, not LoRA")
    parser.add_argument("--no-dense", action="store_true", help="leave the slow way out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        msl, lml, sft = make_trainers(args, folder)
    rows = list(msl.train_dataset)
    batches = {"msl": msl.data_collator(rows), "lml": lml.data_collator(rows), "trl": sft.data_collator(rows)}
    model, csr = msl.model, msl.csr
    lengths, input_ids, labels = map(torch.as_tensor, padded(rows, 0))
    real = torch.arange(labels.shape[1]) < lengths[:, None]
    inputs = {"input_ids": input_ids, "attention_mask": real.long(), "use_cache": False}
    # The same targets, on rows that are not cut
    ahead = TrieTargets.from_batch(batches["msl"])
    positions = ahead.positions + ahead.groups * (labels.shape[1] - batches["msl"][LABELS].shape[1])
    children = csr.children(ahead.nodes)
    if not args.no_dense:
        allowed = torch.ones(*labels.shape, args.vocab_size, dtype=torch.bool)
        targets = torch.full(labels.shape, IGNORE_INDEX)
        for position, token, row in zip(positions.tolist(), ahead.tokens.tolist(), children, strict=True):
            targets.view(-1)[position] = token
            allowed.view(-1, args.vocab_size)[position] = False
            allowed.view(-1, args.vocab_size)[position, row[row >= 0]] = True

    def fair():
        base = model if args.full else model.get_base_model()
        hidden = base.model(**inputs).last_hidden_state.flatten(0, 1)
        logits = base.lm_head(hidden.index_select(0, positions))
        return masked_softmax_loss(logits, ahead.tokens, children).mean()

    def dense():
        logits = model(**inputs).logits.masked_fill(~allowed, -torch.inf)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)

    ways = {
        "msl": lambda: msl.compute_loss(model, batches["msl"]),
        "fair": fair,
        "dense": dense,
        "lml": lambda: lml.compute_loss(model, batches["lml"]),
        "trl": lambda: sft.compute_loss(sft.model, dict(batches["trl"])),
    }
    if args.no_dense:
        del ways["dense"]
    optimizers = {
        name: torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=0.0)
        for name, network in {"ours": model, "trl": sft.model}.items()
    }
    best, losses = {}, {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            optimizer = optimizers.get(name, optimizers["ours"])
            (sft.model if name == "trl" else model).train()
            begin = time.process_time()
            loss = way()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.process_time() - begin
            best[name] = min(best.get(name, seconds), seconds)
            losses[name] = loss.item()
    print(f"msl against fair: {best['fair'] / best['msl']:.2f}x faster")
    print(f"lml against trl: {best['trl'] / best['lml']:.2f}x faster")
    if "dense" in best:
        print(f"msl against dense: {best['dense'] / best['msl']:.1f}x faster")
    for name, seconds in best.items():
        print(f"{name:6} {seconds:8.3f} CPU s a step, loss {losses[name]:.5f}")


if __name__ == "__main__":
    main()
