"""
A step of Softmax-DPO against a step of SFT on the same rows, and against the published way of running it.

python benchmarks/softmax_dpo_step.py [--hidden_size 512 --layers 4 --batch_size 4 --prompt 384 --answer 16]

A step is forward, backward and AdamW on LoRA weights of a Llama-like model; the ways alternate in one process. Peak
memory is that of two steps, weights included, in a fresh process for each way. The trie is that of
benchmarks/trie_loss.py, each title brought to the length of an answer. Time on a CPU is the time it worked.

- sft          the chosen answers alone, as MSLTrainer trains them
- precomputed  prompt shared, log-probabilities of the reference known
- adapter      prompt shared, reference from the frozen copy of the adapter in the same model
- repeated     as published: the prompt before each of the K + 1 answers, with the same reference as `adapter`
"""

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trie_loss import item_paths

from hf_rec import ItemTrie, SoftmaxDPOConfig, SoftmaxDPOTrainer
from hf_rec.data.collators import PromptCollator
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.losses.trie_softmax import token_cross_entropy
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.trie_logits import root_children, valid_logits, vocabulary_logits


WAYS = ("sft", "precomputed", "adapter", "repeated")


def make_trainer(args: argparse.Namespace, way: str, num_rejected: int, folder: str) -> SoftmaxDPOTrainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = LlamaForCausalLM(config).to(args.device, dtype)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    paths = sorted({tuple(lengthened(path, args.answer)) for path in item_paths(args.vocab_size)})
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(args.batch_size):
        picked = torch.randperm(len(paths), generator=generator)[: 1 + num_rejected].tolist()
        chosen, *rejected = [list(paths[item]) for item in picked]
        prompt = torch.randint(1, args.vocab_size, (args.prompt,), generator=generator).tolist()
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_empty_tokenizer(), pad_token="<pad>", eos_token="<pad>")
    return SoftmaxDPOTrainer(
        model,
        args=SoftmaxDPOConfig(
            folder,
            scoring=args.scoring,
            shared_prefix=way != "repeated",
            precompute_ref_log_probs=way == "precomputed",
            max_length=args.prompt + args.answer,
            per_device_train_batch_size=args.batch_size,
            use_cpu=args.device == "cpu",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        trie=ItemTrie.build(paths),
    )


def lengthened(path: list[int], length: int) -> list[int]:
    """A path of exactly `length` tokens that branches where the given one does: cut, or filled before its end."""
    title = path[:-1][: length - 1]
    return [*title, *[1] * (length - 1 - len(title)), path[-1]]


def _empty_tokenizer() -> Tokenizer:
    return Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))


def step_of(trainer: SoftmaxDPOTrainer, way: str):
    """A function that takes one training step and returns its loss."""
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    optimizer = torch.optim.AdamW([weight for weight in trainer.model.parameters() if weight.requires_grad], lr=0.0)
    head = CompactHead.install(trainer.model)

    # Only the chosen answers, as MSLTrainer trains them
    answers = [[*row["prompt_ids"], *row["chosen_ids"]] for row in trainer.train_dataset]
    labels = [[-100] * len(row["prompt_ids"]) + row["chosen_ids"] for row in trainer.train_dataset]
    rows = [{"input_ids": tokens, "labels": row} for tokens, row in zip(answers, labels, strict=True)]
    valid, csr = trainer.args.scoring == "valid", trainer.csr
    chosen = trainer._prepare_inputs(PromptCollator(0, csr, drop_forced=valid)(rows))
    targets, inputs, root_tokens = (
        TrieTargets.from_batch(chosen),
        {"input_ids": chosen["input_ids"]},
        root_children(csr),
    )

    def sft():
        if valid:
            return valid_logits(trainer.model, head, inputs, targets, root_tokens).losses(1.0).mean()
        logits = vocabulary_logits(trainer.model, head, inputs, targets.positions)
        return token_cross_entropy(logits, targets.tokens).mean()

    def step():
        trainer.model.train()
        loss = sft() if way == "sft" else trainer.compute_loss(trainer.model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def timed(args: argparse.Namespace, ways: tuple[str, ...], num_rejected: int, folder: str) -> dict[str, float]:
    """Best seconds of a step, the ways in turn."""
    steps = {way: step_of(make_trainer(args, way, num_rejected, folder), way) for way in ways}
    clock = time.process_time if args.device == "cpu" else time.perf_counter  # a CPU may have other work
    best = {}
    for _ in range(args.repeats + 1):  # the first round holds the start-up probe
        for way, step in steps.items():
            begin = clock()
            loss = step()
            seconds = clock() - begin
            best[way] = min(best.get(way, (seconds, loss)), (seconds, loss))
    for way, (seconds, loss) in best.items():
        print(f"K={num_rejected:2} {way:12} {seconds:8.3f} s a step, loss {loss:.5f}", flush=True)
    return {way: seconds for way, (seconds, _) in best.items()}


def forget_peak(device: str) -> None:
    """Start the record of peak memory anew (Linux)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Peak resident memory in bytes since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def peak_memory(way: str) -> int:
    """Peak memory in bytes of a fresh process that takes two steps."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(
        vocab_size=32_000, hidden_size=512, layers=4, batch_size=4, prompt=384, answer=16, repeats=4, threads=2
    ).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--scoring", default="valid", choices=("valid", "full_vocab"))
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.only is not None:
            step = step_of(make_trainer(args, args.only, 3, folder), args.only)
            forget_peak(args.device)
            step(), step()
            print(torch.cuda.max_memory_allocated() if args.device == "cuda" else resident_peak())
            return
        three = timed(args, WAYS, 3, folder)
        fifteen = timed(args, ("sft", "precomputed"), 15, folder)
    memory = {way: peak_memory(way) for way in WAYS}
    sft = three["sft"]
    print(f"K=3, reference precomputed against SFT: {three['precomputed'] / sft:.2f}x the time (at most 1.3)")
    print(f"K=3, reference as adapter against SFT: {three['adapter'] / sft:.2f}x the time (at most 1.7)")
    print(f"K=3, repeated prompts against SFT: {three['repeated'] / sft:.2f}x the time (published: about 4)")
    print(f"K=3, shared against repeated prompts: {three['repeated'] / three['adapter']:.2f}x faster (at least 2.5)")
    print(f"K=15, precomputed against SFT: {fifteen['precomputed'] / fifteen['sft']:.2f}x the time (at most 2.5)")
    for way in WAYS:
        ratio = memory[way] / memory["sft"]
        print(f"K=3, peak memory of {way}: {memory[way] / 2**20:.0f} MiB, {ratio:.2f}x that of SFT")
    print(f"K=3, adapter against SFT: {memory['adapter'] / memory['sft']:.2f}x the memory (at most 1.3)")


if __name__ == "__main__":
    main()
