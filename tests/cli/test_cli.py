"""The command line as a person uses it: help at once, right words, one clean message for bad input."""

import json
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from hf_rec import Catalog, ItemTrie
from hf_rec.cli import evaluate
from hf_rec.cli import main as cli
from hf_rec.data.prepare import SPLIT_RULES, prepare
from hf_rec.data.sources import SOURCES
from hf_rec.demo import data as demo_data
from hf_rec.demo import run as demo_run
from hf_rec.hub import save_control, save_recommender
from hf_rec.recommenders.control_list import CONTROLS, ControlEntry
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared demo set and a last-item control made from it."""
    from hf_rec.data.prepare import load_prepared

    root = tmp_path_factory.mktemp("cli")
    prepare("demo", root / "data", num_users=40, seed=0)
    catalog, splits, _ = load_prepared(root / "data")
    save_control(root / "model", LastItemRecommender(catalog, splits["train"]))
    return root


def run(*words) -> int:
    return cli.main([str(word) for word in words])


def test_help_loads_no_model_code():
    code = (
        "import sys, hf_rec.cli.main as cli; cli.build_parser().format_help(); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_command_has_help_and_a_description(capsys):
    for command in (
        "demo",
        "prepare",
        "recommend",
        "evaluate",
        "serve",
        "catalog",
        "export",
        "fuse",
        "diagnose",
        "shuffle",
        "report",
    ):
        with pytest.raises(SystemExit) as stop:
            run(command, "--help")
        assert stop.value.code == 0
        assert f"usage: hf-rec {command}" in capsys.readouterr().out


def test_the_sources_and_splits_are_those_of_prepare():
    assert all(callable(source.reader()) for source in SOURCES.values())
    flags = cli.build_parser().parse_args(["prepare", "--source", "demo", "--out", "x", "--split", "global-time"])
    assert flags.split in SPLIT_RULES


def test_prepare_reads_a_csv_of_ones_own(tmp_path, capsys):
    rows = "\n".join(f"u{user},{item},{item},film {item}" for user in range(3) for item in range(4))
    (tmp_path / "log.csv").write_text(f"who,what,when,name\n{rows}\n")
    code = run(
        *("prepare", "--source", "table", "--path", tmp_path / "log.csv", "--out", tmp_path / "out"),
        *("--user-column", "who", "--item-column", "what", "--timestamp-column", "when", "--title-column", "name"),
    )
    assert code == 0
    assert "4 items" in capsys.readouterr().out
    assert (tmp_path / "out" / "data.json").is_file()


def test_a_missing_column_is_one_message_and_no_folder(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("user_id,timestamp\nu,1\n")
    code = run("prepare", "--source", "table", "--path", tmp_path / "log.csv", "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert code == cli.BAD_INPUT
    assert error.startswith("hf-rec prepare: ") and "item_id" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_debug_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("recommend", "--model", tmp_path / "none", "--history", "x", "--debug")


def test_recommend_writes_the_list_of_each_row_of_a_split(folders, tmp_path, capsys):
    words = ("recommend", "--model", folders / "model", "--data", folders / "data", "--out", tmp_path / "lists")
    assert run(*words, "--k", 4, "--limit", 5, "--exclude-history") == 0
    assert "5 lists of 4 items after rows of the split 'train'" in capsys.readouterr().out
    index = json.loads((tmp_path / "lists" / "lists.json").read_text())
    assert (index["split"], index["k"], index["exclude_history"], index["every_label"]) == ("train", 4, True, False)
    assert run(*words, "--split", "none") == cli.BAD_INPUT
    assert run(*words, "--json") == cli.BAD_INPUT
    assert "`--json` has no effect with `--data`" in capsys.readouterr().err
    assert run(*words[:-2]) == cli.BAD_INPUT
    assert "`--data` needs `--out`" in capsys.readouterr().err
    assert run("recommend", "--model", folders / "model", "--history", "Signal", "--out", "x") == cli.BAD_INPUT
    assert "`--out` has no effect without `--data`" in capsys.readouterr().err


def test_recommend_takes_titles_and_ids_and_prints_a_table(folders, capsys):
    assert run("recommend", "--model", folders / "model", "--history", "Star Harbour", "Signal", "--k", 3) == 0
    out = capsys.readouterr().out
    assert "After Star Harbour → Signal" in out
    assert "Certified" in out


def test_recommend_prints_json_for_programs(folders, capsys):
    words = ("recommend", "--model", folders / "model", "--history", "Star Harbour", "--k", 4, "--json")
    assert run(*words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["history"][0]["title"] == "Star Harbour"
    assert len(first["items"]) == 4 and first["certified"]
    scores = [item["score"] for item in first["items"]]
    assert scores == sorted(scores, reverse=True)
    assert "probability" not in first["items"][0], "counts are no probabilities"

    excluded = first["items"][0]
    assert run(*words, "--exclude", excluded["item_id"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [item["item_id"] for item in second["items"]][:3] == [item["item_id"] for item in first["items"]][1:]

    assert run(*words, "--allow", excluded["item_id"], first["items"][2]["title"]) == 0
    allowed = json.loads(capsys.readouterr().out)
    assert {item["item_id"] for item in allowed["items"]} == {excluded["item_id"], first["items"][2]["item_id"]}


def test_one_process_of_several_answers(folders, capsys, monkeypatch):
    words = ("recommend", "--model", folders / "model", "--history", "Star Harbour", "--json")
    monkeypatch.setenv("RANK", "1")
    assert run(*words) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["items"]


def test_an_unknown_title_names_the_nearest_ones(folders, capsys):
    assert run("recommend", "--model", folders / "model", "--history", "Star Harbor") == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "`--history` 'Star Harbor'" in error
    assert "'Star Harbour'" in error


def test_an_unknown_title_without_neighbours_says_what_to_give(folders, capsys):
    assert run("recommend", "--model", folders / "model", "--history", "qqqqqqqq") == cli.BAD_INPUT
    assert "Give an id or a whole title" in capsys.readouterr().err


@pytest.mark.parametrize("control", CONTROLS)
def test_evaluate_measures_a_control(folders, tmp_path, control, capsys):
    code = run(
        "evaluate", "--control", control, "--data", folders / "data", "--out", tmp_path / control, "--limit", 10
    )
    assert code == 0
    metrics = json.loads((tmp_path / control / "metrics.json").read_text())
    assert metrics["rows"] == 10
    assert metrics["name"] == control
    assert metrics["split_rule"] == "loo"
    assert "full/search=exact/seen=keep/split=loo/ndcg@10" in capsys.readouterr().out


def test_a_control_that_is_added_to_the_list_is_known_to_commands_and_folders(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(CONTROLS, "newest", ControlEntry("newest items", "PopularityRecommender", windowed=True))
    words = ("--data", folders / "data", "--out", tmp_path / "out", "--limit", 3)
    assert run("evaluate", "--control", "newest", "--window", 3, *words) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["name"] == "newest"


def test_evaluate_measures_a_model_folder_and_report_reads_it(folders, tmp_path, capsys):
    for seen in ("keep", "mask"):
        words = ("--data", folders / "data", "--out", tmp_path / seen, "--seen", seen, "--name", f"last {seen}")
        assert run("evaluate", "--model", folders / "model", *words) == 0
    capsys.readouterr()
    assert run("report", tmp_path / "keep", tmp_path / "mask", "--out", tmp_path / "report") == 0
    page = tmp_path / "report" / "report.md"
    assert capsys.readouterr().out.strip() == str(page)
    assert "last keep" in page.read_text() and "last mask" in page.read_text()


def test_evaluate_ranks_among_few_candidates(folders, tmp_path, capsys):
    words = ("--control", "last-item", "--data", folders / "data", "--out", tmp_path / "few", "--limit", 8)
    assert run("evaluate", *words, "--candidates", 9, "--ks", 1) == 0
    assert "candidates=1+9/file=" in capsys.readouterr().out
    assert run("evaluate", *words, "--candidates", 3, "--overwrite") == 2
    assert "`ks` must hold numbers from 1 to 4" in capsys.readouterr().err


def test_evaluate_ranks_at_the_scoring_and_temperature_that_are_asked_for(folders, tmp_path):
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.models.language.from_scratch import new_causal_lm, new_tokenizer

    catalog = Catalog.load(folders / "data")
    tokenizer = new_tokenizer(filter(None, catalog.titles), 300)
    prompt = Prompt(tokenizer, catalog)
    save_recommender(
        tmp_path / "lm",
        catalog=catalog,
        kind="language_model",
        prompt=prompt,
        trie=ItemTrie.build(prompt.encode_items()),
        tokenizer=tokenizer,
        model=new_causal_lm(tokenizer, hidden_size=16, num_layers=1, num_heads=2),
    )

    def measure(name, *words):
        words = ("--data", folders / "data", "--out", tmp_path / name, "--limit", 5, "--device", "cpu", *words)
        assert run("evaluate", "--model", tmp_path / "lm", *words) == 0
        return json.loads((tmp_path / name / "metrics.json").read_text())

    hot = measure("hot", "--scoring", "full_vocab", "--tau", 2.5)
    assert (hot["scoring"], hot["tau"]) == ("full_vocab", 2.5)
    fitted = measure("fitted", "--fit-tau", "validation")
    assert fitted["scoring"] == "valid"
    assert 0.25 < fitted["tau"] < 8 and fitted["tau"] != measure("saved")["tau"]


def test_evaluate_refuses_a_temperature_for_a_split_that_is_not_there(folders, tmp_path, capsys):
    words = ("--data", folders / "data", "--out", tmp_path / "out", "--fit-tau", "dev")
    assert run("evaluate", "--model", folders / "model", *words) == cli.BAD_INPUT
    assert "`--fit-tau`" in capsys.readouterr().err


def test_evaluate_refuses_data_of_another_catalog(folders, tmp_path, capsys):
    prepare("demo", tmp_path / "other", num_users=30, seed=1)
    words = ("--data", tmp_path / "other", "--out", tmp_path / "out")
    assert run("evaluate", "--model", folders / "model", *words) == cli.BAD_INPUT
    assert "another catalog" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_names_a_split_that_is_not_there(folders, tmp_path, capsys):
    words = ("--data", folders / "data", "--out", tmp_path / "out", "--split", "tset")
    assert run("evaluate", "--control", "popularity", *words) == cli.BAD_INPUT
    assert "`--split` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "window"), [([], 4), (["--window", "7"], 7)])
def test_recent_popularity_counts_the_newest_tenth_or_the_window(folders, flags, window):
    from hf_rec.data.prepare import load_prepared

    catalog, splits, _ = load_prepared(folders / "data")
    words = ["evaluate", "--control", "recent", "--data", "x", "--out", "y", *flags]
    recent, cost, name = evaluate._control(cli.build_parser().parse_args(words), catalog, splits)
    assert isinstance(recent, PopularityRecommender)
    assert recent.window == window and name == "recent"
    assert cost["training_rows"] == 40


@pytest.mark.parametrize("flags", [["--tau", "2"], ["--scoring", "full_vocab"], ["--fit-tau", "validation"]])
def test_flags_of_language_models_are_refused_for_others(folders, tmp_path, flags, capsys):
    words = ("--data", folders / "data", "--out", tmp_path / "out", *flags)
    assert run("evaluate", "--model", folders / "model", *words) == cli.BAD_INPUT
    assert f"`{flags[0]}` has no effect for" in capsys.readouterr().err


IGNORED = [
    (["evaluate", "--control", "popularity", "--candidates", "5", "--seen", "mask"], "--seen"),
    (["evaluate", "--control", "popularity", "--candidates", "5", "--seen", "keep"], "--seen"),
    (["evaluate", "--model", "MODEL", "--candidates", "5", "--num-beams", "77"], "--num-beams"),
    *[
        (["evaluate", "--control", "popularity", flag, value], flag)
        for flag, value in {
            "--tau": "3",
            "--scoring": "full_vocab",
            "--fit-tau": "validation",
            "--device": "cpu",
            "--dtype": "float32",
            "--revision": "main",
            "--num-beams": "20",
            "--window": "2",
        }.items()
    ],
    (["evaluate", "--model", "MODEL", "--window", "2"], "--window"),
    (["evaluate", "--model", "MODEL", "--revision", "main"], "--revision"),
    (["evaluate", "--model", "MODEL", "--num-beams", "20"], "--num-beams"),
    (["evaluate", "--model", "MODEL", "--dtype", "float32"], "--dtype"),
    (["diagnose", "--control", "recent", "--device", "cpu"], "--device"),
    (["diagnose", "--control", "recent", "--num-beams", "20"], "--num-beams"),
    (["diagnose", "--control", "recent", "--transfer", "DATA"], "--transfer"),
    (["diagnose", "--control", "recent", "--shuffled-model", "MODEL"], "--shuffled-model"),
    (["diagnose", "--model", "MODEL", "--revision", "main"], "--revision"),
    (["recommend", "--model", "MODEL", "--history", "Signal", "--num-beams", "20"], "--num-beams"),
    (["recommend", "--model", "MODEL", "--history", "Signal", "--revision", "main"], "--revision"),
]


@pytest.mark.parametrize(("words", "flag"), IGNORED, ids=lambda value: None if isinstance(value, list) else value)
def test_a_flag_that_would_change_nothing_is_refused(folders, tmp_path, words, flag, capsys):
    words = [{"MODEL": folders / "model", "DATA": folders / "data"}.get(word, word) for word in words]
    rows = [] if words[0] == "recommend" else ["--data", folders / "data", "--out", tmp_path / "out", "--limit", 3]
    assert run(*words, *rows) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert f"`{flag}`" in error and "no effect" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "recommend"])
def test_a_device_or_a_dtype_that_does_not_exist_is_named_in_one_line(folders, tmp_path, command, capsys):
    rows = ["--data", folders / "data", "--out", tmp_path / "out"]
    words = [command, "--model", folders / "model", *(["--history", "Signal"] if command == "recommend" else rows)]
    for device in ("cuda:9", "bananas", "meta"):
        assert run(*words, "--device", device) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert f"`--device` '{device}' cannot be used" in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        run(*words, "--dtype", "bananas")
    error = capsys.readouterr().err
    assert stop.value.code == cli.BAD_INPUT and error.count("\n") == 1
    assert "--dtype" in error and "'bananas'" in error and "bfloat16" in error


def test_an_unknown_id_names_the_nearest_one(folders, capsys):
    item_id = Catalog.load(folders / "data").ids[0]
    assert run("recommend", "--model", folders / "model", "--history", f"{item_id} ") == cli.BAD_INPUT
    assert f"Did you mean '{item_id}'" in capsys.readouterr().err


def test_a_method_keeps_the_name_that_its_training_gave_it(folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "mine")
    out = tmp_path / "mine" / "test"
    words = ("evaluate", "--model", tmp_path / "mine", "--data", folders / "data", "--out", out, "--limit", 3)

    def name(*more):
        assert run(*words, *more, "--overwrite") == 0
        return json.loads((out / "metrics.json").read_text())["name"]

    assert name() == "mine"
    shutil.rmtree(out)
    (tmp_path / "mine" / "training_args.json").write_text(json.dumps({"run_name": "MSL mine"}))
    assert name() == "MSL mine"
    assert name("--name", "first") == "first"
    assert name() == "first"


def test_the_demo_refuses_a_folder_that_it_did_not_write(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run("demo", "--quick", "--out", tmp_path) == cli.BAD_INPUT
    assert "no demo wrote it" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_demo_empties_a_folder_in_which_a_demo_was_cut_off_or_that_it_may_overwrite(tmp_path):
    out = demo_run._claim_folder(tmp_path / "demo", seed=0, quick=True, overwrite=False)
    (out / "msl").mkdir()
    (out / "msl" / "model.safetensors").touch()
    assert demo_run._claim_folder(out, seed=1, quick=True, overwrite=False) == out
    (out / "report.md").touch()
    assert demo_run._claim_folder(out, seed=1, quick=True, overwrite=True) == out
    assert [path.name for path in out.iterdir()] == [demo_run.MARKER]


def test_the_demo_gives_films_codes_of_their_own_or_says_why_not(tmp_path, monkeypatch, capsys):
    demo_data.make_data(tmp_path, num_users=10, seed=0, console=Console())
    monkeypatch.setattr(demo_data, "find_spec", lambda name: None)
    catalog, has_codes = demo_data.add_codes(tmp_path, seed=0, console=Console(width=200))
    assert not has_codes
    assert "codes" not in catalog.attributes[0]
    assert "pip install hf_rec[index]" in capsys.readouterr().out
    monkeypatch.undo()
    catalog, has_codes = demo_data.add_codes(tmp_path, seed=0, console=Console())
    assert has_codes
    paths = {tuple(attributes["codes"]) for attributes in catalog.attributes}
    assert len(paths) == len(catalog), "films of one title too"
    assert {len(path) for path in paths} == {4}


@pytest.mark.slow
def test_the_demo_runs_from_data_to_report(tmp_path, capsys):
    out = tmp_path / "demo"
    assert run("demo", "--quick", "--out", out) == 0
    page = (out / "report.md").read_text()
    for name in (
        "popularity",
        "recent popularity",
        "last-item neighbour",
        "SASRec CE",
        "SASRec SCE",
        "plain SFT",
        "MSL",
        "MSL, codes",
        "MSL + SASRec CE",
    ):
        assert name in page
    for figure in ("methods", "loss", "temperature", "invalid_gradient_share", "ndcg"):
        assert (out / "figures" / f"{figure}.png").stat().st_size > 1000
    capsys.readouterr()

    for folder in ("fused", "msl-codes"):
        words = ("--history", "Signal", "--k", 3, "--json", "--device", "cpu")
        assert run("recommend", "--model", out / folder, *words) == 0
        assert len(json.loads(capsys.readouterr().out)["items"]) == 3
    assert "`codes`" in (out / "data" / "README.md").read_text()
    assert run("recommend", "--model", out / "msl", "--history", "Signal", "--k", 5, "--json", "--device", "cpu") == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert len(items) == 5
    assert all(0 < item["probability"] <= 1 for item in items)


@pytest.mark.slow
@pytest.mark.distributed
def test_evaluate_over_two_processes_gives_the_same_files(folders, tmp_path, launch):
    words = ["evaluate", "--control", "last-item", "--data", str(folders / "data"), "--limit", "11"]
    launch("-m", "hf_rec.cli", *words, "--out", tmp_path / "two")
    assert run(*words, "--out", tmp_path / "one") == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert two["evaluation"]["processes"] == 2
    assert one["metrics"] == two["metrics"]
    assert one["rows_sha256"] == two["rows_sha256"]


def test_a_result_that_stands_is_not_replaced_unasked(folders, tmp_path, capsys):
    evaluate = (
        "evaluate",
        "--control",
        "last-item",
        "--data",
        folders / "data",
        "--out",
        tmp_path / "e",
        "--limit",
        5,
    )
    report = ("report", tmp_path / "e", "--out", tmp_path / "r")
    diagnose = (
        "diagnose",
        "--control",
        "last-item",
        "--data",
        folders / "data",
        "--out",
        tmp_path / "d",
        "--limit",
        5,
    )
    for words in (evaluate, report, diagnose):
        assert run(*words) == 0
        capsys.readouterr()
        assert run(*words) == cli.BAD_INPUT
        assert "exists. Choose another place, or give `--overwrite`" in capsys.readouterr().err
        assert run(*words, "--overwrite") == 0


def test_a_finished_demo_is_not_replaced_unasked(tmp_path, capsys):
    out = tmp_path / "demo"
    out.mkdir()
    for name in ("hf_rec_demo.json", "report.md"):
        (out / name).write_text("{}")
    assert run("demo", "--out", out) == cli.BAD_INPUT
    assert "holds a finished demo" in capsys.readouterr().err
    assert (out / "report.md").is_file()


def test_serve_refuses_a_revision_of_folders(folders, capsys):
    pytest.importorskip("fastapi")
    assert run("serve", "--model", folders / "model", "--revision", "v1") == cli.BAD_INPUT
    assert "`--revision` has no effect for folders here" in capsys.readouterr().err
