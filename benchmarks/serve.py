"""
Latency and requests a second of `hf-rec serve` with 1, 8 and 32 clients, against calls one at a time.

python benchmarks/serve.py [--model DIR --requests 256 --clients 1 8 32 --k 10 --seconds 120]

The server is a process of its own on the loopback. Each client sends its next request when it has its answer. Every
answer is compared with that of a call of its own in this process: none may be lost, nor differ by more than rounding,
nor be the answer to another request. Without --model, a small random language model over generated titles is made. The
calls one at a time run in this process before the clients and after them, while the server is idle.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import load_recommender, save_recommender
from hf_rec.models.language.from_scratch import new_tokenizer
from hf_rec.trie.item_trie import ItemTrie


ROUNDING = 1e-4  # nats, of float32 in batches of unlike padding
START_SECONDS = 180


def make_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioulnrstmk"), rng.integers(3, 9))) for _ in range(3000)]
    titles = (" ".join(words[word % 3000] for word in rng.zipf(1.3, size)) for size in rng.integers(2, 9, 3000))
    catalog = Catalog.from_records({"item_id": row, "title": title} for row, title in enumerate(titles))
    tokenizer = new_tokenizer([title or "" for title in catalog.titles or ()], 4000)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.1,  # so that a random model has preferences
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    prompt = Prompt(tokenizer, catalog)
    save_recommender(
        folder,
        catalog=catalog,
        kind="language_model",
        prompt=prompt,
        trie=ItemTrie.build(prompt.encode_items()),
        tokenizer=tokenizer,
        model=LlamaForCausalLM(config),
    )


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """Port of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "hf_rec.cli", "serve", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("The server did not start.")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> dict:
    head = (
        f"POST /recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer_head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer_head.split("content-length:")[1].split("\r\n")[0])
    content: dict = json.loads(await reader.readexactly(length))
    if " 200 " not in answer_head.splitlines()[0]:
        raise RuntimeError(content)
    return content


async def load(
    port: int, bodies: list[bytes], clients: int, seconds: float
) -> tuple[list[dict | None], list[float], float]:
    """Answers in the order of the requests (`None`: not sent in time), latencies in seconds, and the time of all."""
    answers: list[dict | None] = [None] * len(bodies)
    waiting, latencies = iter(range(len(bodies))), []
    start = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in waiting:
            if time.perf_counter() - start > seconds:
                break
            sent = time.perf_counter()
            answers[number] = await post(reader, writer, bodies[number])
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, latencies, time.perf_counter() - start


def differs(answer: dict, item_ids: list, scores: np.ndarray) -> bool:
    """Whether a list is another one than rounding explains: near scores may trade places."""
    found = [item["item_id"] for item in answer["items"]]
    given = np.array([item["score"] for item in answer["items"]])
    if len(found) != len(item_ids) or np.abs(given - scores[: len(found)]).max(initial=0) > ROUNDING:
        return True
    alone = dict(zip(item_ids, scores.tolist(), strict=False))
    last = scores[len(item_ids) - 1]
    return any(abs(alone.get(item, last) - score) > 2 * ROUNDING for item, score in zip(found, given, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120, help="longest time of one number of clients")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.model or Path(made, "model")
        if args.model is None:
            make_folder(folder)
        recommender = load_recommender(folder)
        rng = np.random.default_rng(1)
        ids = recommender.catalog.ids
        histories = [[ids[row] for row in rng.integers(len(ids), size=1 + n % 10)] for n in range(args.requests)]
        bodies = [json.dumps({"history": history, "k": args.k}).encode() for history in histories]
        with server(folder) as port:
            expected, rates = [], []

            def one_at_a_time(some: list) -> None:
                start = time.perf_counter()
                expected.extend(recommender.recommend([history], k=args.k) for history in some)
                rates.append(len(some) / (time.perf_counter() - start))

            half = len(histories) // 2
            recommender.recommend(histories[:1], k=args.k)
            one_at_a_time(histories[:half])
            runs = {clients: asyncio.run(load(port, bodies, clients, args.seconds)) for clients in args.clients}
            one_at_a_time(histories[half:])
        alone = len(rates) / sum(1 / rate for rate in rates)
        print(f"one at a time: {alone:.1f} requests a second")
        for clients, (answers, latencies, seconds) in runs.items():
            sent = [(answer, found) for answer, found in zip(answers, expected, strict=True) if answer is not None]
            wrong = sum(differs(answer, found.item_ids[0], found.scores[0]) for answer, found in sent)
            p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) * 1000
            rate = len(latencies) / seconds
            print(
                f"{clients:3d} clients: {rate:6.1f} requests a second ({rate / alone:.1f}x), p50 {p50:.0f} ms, "
                f"p95 {p95:.0f} ms, p99 {p99:.0f} ms; {len(sent)} answers to {len(latencies)} requests, {wrong} wrong"
            )


if __name__ == "__main__":
    main()
