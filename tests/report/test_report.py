import json
import struct
import subprocess
import sys

import pyarrow as pa
import pytest

from hf_rec.evaluation.run_files import FORMAT, FORMAT_VERSION, rows_sha256, write_run
from hf_rec.report import write_report
from hf_rec.report.collect import collect
from hf_rec.report.tables import format_bytes, format_seconds, markdown_table


USERS, TARGETS, KS = [f"u{row // 2}" for row in range(40)], [row % 7 for row in range(40)], [5, 10]
PROTOCOL = "full/search=exact/seen=keep/split=loo"


def make_run(directory, name, better, *, seed=None, title_better=None, cost=None, split="test", value=0.25, warm=True):
    """A measured run in the format of `evaluate_recommender`; every mean is `value`."""
    columns = {"user_id": USERS, "target": TARGETS, "better": better, "tied": [0] * 40}
    columns |= {"title_better": title_better or better, "title_tied": [0] * 40, "warm": [True] * 20 + [False] * 20}
    names = [f"{name}@{k}" for k in KS for name in ("ndcg", "hit_rate", "mrr")]
    keys = [f"{PROTOCOL}/{level}{name}" for level in ("", "level=title/") for name in names]
    values = {key: {"mean": value, "low": value - 0.05, "high": value + 0.05} for key in keys}
    lists = ("coverage", "gini", "popularity_percentile", "popularity_lift")
    metrics = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "split": split,
        "split_rule": "loo",
        "search": "exact",
        "seen": "keep",
        "candidates": None,
        "ks": KS,
        "protocol": PROTOCOL,
        "rows": 40,
        "users": 20,
        "items": 7,
        "rows_sha256": rows_sha256(USERS, TARGETS),
        "catalog_sha256": "c",
        "metrics": values,
        "slices": {"warm": {"rows": 20, "metrics": values}} if warm else {},
        "beyond_accuracy": {f"{PROTOCOL}/{key}@{k}": 0.5 for key in lists for k in KS},
        "certified_share": 0.975,
        "cost": (cost or {}) | ({} if seed is None else {"seed": seed}),
    }
    write_run(directory, metrics, pa.table(columns))
    return directory


def make_log(directory, *, adaptive=False, evaluated=True):
    entries = []
    for step in range(1, 61):
        entries.append({"step": step, "epoch": step / 20, "loss": 3 / step, "tau": 1 + 0.01 * step * adaptive})
        entries[-1] |= {"invalid_gradient_share": 1 / step} | ({"tau_clamped": float(step < 9)} if adaptive else {})
        if evaluated and step % 20 == 0:
            entries.append({"step": step, "epoch": step / 20, "eval_ndcg@10": step / 600, "eval_nll": 5 - step / 60})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": entries}))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of a control, a baseline with two seeds and a method with a gap in its files."""
    root = tmp_path_factory.mktemp("runs")
    cost = {"training_rows": 31553, "distinct_labels": 128400, "seconds": 1860.0, "peak_memory": 3 * 2**30}
    make_run(root / "pop", "Popularity", [9] * 40, warm=False)
    for seed in (0, 1):
        make_run(root / f"sft{seed}", "Plain | SFT", [2 * seed] * 40, seed=seed, cost=cost)
        make_log(root / f"sft{seed}")
    make_run(root / "msl" / "test", "MSL", [0] * 40, seed=0, cost=cost, title_better=[0] * 40, value=0.75)
    make_log(root / "msl" / "checkpoint-9", adaptive=True, evaluated=False)
    make_log(root / "msl" / "checkpoint-10", adaptive=True, evaluated=False)
    page = write_report(
        [root / "pop", root / "sft0", root / "sft1", root / "msl"], root / "out", baseline="Popularity"
    )
    return page, page.read_text()


class TestReport:
    def test_one_row_a_method_with_intervals_costs_and_seeds(self, written):
        table = written[1].split("\n\n")[3].splitlines()
        assert len(table) == 2 + 3
        header = [cell.strip() for cell in table[0].strip("|").split("|")]
        assert header[:5] == ["Method", "N@5", "N@10", "H@5", "H@10"]
        assert header[5:7] == ["warm N@10 (20 rows)", "Search"] and header[-2:] == ["Seeds", "N@10 over seeds"]
        row = [cell.strip() for cell in table[4].strip("|").split("|")]
        assert row[0] == "MSL" and row[1] == "0.7500 [0.7000, 0.8000]"
        assert row[6:13] == ["exact", "97.5 %", "31,553", "128,400", "31.0 min", "3.00 GiB", "0"]
        control = [cell.strip() for cell in table[2].strip("|").split("|")]
        assert control[5] == "–" and control[8:13] == ["–"] * 5

    def test_seeds_are_averaged_row_by_row(self, written):
        # Ranks 0 and 2 have the gains 1 and 1/2; every row has the same mean, so the interval has no width.
        (row,) = (line for line in written[1].splitlines() if "0.7500 [0.7500, 0.7500]" in line and "0, 1" in line)
        assert row.startswith("| Plain \\| SFT")

    def test_paired_tests_name_the_baseline_and_mark_small_p_values(self, written):
        text = written[1].partition("### Differences from Popularity")[2]
        row = next(line for line in text.splitlines() if line.startswith("| MSL"))
        assert "+0.7109 [+0.7109, +0.7109] p < 0.001†" in row

    def test_what_is_missing_is_said(self, written):
        text = written[1].partition("## What is missing")[2]
        assert "- Training rows: not recorded for Popularity." in text
        assert "- Warm targets: there are none, or the items of training were not given, for Popularity." in text
        assert "- Curve of NDCG@10 on validation (`eval_ndcg@10`): not logged by MSL." in text
        assert "training loss" not in text

    def test_figures_are_png_files_of_a_readable_size_that_the_page_shows(self, written):
        page, text = written
        names = ["methods", "loss", "temperature", "invalid_gradient_share", "ndcg", "nll"]
        assert sorted(path.stem for path in (page.parent / "figures").iterdir()) == sorted(names)
        for name in names:
            assert f"![{name}](figures/{name}.png)" in text
            head = (page.parent / "figures" / f"{name}.png").read_bytes()[:24]
            width, height = struct.unpack(">II", head[16:24])
            assert head[1:4] == b"PNG" and width > 800 and height > 250

    def test_no_partial_file_stays(self, written):
        assert [path.name for path in written[0].parent.iterdir() if path.name.startswith(".")] == []

    def test_an_unknown_baseline_is_named(self, tmp_path):
        make_run(tmp_path / "pop", "Popularity", [9] * 40)
        with pytest.raises(ValueError, match=r"`baseline` must be one of \['Popularity'\], got 'SFT'"):
            write_report([tmp_path / "pop"], tmp_path / "out", baseline="SFT")
        assert not (tmp_path / "out").exists()

    def test_a_training_alone_gives_curves_and_says_that_nothing_was_measured(self, tmp_path):
        make_log(tmp_path / "run")
        text = write_report([tmp_path / "run"], tmp_path / "page.md").read_text()
        assert "![loss](figures/loss.png)" in text and "no folder holds a `metrics.json`" in text

    def test_neither_torch_nor_transformers_is_loaded(self):
        code = "import sys, hf_rec.report.plots, hf_rec.report; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestCollect:
    def test_splits_and_rows_that_differ_do_not_share_a_table(self, tmp_path):
        make_run(tmp_path / "a" / "test", "SFT", [0] * 40)
        make_run(tmp_path / "a" / "validation", "SFT", [0] * 40, split="validation")
        sections, trainings = collect([tmp_path / "a"])
        assert [section.example["split"] for section in sections] == ["test", "validation"] and trainings == []

    def test_one_training_measured_twice_is_one_curve_and_seeds_are_told_apart(self, tmp_path):
        make_run(tmp_path / "a" / "valid", "SFT", [0] * 40, seed=1)
        make_run(tmp_path / "a" / "full_vocab", "SFT full", [0] * 40, seed=1)
        make_run(tmp_path / "b", "MSL", [0] * 40, seed=3)
        make_run(tmp_path / "c", "MSL", [0] * 40, seed=4)
        for name in "abc":
            make_log(tmp_path / name)
        _, trainings = collect([tmp_path / name for name in "abc"])
        assert [training.label for training in trainings] == ["a", "MSL, seed 3", "MSL, seed 4"]
        assert [training.method for training in trainings] == ["a", "MSL", "MSL"]

    def test_the_last_checkpoint_has_the_log_where_the_folder_has_none(self, tmp_path):
        for step in (9, 10):
            make_log(tmp_path / f"checkpoint-{step}")
        _, (training,) = collect([tmp_path])
        assert training.path.parent.name == "checkpoint-10" and training.label == tmp_path.name

    def test_runs_that_cannot_be_told_apart_are_refused(self, tmp_path):
        for name in "ab":
            make_run(tmp_path / name, "SFT", [0] * 40, seed=1)
        with pytest.raises(ValueError, match=r"share the name 'SFT', and their seeds \(1, 1\).*--name.*metrics.json"):
            collect([tmp_path / "a", tmp_path / "b"])

    def test_folders_without_runs_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds neither metrics.json nor trainer_state.json"):
            collect([tmp_path])
        with pytest.raises(FileNotFoundError, match="is no folder"):
            collect([tmp_path / "gone"])
        with pytest.raises(ValueError, match="`run_dirs`"):
            collect(str(tmp_path))
        (tmp_path / "trainer_state.json").write_text("[]")
        with pytest.raises(ValueError, match="is not the log of a Trainer"):
            collect([tmp_path])

    def test_values_that_are_no_numbers_are_left_out_of_a_curve(self, tmp_path):
        entries = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3}, {"step": 4, "loss": "x"}]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
        _, (training,) = collect([tmp_path])
        steps, values = training.series("loss")
        assert steps.tolist() == [1.0] and values.tolist() == [1.0]


class TestTables:
    def test_columns_are_padded_and_pipes_escaped(self):
        assert markdown_table(["Method", "N"], [["a|b", "1"], ["c", "0.25"]]) == (
            "| Method |    N |\n| ------ | ---: |\n| a\\|b   |    1 |\n| c      | 0.25 |"
        )

    @pytest.mark.parametrize(("value", "text"), [(2.5, "2.5 s"), (75, "75 s"), (150, "2.5 min"), (9000, "2.5 h")])
    def test_times_have_a_unit(self, value, text):
        assert format_seconds(value) == text

    def test_sizes_have_a_unit(self):
        assert format_bytes(5 * 2**20) == "5 MiB" and format_bytes(1.5 * 2**30) == "1.50 GiB"
