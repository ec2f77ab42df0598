"""
Kill recipes with SIGKILL at random moments, start the same command again, and hold what comes out against a run that
was never interrupted: weights bit for bit, and the metrics of the test rows.

python tests/killed_runs.py --log runs/killed_runs.log          50 trials over all trainers, one line each
python tests/killed_runs.py --log runs/killed_runs.log          goes on where the log ends

Every second step writes a checkpoint and rotates old ones away, so most of the time of these runs is such a write. A
trial is killed up to three times, then left to end. Processes are forked from one that has imported everything. Exit
code of this script: 0 if every trial in the log ended as its uninterrupted run did.
"""

import argparse
import collections
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from two_process_runs import exit_code, import_everything, make_inputs


ROOT = Path(__file__).parents[1]
MOST_KILLS = 3
SHORT = """
    --max_steps 12 --per_device_train_batch_size 4 --max_train_samples 32 --max_eval_samples 4 --max_test_samples 4
    --save_strategy steps --save_steps 2 --save_total_limit 2 --disable_tqdm true --do_predict true --logging_steps 1
    --resume_from_checkpoint last
""".split()
NO_EVALUATION = "--eval_strategy no --load_best_model_at_end false".split()
EVALUATED = """
    --eval_strategy steps --eval_steps 2 --load_best_model_at_end true --metric_for_best_model ndcg@10
    --greater_is_better true
""".split()
# Name of a trial -> recipe and words of its own; `{folder}` is that of the inputs
TRIALS = {
    "sequential": ("sequential", ["--dropout", "0.5", "--hidden_size", "16", *EVALUATED]),
    "sequential, sampled": (
        "sequential",
        ["--loss_type", "sce", "--num_negatives", "16", "--hidden_size", "16", *NO_EVALUATION],
    ),
    "msl": ("msl", ["--model_name_or_path", "{folder}/base", "--adaptive_tau", "true", *EVALUATED]),
    "msl, packed": (
        "msl",
        ["--model_name_or_path", "{folder}/base", "--packing", "true", "--supervise", "all", *NO_EVALUATION],
    ),
    "msl, LoRA": ("msl", ["--model_name_or_path", "{folder}/base", "--use_peft", "true", *NO_EVALUATION]),
    "softmax_dpo": ("softmax_dpo", ["--model_name_or_path", "{folder}/start", *NO_EVALUATION]),
    "llm_srec": (
        "llm_srec",
        [
            *("--model_name_or_path", "{folder}/base", "--sequence_epochs", "2", "--sequence_eval_epochs", "1"),
            *("--sequence_hidden_size", "16", "--head_size", "16", "--max_length", "256", *NO_EVALUATION),
        ],
    ),
}


def start(recipe: str, words: list[str], output: Path) -> int:
    """Fork a process that runs a recipe from its command line to its end; returns its id."""
    child = os.fork()
    if child:
        return child
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [f"recipes/{recipe}.py", *words]
    runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")  # ends with sys.exit
    raise AssertionError("The recipe did not exit.")


def run(recipe: str, words: list[str], output: Path) -> float:
    """Run a recipe to its end; returns how long it took."""
    begin = time.perf_counter()
    if (code := exit_code(start(recipe, words, output))) != 0:
        raise RuntimeError(f"recipes/{recipe}.py ended with {code}:\n{output.read_text(errors='replace')[-4000:]}")
    return time.perf_counter() - begin


def result(run_dir: Path) -> dict[str, object]:
    """What a run left: every weight file and the test metrics, without what a clock or a path decides."""
    weights = {path.name: path.read_bytes() for path in sorted(run_dir.glob("*.safetensors"))}
    return {**weights, "metrics": json.loads((run_dir / "test" / "metrics.json").read_text())["metrics"]}


def killed_run(recipe: str, words: list[str], output: Path, seconds: float, draw: random.Random) -> int:
    """Run a recipe that is killed at random moments and started again until it ends; returns how often it was."""
    kills = 0
    while kills < MOST_KILLS:
        child, begin = start(recipe, words, output), time.perf_counter()
        moment = draw.uniform(0, seconds)
        while time.perf_counter() - begin < moment:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)  # one that has ended is not reaped yet, and takes no notice
        code = exit_code(child)
        if code != -signal.SIGKILL:
            break
        kills += 1
    run(recipe, words, output)  # where it had ended, it finds nothing to do
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="in all, those in the log too (default: 50)")
    parser.add_argument("--only", choices=TRIALS, nargs="+", default=list(TRIALS), help="what to run (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--log", type=Path, required=True, help="file that each trial adds a line of JSON to")
    args = parser.parse_args()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    folder = Path(tempfile.mkdtemp())  # no `with`: forked processes end here too, and would remove it
    import_everything(recipe for recipe, _ in TRIALS.values())
    if (child := os.fork()) == 0:
        make_inputs(folder)  # not in this process, which must have no threads when it forks
        os._exit(0)
    if exit_code(child) != 0:
        raise RuntimeError("The inputs could not be made; see above.")
    common = ["--data_dir", str(folder / "data"), *SHORT]
    first = ["--model_name_or_path", str(folder / "base"), "--output_dir", str(folder / "start"), *NO_EVALUATION]
    run("msl", [*common, *first], folder / "start.txt")
    whole: dict[str, tuple[dict, float]] = {}
    while len(done) < args.trials:
        number = len(done)
        name = args.only[number % len(args.only)]
        recipe, own = TRIALS[name]
        words = [*common, *(word.format(folder=folder) for word in own)]
        if name not in whole:
            run_dir = folder / f"whole-{recipe}-{number}"
            seconds = run(recipe, [*words, "--output_dir", str(run_dir)], folder / f"whole-{number}.txt")
            whole[name] = result(run_dir), seconds
        expected, seconds = whole[name]
        run_dir, output = folder / f"run-{number}", folder / f"run-{number}.txt"
        draw = random.Random(f"{args.seed} {number}")
        trial: dict[str, object] = {"trial": name, "kills": None, "output": ""}
        try:
            trial["kills"] = killed_run(recipe, [*words, "--output_dir", str(run_dir)], output, seconds, draw)
            found = result(run_dir)
            trial["differs"] = [key for key in expected if found.get(key) != expected[key]]
        except (RuntimeError, OSError) as error:
            trial["differs"] = [f"{type(error).__name__}: {error}"]
        if trial["differs"]:
            trial["output"] = output.read_text(errors="replace")[-8000:]
        done.append(trial)
        with open(args.log, "a") as log:
            log.write(json.dumps(trial) + "\n")
        shutil.rmtree(run_dir, ignore_errors=True)
    shutil.rmtree(folder)
    counts = collections.Counter((trial["trial"], not trial["differs"]) for trial in done)
    for (name, good), count in sorted(counts.items()):
        print(f"{name}: {count} {'as if never killed' if good else 'OTHERWISE'}")
    kills = sum(trial["kills"] or 0 for trial in done)
    good = sum(not trial["differs"] for trial in done)
    print(f"{good} of {len(done)} trials, killed {kills} times, ended as an uninterrupted run: {args.log}")
    sys.exit(0 if good == len(done) else 1)


if __name__ == "__main__":
    main()
