"""
Start the MSL recipe on two processes many times and count how the processes end.

python tests/two_process_runs.py --log runs/two_process_runs.log          200 runs, one line each
python tests/two_process_runs.py --log runs/two_process_runs.log          goes on where the log ends

Each pair of processes is forked from one that has imported everything, runs `recipes/msl.py` as `__main__` over gloo,
from its command line to the end of the interpreter, and ends on its own: a run takes seconds and its exit codes are
those of the recipe. Exit code of this script: 0 if every run in the log ended with 0 and 0.
"""

import argparse
import collections
import faulthandler
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path


ROOT = Path(__file__).parents[1]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
SHORT = """
    --max_steps 2 --per_device_train_batch_size 4 --max_train_samples 16 --max_eval_samples 4 --max_test_samples 4
    --eval_strategy no --save_strategy no --load_best_model_at_end false --disable_tqdm true --do_predict true
    --overwrite true
""".split()


def make_inputs(folder: Path) -> None:
    """Write a small prepared data set and a tiny language model."""
    from hf_rec import Catalog
    from hf_rec.data.prepare import prepare
    from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer

    prepare("demo", folder / "data", num_users=20, seed=0)
    catalog = Catalog.load(folder / "data")
    tokenizer = new_tokenizer((catalog.text(row) for row in range(len(catalog))), 400)
    new_causal_lm(tokenizer, hidden_size=16, num_layers=1, num_heads=2).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def import_everything(recipes: Iterable[str] = ("msl",)) -> None:
    """What recipes import, at their top and inside functions, so that forked processes need not."""
    import torch

    import hf_rec.evaluation.full
    import hf_rec.trainers.msl.trainer  # noqa: F401

    torch.set_num_threads(1)
    for recipe in recipes:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="imported")


def start(rank: int, port: int, words: list[str], output: Path) -> int:
    """Fork one process of a pair; returns its id. The child runs the recipe, whose `sys.exit` ends the interpreter."""
    child = os.fork()
    if child:
        return child
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # see `hold_store`
    }
    sys.argv = ["recipes/msl.py", *words]
    runpy.run_path(str(ROOT / "recipes" / "msl.py"), run_name="__main__")  # ends with sys.exit
    raise AssertionError("The recipe did not exit.")


def exit_code(child: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hold_store() -> tuple[int, int]:
    """A process that holds the store of a run, as `torchrun` does; its id and its port, which the system picks."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writer, str(store.port).encode())
        signal.pause()
    os.close(writer)
    with os.fdopen(reader) as file:
        return child, int(os.read(file.fileno(), 16))


def run_pair(words: list[str], folder: Path) -> tuple[list[int], str]:
    """Exit codes of both processes of a run, and what they wrote where one is not 0."""
    holder, port = hold_store()
    outputs = [folder / f"rank{rank}.txt" for rank in (0, 1)]
    words = [*words, "--output_dir", str(folder / "run")]
    children = [start(rank, port, words, outputs[rank]) for rank in (0, 1)]
    codes = [exit_code(child) for child in children]
    os.kill(holder, signal.SIGKILL)
    exit_code(holder)
    return codes, "" if codes == [0, 0] else "\n".join(path.read_text(errors="replace")[-4000:] for path in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs in all, those in the log too (default: 200)")
    parser.add_argument("--log", type=Path, required=True, help="file that each run adds a line of JSON to")
    args = parser.parse_args()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    folder = Path(tempfile.mkdtemp())  # no `with`: forked processes end here too, and would remove it
    import_everything()
    if (child := os.fork()) == 0:
        make_inputs(folder)  # not in this process, which must have no threads when it forks
        os._exit(0)
    if exit_code(child) != 0:
        raise RuntimeError("The inputs could not be made; see above.")
    words = ["--data_dir", str(folder / "data"), "--model_name_or_path", str(folder / "base"), *SHORT]
    while len(done) < args.runs:
        begin = time.perf_counter()
        codes, output = run_pair(words, folder)
        done.append({"codes": codes, "seconds": round(time.perf_counter() - begin, 1), "output": output})
        with open(args.log, "a") as log:
            log.write(json.dumps(done[-1]) + "\n")
    shutil.rmtree(folder)
    counts = collections.Counter(tuple(run["codes"]) for run in done)
    seconds = sum(run["seconds"] for run in done) / len(done)
    for codes, count in counts.most_common():
        print(f"{count} runs ended with {codes[0]} and {codes[1]}")
    print(f"{len(done)} runs, {seconds:.1f} s each, MKL_CBWR={os.environ.get('MKL_CBWR', 'unset')}: {args.log}")
    sys.exit(0 if set(counts) == {(0, 0)} else 1)


if __name__ == "__main__":
    main()
