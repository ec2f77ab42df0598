"""Every YAML parses strictly, every recipe runs two steps, and the launch configs start what they say."""

import importlib.util
import json
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hf_rec.arguments import DataArguments, check_config, parse_arguments, run_recipe, select_rows


ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))
TWO_STEPS = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
# The config that each recipe is tried with
TRIED_WITH = {
    "a_llmrec": "ml-100k_tiny.yaml",
    "item_numbers": "beauty.yaml",
    "item_text_lm": "ml-100k.yaml",
    "lastfm_csv": "lastfm.yaml",
    "llm_cf": "beauty.yaml",
    "llm_srec": "ml-100k_tiny.yaml",
    "msl": "books_tiny.yaml",
    "new_lm": "books.yaml",
    "rerank": "ml-100k_tallrec_tiny.yaml",
    "sequential": "beauty_sasrec.yaml",
    "softmax_dpo": "books_tiny.yaml",
}


@dataclass
class Arguments:
    """One field of every kind of type that recipes use."""

    name: str = field(metadata={"help": "Text."})
    rate: float = field(default=0.1, metadata={"help": "Number."})
    count: int | None = field(default=None, metadata={"help": "Whole number."})
    flag: bool = field(default=False, metadata={"help": "Yes or no."})
    words: list[str] | None = field(default=None, metadata={"help": "List."})
    kind: typing.Literal["a", "b"] = field(default="a", metadata={"help": "Choice."})


def load(recipe: Path) -> types.ModuleType:
    """A recipe as a module; nothing runs on import."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def dataclasses_of(recipe: Path) -> list[type]:
    """The dataclasses that a recipe's `main` takes."""
    return [hint for name, hint in typing.get_type_hints(load(recipe).main).items() if name != "return"]


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_parses_strictly(config):
    recipe = ROOT / "recipes" / f"{config.parent.name}.py"
    parse_arguments(dataclasses_of(recipe), ["--config", str(config)])


def test_every_recipe_is_tried_below():
    assert {path.stem for path in RECIPES} <= set(TRIED_WITH)
    assert {path.parent.name for path in CONFIGS} == {path.stem for path in RECIPES}


# Settings of the SCE paper's runs: model, dropout, learning rate, weight decay
PUBLISHED = {
    "beauty_sasrec": ("sasrec", 0.6, 5e-4, 1e-8),
    "beauty_sasrec_sce": ("sasrec", 0.6, 5e-4, 1e-8),
    "beauty_sasrec_bce": ("sasrec", 0.4, 5e-4, 1e-8),
    "beauty_fmlprec": ("fmlprec", 0.5, 1e-4, 5e-4),
    "beauty_gru4rec": ("gru4rec", 0.5, 5e-4, 1e-6),
    "beauty_caser": ("caser", 0.7, 5e-3, 5e-4),
    "yelp_sasrec": ("sasrec", 0.7, 1e-3, 1e-6),
    "yelp_sasrec_sce": ("sasrec", 0.7, 1e-3, 1e-6),
}


class TestSequentialConfigs:
    def parse(self, *words):
        data, args, model = parse_arguments(dataclasses_of(ROOT / "recipes" / "sequential.py"), words)
        return args, model.config(num_items=50)

    @pytest.mark.parametrize(
        "path", [path for path in CONFIGS if path.parent.name == "sequential"], ids=lambda p: p.stem
    )
    def test_a_config_builds_its_model_and_has_the_published_settings(self, path):
        args, config = self.parse("--config", str(path))
        assert config.num_items == 50
        assert args.load_best_model_at_end and args.do_predict
        if path.stem in PUBLISHED:
            found = (config.model_type, config.dropout, args.learning_rate, args.weight_decay)
            assert found == PUBLISHED[path.stem]
            assert (config.hidden_size, args.per_device_train_batch_size, args.weight_decay_form) == (64, 512, "l2")
            assert args.seen == ("keep" if path.stem.startswith("yelp") else "mask")  # users of Yelp repeat items

    def test_every_data_set_has_one(self):
        found = {path.stem.split("_")[0] for path in CONFIGS if path.parent.name == "sequential"}
        assert {"beauty", "yelp", "toys", "sports", "books", "ml-100k"} <= found

    def test_options_that_check_each_other_are_taken_together(self):
        words = ("--data_dir", "d", "--output_dir", "o", "--model_type", "bert4rec")
        _, config = self.parse(*words, "--hidden_size", "63", "--num_attention_heads", "3")
        assert (config.hidden_size, config.num_attention_heads) == (63, 3)

    def test_a_model_or_an_option_that_does_not_exist_is_named(self):
        words = ("--data_dir", "d", "--output_dir", "o", "--model_type")
        with pytest.raises(ValueError, match="`model_type` must be one of .*sasrec, got .sasrecx'"):
            self.parse(*words, "sasrecx")
        with pytest.raises(ValueError, match="`residual` is no option of gru4rec"):
            self.parse(*words, "gru4rec", "--residual", "input")


class TestStrictParsing:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("nmae: x", "unknown key `nmae`, did you mean `name`?"),
            ("entirely_else: x", "unknown key `entirely_else`"),
            ("name: 5", "`name` must be str, got 5 (int)"),
            ("rate: fast", "`rate` must be float, got 'fast' (str)"),
            ("rate: true", "`rate` must be float, got True (bool)"),
            ("count: 2.5", "`count` must be int or null, got 2.5 (float)"),
            ("flag: 1", "`flag` must be bool, got 1 (int)"),
            ("words: one", "`words` must be list[str] or null, got 'one' (str)"),
            ("words: [1]", "`words` must be list[str] or null, got [1] (list)"),
            ("kind: c", "`kind` must be one of 'a', 'b', got 'c' (str)"),
            ("name: x\nname: y", "key `name` is given twice"),
            ("- name", "must hold `key: value` lines, got list"),
            ("name: [x", "is not valid YAML"),
            ("env: fast", "`env` must be a mapping"),
        ],
    )
    def test_a_mistake_is_named_with_its_file(self, tmp_path, text, message):
        path = write(tmp_path, text)
        with pytest.raises(ValueError) as error:
            check_config(path, [Arguments])
        assert message in str(error.value)
        assert path in str(error.value)

    def test_all_mistakes_of_a_file_are_named_at_once(self, tmp_path):
        with pytest.raises(ValueError, match="`nmae`.*`flag`"):
            check_config(write(tmp_path, "nmae: x\nflag: 1"), [Arguments])

    def test_right_values_arrive_with_their_types(self, tmp_path):
        path = write(tmp_path, "name: x\nrate: 3e-4\ncount: null\nflag: true\nwords: [a, b]\nkind: b\n")
        for words in (["--config", path], [f"--config={path}"]):
            (arguments,) = parse_arguments([Arguments], words)
            assert arguments == Arguments("x", 3e-4, None, True, ["a", "b"], "b")

    def test_the_command_line_wins(self, tmp_path):
        words = ["--config", write(tmp_path, "name: x\ncount: 3"), "--count", "4"]
        assert parse_arguments([Arguments], words)[0].count == 4

    def test_a_shortened_flag_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="--cou"):
            parse_arguments([Arguments], ["--config", write(tmp_path, "name: x"), "--cou", "4"])

    def test_an_unknown_flag_names_the_one_it_is_near_to(self):
        with pytest.raises(ValueError, match="unknown flag `--rtae`, did you mean `--rate`?"):
            parse_arguments([Arguments], ["--name", "x", "--rtae=3"])

    def test_a_missing_flag_is_one_line_without_the_usage(self, capsys):
        with pytest.raises(ValueError, match="required: --name. `--help` lists all flags."):
            parse_arguments([Arguments], ["--rate", "3"])
        assert capsys.readouterr().err == ""

    def test_a_missing_file_is_named(self):
        with pytest.raises(ValueError, match="`--config` 'none.yaml' cannot be read"):
            parse_arguments([Arguments], ["--config", "none.yaml"])
        with pytest.raises(ValueError, match="needs the path"):
            parse_arguments([Arguments], ["--config"])

    def test_a_key_that_no_dataclass_of_a_recipe_has_is_named(self, tmp_path):
        config = ROOT / "recipes" / "configs" / "msl" / TRIED_WITH["msl"]
        text = config.read_text().replace("adaptive_tau:", "adaptive_tua:")
        with pytest.raises(ValueError, match="unknown key `adaptive_tua`, did you mean `adaptive_tau`"):
            parse_arguments(dataclasses_of(ROOT / "recipes" / "msl.py"), ["--config", write(tmp_path, text)])


class TestRunningARecipe:
    def recipe(self, error: BaseException | None = None, seen: list | None = None):
        def main(arguments: Arguments) -> None:
            if error is not None:
                raise error
            seen.append(arguments)

        return main

    def test_main_gets_what_its_parameters_are_annotated_with(self):
        seen = []
        assert run_recipe(self.recipe(seen=seen), ["--name", "x"]) == 0
        assert seen == [Arguments("x")]

    @pytest.mark.parametrize("error", [ValueError("bad rate"), OSError("no such file"), FloatingPointError("nan")])
    def test_an_error_is_one_line_and_debug_shows_the_traceback(self, capsys, error):
        assert run_recipe(self.recipe(error), ["--name", "x"]) == 2
        assert capsys.readouterr().err == f"test_recipes.py: {error}\n"
        with pytest.raises(type(error)):
            run_recipe(self.recipe(error), ["--name", "x", "--debug"])

    def test_an_interrupted_run_says_how_to_go_on(self, capsys):
        assert run_recipe(self.recipe(KeyboardInterrupt()), ["--name", "x"]) == 130
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "`--resume_from_checkpoint last`" in lines[0]

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_every_recipe_ends_its_processes_in_order(self, path):
        assert path.read_text().endswith('if __name__ == "__main__":\n    sys.exit(run_recipe(main))\n')


class TestDataArguments:
    def test_a_limit_below_one_is_named(self):
        with pytest.raises(ValueError, match="`max_eval_samples` must be at least 1, got 0"):
            DataArguments("data", max_eval_samples=0)

    def test_selected_rows_are_spread_evenly_and_in_order(self):
        from datasets import Dataset

        rows = Dataset.from_dict({"row": list(range(10))})
        assert list(select_rows(rows, 4)["row"]) == [0, 2, 5, 7]
        assert select_rows(rows, None) is rows
        assert select_rows(rows, 10) is rows


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A small prepared data set, a tiny language model made by `recipes/new_lm.py`, and a recommender of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_rec import Catalog, ItemTrie
    from hf_rec.data.prepare import prepare
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.hub import save_recommender

    root = tmp_path_factory.mktemp("recipes")
    data, base = root / "data", root / "base"
    prepare("demo", data, num_users=40, seed=0)
    small = ("--vocab_size", 400, "--hidden_size", 32, "--num_layers", 1, "--num_heads", 2)
    run_here("new_lm", "--data_dir", data, "--output_dir", base, *small)
    catalog, tokenizer = Catalog.load(data), AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    prompt = Prompt(tokenizer, catalog, max_length=128)
    save_recommender(
        root / "start",
        catalog=catalog,
        kind="language_model",
        prompt=prompt,
        trie=ItemTrie.build(prompt.encode_items()),
        tokenizer=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False),
    )
    return root


def run_here(recipe: str, *words: object, config: str | None = None) -> None:
    """A recipe in this process, with words that make the run short."""
    path = ROOT / "recipes" / f"{recipe}.py"
    config = ROOT / "recipes" / "configs" / recipe / (config or TRIED_WITH[recipe])
    load(path).main(*parse_arguments(dataclasses_of(path), ["--config", str(config), *map(str, words)]))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.distributed
def test_the_msl_recipe_trains_saves_and_ranks_with_two_processes(workplace, accelerate_launch):
    out = workplace / "msl"
    words = ("--data_dir", workplace / "data", "--model_name_or_path", workplace / "base", "--output_dir", out)
    config = f"recipes/configs/msl/{TRIED_WITH['msl']}"
    words = ("recipes/msl.py", "--config", config, *words, *TWO_STEPS, "--per_device_train_batch_size", 16)
    every_step = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    words = (*words, *every_step, "--load_best_model_at_end", "true", "--save_total_limit", 2)
    accelerate_launch("accelerate_configs/cpu_2.yaml", *words, "--max_test_samples", 8)
    metrics = read(out / "test" / "metrics.json")
    assert metrics["rows"] == 8 and metrics["evaluation"]["processes"] == 2
    assert metrics["cost"]["training_rows"] == 40 and metrics["cost"]["seed"] == 0
    state = read(out / "trainer_state.json")
    assert state["global_step"] == 2
    assert Path(state["best_model_checkpoint"]).parent == out
    from hf_rec.trainers.checkpoints import what_is_missing

    for checkpoint in ("checkpoint-1", "checkpoint-2"):
        assert what_is_missing(str(out / checkpoint), processes=2) is None
    assert not list(out.glob(".*"))

    from hf_rec import load_recommender

    recommender = load_recommender(out, device="cpu")
    assert len(recommender.recommend([recommender.catalog.ids[:2]], k=3).item_ids[0]) == 3


def with_codes(folder: Path, column: str) -> None:
    """Two codes for each item of a prepared folder."""
    from hf_rec import Catalog

    catalog = Catalog.load(folder)
    attributes = [{**old, column: [row % 7, row // 7]} for row, old in enumerate(catalog.attributes)]
    Catalog(catalog.ids, catalog.original_titles, attributes, titles=catalog.titles).save(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiger", "p5"])
def test_the_configs_of_tiger_and_p5_make_train_and_rank_a_t5(tmp_path, name):
    from hf_rec import load_recommender
    from hf_rec.data.prepare import prepare

    data, base, out = tmp_path / "data", tmp_path / "base", tmp_path / "out"
    prepare("demo", data, num_users=20, seed=0)
    with_codes(data, "codes_rqvae")
    run_here("item_numbers", "--data_dir", data)
    with pytest.raises(ValueError, match="unknown flag `--train_split`"):  # no held-out rows give the order
        run_here("item_numbers", "--data_dir", data, "--column", "other", "--train_split", "test")
    config = f"beauty_{name}.yaml"
    small = ("--hidden_size", 16, "--num_layers", 1, "--num_heads", 2, "--head_size", 8, "--feed_forward_size", 32)
    with pytest.raises(ValueError, match="`item_path` or `history_path` 'codes:rvq': no item"):
        run_here("new_lm", "--data_dir", data, "--output_dir", base, *small, "--item_path", "codes:rvq", config=config)
    run_here("new_lm", "--data_dir", data, "--output_dir", base, *small, config=config)
    words = ("--data_dir", data, "--model_name_or_path", base, "--output_dir", out, *TWO_STEPS)
    words = (*words, "--max_train_samples", 16, "--max_test_samples", 4, "--per_device_train_batch_size", 4)
    words = (*words, "--gradient_accumulation_steps", 2, "--max_eval_samples", 4)
    numbers = ("--item_path", "number") if name == "p5" else ()
    run_here("msl", *words, *numbers, config=config)
    assert read(out / "test" / "metrics.json")["rows"] == 4
    recommender = load_recommender(out, device="cpu")
    assert type(recommender.model).__name__ == {"tiger": "T5ForConditionalGeneration", "p5": "WholeWordT5Model"}[name]
    assert len(recommender.recommend([recommender.catalog.ids[:2]], k=3).item_ids[0]) == 3


@pytest.mark.slow
def test_the_llm_cf_recipe_takes_texts_and_ranks(workplace):
    out, rows = workplace / "llm_cf", read(workplace / "data" / "data.json")["splits"]["train"]["rows"]
    (workplace / "texts.jsonl").write_text("\n".join(json.dumps(f"likes {row % 7}") for row in range(rows)))
    words = ("--data_dir", workplace / "data", "--output_dir", out, *TWO_STEPS, "--max_test_samples", 8)
    run_here("llm_cf", *words, "--texts", workplace / "texts.jsonl", "--hidden_size", 16)
    assert read(out / "test" / "metrics.json")["rows"] == 8
    (workplace / "texts.jsonl").write_text('"one"\n')
    with pytest.raises(ValueError, match="holds 1 lines, not one JSON string for each of"):
        run_here("llm_cf", *words, "--texts", workplace / "texts.jsonl")


@pytest.mark.slow
def test_the_sequential_recipe_trains_saves_and_ranks(workplace, capsys):
    out = workplace / "sequential"
    run_here("sequential", "--data_dir", workplace / "data", "--output_dir", out, *TWO_STEPS, "--max_test_samples", 8)
    metrics = read(out / "test" / "metrics.json")
    assert metrics["rows"] == 8 and metrics["evaluation"]["processes"] == 1
    assert metrics["cost"] == read(out / "cost.json") and metrics["cost"]["seconds"] > 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"{out / 'test'}: 8 rows. Next: hf-rec report {out} --out {out}-report"


@pytest.mark.slow
def test_a_recipe_that_is_started_again_replaces_nothing_unasked(workplace, capsys):
    out = workplace / "again"
    config = ROOT / "recipes" / "configs" / "sequential" / TRIED_WITH["sequential"]
    words = ["--config", config, "--data_dir", workplace / "data", "--output_dir", out, *TWO_STEPS]
    words = [*map(str, words), "--max_test_samples", "8"]
    main = load(ROOT / "recipes" / "sequential.py").main
    assert run_recipe(main, words) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run_recipe(main, words) == 2
    assert "holds a finished run. `--resume_from_checkpoint last` goes on" in capsys.readouterr().err
    assert run_recipe(main, [*words, "--resume_from_checkpoint", "last"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run_recipe(main, [*words, "--overwrite", "true"]) == 0
    assert before[out / "cost.json"] < (out / "cost.json").stat().st_mtime_ns


@pytest.mark.slow
def test_the_config_of_llara_trains_saves_and_ranks_among_all_and_among_few(workplace):
    from hf_rec import load_recommender

    data, teacher, out = workplace / "data", workplace / "llara_sasrec", workplace / "llara"
    run_here("sequential", "--data_dir", data, "--output_dir", teacher, *TWO_STEPS, "--do_predict", "false")
    words = ("--data_dir", data, "--model_name_or_path", workplace / "base", "--sequence_model", teacher)
    words = (*words, *TWO_STEPS, "--output_dir", out, "--max_test_samples", 8, "--max_length", 128)
    run_here("msl", *words, config="ml-100k_llara_tiny.yaml")
    assert read(out / "test" / "metrics.json")["rows"] == read(out / "test_1+19" / "metrics.json")["rows"] == 8
    recommender = load_recommender(out, device="cpu")
    assert len(recommender.recommend([recommender.catalog.ids[:2]], k=3).item_ids[0]) == 3


@pytest.mark.slow
def test_the_a_llmrec_recipe_runs_both_stages_and_goes_on_in_either(workplace):
    from hf_rec import load_recommender

    data, teacher, out = workplace / "data", workplace / "a_llmrec_sasrec", workplace / "a_llmrec"
    run_here("sequential", "--data_dir", data, "--output_dir", teacher, *TWO_STEPS, "--do_predict", "false")
    words = ("--data_dir", data, "--model_name_or_path", workplace / "start", *TWO_STEPS, "--max_test_samples", 8)
    first = ("--sequence_model", teacher, "--alignment_epochs", 1, "--output_dir", out)
    run_here("a_llmrec", *words, *first)
    assert read(out / "test" / "metrics.json")["rows"] == read(out / "test_1+19" / "metrics.json")["rows"] == 8
    assert read(out / "aligned" / "cost.json")["training_rows"] == 40
    recommender = load_recommender(out, device="cpu")
    assert len(recommender.recommend([recommender.catalog.ids[:2]], k=3).item_ids[0]) == 3
    aligned = load_recommender(out / "aligned", device="cpu")  # stage 1 is a recommender of its own
    assert len(aligned.recommend([aligned.catalog.ids[:2]], k=3).item_ids[0]) == 3
    time = (out / "aligned" / "model.safetensors").stat().st_mtime_ns
    for path in (out / "cost.json", out / "test" / "metrics.json"):  # as if it had been cut off in stage 2
        path.unlink()
    run_here("a_llmrec", *words, *first, "--resume_from_checkpoint", "last")
    assert (out / "aligned" / "model.safetensors").stat().st_mtime_ns == time and (out / "cost.json").is_file()
    with pytest.raises(ValueError, match="Give one of `sequence_model`"):
        run_here("a_llmrec", *words, *first, "--aligned_model", out / "aligned")
    with pytest.raises(ValueError, match="`collaborative` must be 'joint'"):
        run_here("a_llmrec", *words, *first, "--collaborative", "item")


@pytest.mark.slow
def test_the_softmax_dpo_recipe_starts_from_a_recommender_and_ranks_among_few(workplace):
    out = workplace / "sdpo"
    words = ("--data_dir", workplace / "data", "--model_name_or_path", workplace / "start", "--output_dir", out)
    run_here("softmax_dpo", *words, *TWO_STEPS, "--max_test_samples", 8, "--num_candidates", 5)
    assert read(out / "test" / "metrics.json")["rows"] == 8
    assert read(out / "test_1+5" / "metrics.json")["rows"] == 8


@pytest.mark.slow
def test_the_softmax_dpo_recipe_plays_rounds_and_does_nothing_when_they_are_finished(workplace):
    out = workplace / "self_play"
    words = ("--data_dir", workplace / "data", "--model_name_or_path", workplace / "start", "--output_dir", out)
    words = (*words, *TWO_STEPS, "--max_train_samples", 12, "--max_test_samples", 4, "--num_candidates", 5)
    words = (*words, "--negatives", "own_lists", "--num_rounds", 2)
    run_here("softmax_dpo", *words)
    assert read(out / "test" / "metrics.json")["rows"] == 4
    assert (out / "model.safetensors").read_bytes() == (out / "round-2" / "model.safetensors").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    run_here("softmax_dpo", *words)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    with pytest.raises(ValueError, match="Rounds of self-play need `negatives='own_lists'`, got 'random'"):
        run_here("softmax_dpo", *words, "--negatives", "random")


@pytest.mark.slow
def test_the_rerank_recipe_judges_likes_and_orders_a_retrievers_lists(workplace):
    from hf_rec import Catalog, load_recommender
    from hf_rec.data.prepare import load_prepared, prepare
    from hf_rec.hub import save_control
    from hf_rec.recommenders.control_list import make_control

    titles = Catalog.load(workplace / "data").original_titles
    lines = [f"u{row % 5},i{row % 9},{row},{1 + row * 7 % 5},{titles[row % 9]!r}" for row in range(80)]
    (workplace / "rated.csv").write_text("\n".join(["user_id,item_id,timestamp,stars,title", *lines]) + "\n")
    table = {"path": str(workplace / "rated.csv"), "rating_column": "stars", "title_column": "title"}
    prepare("table", workplace / "rated", **table, like=4, window=6)
    base, small = workplace / "long", ("--hidden_size", 16, "--num_layers", 1, "--num_heads", 2)
    run_here("new_lm", "--data_dir", workplace / "data", "--output_dir", base, *small, config="ml-100k_1024.yaml")
    words = ("--model_name_or_path", base, *TWO_STEPS, "--max_length", 600, "--max_item_tokens", 12)
    out = workplace / "tallrec"
    run_here("rerank", "--data_dir", workplace / "rated", "--output_dir", out, *words, "--num_shots", 16)
    result = read(out / "test" / "preferences.json")
    assert 0 <= result["metrics"]["rated/split=test/auc"]["mean"] <= 1
    assert result["cost"]["training_rows"] == 16

    catalog, splits, _ = load_prepared(workplace / "data")
    save_control(workplace / "popular", make_control("popularity", catalog, splits["train"]))
    out = workplace / "llamarec"
    words = (*words, "--retriever", workplace / "popular", "--num_candidates", 5, "--max_test_samples", 8)
    words = (*words, "--max_train_samples", 8, "--data_dir", workplace / "data", "--output_dir", out)
    run_here("rerank", *words, config="ml-100k_llamarec_tiny.yaml")
    for name in ("test", "test_retriever"):
        assert read(out / name / "metrics.json")["rows"] == 8
    assert read(out / "test" / "position_bias.json")["permutations"] == 4
    assert load_recommender(out / "reranked", device="cpu").n == 5


@pytest.mark.slow
def test_the_llm_srec_recipe_trains_teacher_and_student(workplace):
    out = workplace / "llm_srec"
    words = ("--data_dir", workplace / "data", "--model_name_or_path", workplace / "base", "--output_dir", out)
    teacher = ("--sequence_epochs", 1, "--sequence_eval_epochs", 1)
    short = ("--max_length", 256, "--max_steps", 2, "--max_eval_samples", 8, "--max_test_samples", 8)
    run_here("llm_srec", *words, *teacher, *short)
    assert (out / "sequence_model" / "model.safetensors").is_file()
    assert read(out / "test" / "metrics.json")["rows"] == 8
    weights = (out / "sequence_model" / "model.safetensors").stat().st_mtime_ns
    student = (out / "model.safetensors").read_bytes()
    run_here("llm_srec", *words, *teacher, *short, "--resume_from_checkpoint", "last", "--do_predict", "false")
    assert (out / "sequence_model" / "model.safetensors").stat().st_mtime_ns == weights
    assert (out / "model.safetensors").read_bytes() == student


def test_the_llm_srec_recipe_misses_the_language_model_before_it_trains_a_teacher(workplace):
    out = workplace / "no_lm"
    with pytest.raises(OSError, match="nonesuch"):
        run_here(
            "llm_srec", "--data_dir", workplace / "data", "--model_name_or_path", out / "nonesuch", "--output_dir", out
        )
    assert not out.exists()


def test_a_row_of_item_text_comes_back_to_few_items_and_fits_the_model():
    packed = load(ROOT / "recipes" / "item_text_lm.py").packed
    items = [[10 * item, 10 * item + 1] for item in range(1, 21)]  # two tokens each
    rows = packed(items, [0], length=30, items_per_row=5, num_orders=2, seed=0)["input_ids"]
    assert len(rows) == 8
    pools = [{token // 10 for token in row[1:]} for row in rows]
    for row, pool in zip(rows, pools, strict=True):
        assert row[0] == 0 and len(row) == 29  # another item would not fit into 30
        assert all(row[at + 1] == row[at] + 1 for at in range(1, 29, 2)), "items stand whole"
        assert len(pool) <= 5
    for order in (pools[:4], pools[4:]):
        assert sum(map(len, order)) == len(set().union(*order)), "an item is in one row of an order"
    assert pools[:4] != pools[4:]


@pytest.mark.slow
def test_the_item_text_recipe_trains_a_language_model(workplace):
    out = workplace / "text_lm"
    words = ("--data_dir", workplace / "data", "--model_name_or_path", workplace / "base", "--output_dir", out)
    run_here("item_text_lm", *words, *TWO_STEPS, "--use_cpu", "true")
    assert (out / "model.safetensors").is_file()


def test_the_lastfm_recipe_writes_what_prepare_reads(tmp_path):
    from hf_rec.data.prepare import prepare

    source = tmp_path / "lastfm"
    source.mkdir()
    row = {"historyList": "A::B::C", "itemList": ["D", "E"], "trueSelection": "D"}
    for name in ("lastfm-val.json", "lastfm-test.json"):
        (source / name).write_text(json.dumps([row] * 20))
    run_here("lastfm_csv", "--path", source, "--output_dir", tmp_path / "csv")
    card = prepare("sequence-csv", tmp_path / "data", path=tmp_path / "csv")
    assert card["splits"]["test"]["rows"] == 20
