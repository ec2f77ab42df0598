"""MSL and Softmax-DPO on item paths of every form: from the training rows to lists that equal brute force."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rec import Catalog, MSLConfig, MSLTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer, load_recommender
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.models.language.path_tokens import grow_vocabulary, num_rows, train_path_tokens


HISTORIES = [[1, 2, 9], [3], [4, 5, 6], [7, 0]]
ROWS = Dataset.from_dict({HISTORY: HISTORIES, TARGET: [3, 4, 6, 8], SUPERVISE_FROM: [1, 1, 1, 1]})
METHODS = {"msl": (MSLTrainer, MSLConfig), "softmax_dpo": (SoftmaxDPOTrainer, SoftmaxDPOConfig)}
PATHS = {
    "text column": ("textual_id", None, "all"),
    "codes": ("codes:rq", None, "all"),
    "codes, history with titles": ("codes:rq", "codes:rq+title", "all"),
    "codes behind titles": ("codes:rq", "title", "last"),
    "title and codes": ("title", "title+codes:rq", "all"),
    "id": ("id", None, "all"),
    "digits": ("digits", "title", "last"),
}


@pytest.fixture(scope="module")
def catalog(tiny_catalog):
    """The films with two columns: 3 x 2 x 3 codes, of which films 3 and 4 have the same, and a textual id."""
    return Catalog.from_records(
        {
            "item_id": item_id,
            "title": title,
            "rq": [row % 3, row // 3 % 2, 0 if row in (3, 4) else row // 6 + 1],
            "textual_id": f"film {row % 5} {title.lower()}",
        }
        if row != 4
        else {"item_id": item_id, "title": title, "rq": [0, 1, 0], "textual_id": "second"}
        for row, (item_id, title) in enumerate(zip(tiny_catalog.ids, tiny_catalog.titles, strict=True))
    )


@pytest.fixture
def train(tmp_path, catalog, bpe_tokenizer):
    """`train("msl", model, item_path=..., ...)`: a trainer after two steps; `steps=0` trains nothing."""

    def run(method, model, folder="run", steps=2, **kwargs):
        trainer_class, config = METHODS[method]
        names = set(config.__dataclass_fields__)
        settings = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        args = config(str(tmp_path / folder), **{"max_steps": 2, "learning_rate": 1e-2} | quiet | settings)
        kwargs = {"catalog": catalog, "processing_class": copy.deepcopy(bpe_tokenizer)} | kwargs
        trainer = trainer_class(model, args=args, train_dataset=ROWS, **kwargs)
        if steps:
            trainer.train()
        return trainer

    return run


def brute_force(recommender, history):
    """log P of each item, from one whole forward pass an item."""
    prompt, csr = recommender.prompt, recommender.trie
    start, scores = prompt.encode_history(recommender.catalog.rows(history)), []
    for path in prompt.encode_items():
        with torch.no_grad():
            logits = recommender.model(torch.tensor([start + path])).logits[0, len(start) - 1 :].double()
        node, total = torch.tensor([csr.root]), 0.0
        for logit, token in zip(logits, path, strict=False):
            children = csr.children(node)[0]
            total += (logit[token] - logit[children[children >= 0]].logsumexp(0)).item() / recommender.tau
            node = csr.step(node, torch.tensor([token]))
        scores.append(total)
    return np.array(scores)


def assert_lists_are_those_of_brute_force(recommender):
    histories = [[101, 102], [109]]
    found = recommender.recommend(histories, k=12, num_beams=12)
    paths = [tuple(path) for path in recommender.prompt.encode_items()]
    for history, listed, scores in zip(histories, found.item_ids, found.scores, strict=True):
        expected = brute_force(recommender, history)
        rows = recommender.catalog.rows(listed)
        assert sorted(rows) == list(range(12))
        np.testing.assert_allclose(scores, expected[rows], atol=1e-4)  # float32 against float64, some 10 nats
        np.testing.assert_allclose(scores, np.sort(expected)[::-1], atol=1e-4)
        leaves = dict(zip(paths, expected, strict=True))
        assert sum(np.exp(list(leaves.values()))) == pytest.approx(1, abs=1e-5)  # of float32 logits
    assert found.certified.all()


@pytest.mark.parametrize("paths", PATHS)
def test_what_a_trained_folder_recommends_is_the_order_of_brute_force(train, tiny_lm, tmp_path, paths):
    item_path, history_path, supervise = PATHS[paths]
    trainer = train("msl", tiny_lm(), item_path=item_path, history_path=history_path, supervise=supervise)
    trainer.save_model()
    recommender = load_recommender(tmp_path / "run", device="cpu")
    assert recommender.prompt.item_path == item_path and recommender.prompt.history_path == history_path
    assert_lists_are_those_of_brute_force(recommender)
    weights = dict(trainer.model.named_parameters())
    for name, weight in recommender.model.named_parameters():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_on_codes_takes_the_steps_of_one_that_went_through(train, base, tmp_path, adapter):
    settings = {"item_path": "codes:rq", "history_path": "codes:rq+id", "supervise": "all", "processing_class": None}
    if adapter:
        settings["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = base(True)
    whole = train("msl", model, folder="whole", max_steps=3, save_strategy="steps", save_steps=2, **settings)
    resumed = train("msl", model, folder="resumed", max_steps=3, steps=0, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_packed_rows_have_the_loss_of_padded_ones(train, tiny_lm):
    settings = {"item_path": "codes:rq", "history_path": "codes:rq+title", "supervise": "all"}
    losses = [
        train("msl", tiny_lm("llama"), packing=packing, **settings).state.log_history[-1]["train_loss"]
        for packing in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_under_id_paths_msl_is_full_cross_entropy_over_the_items(train, tiny_lm):
    trainer = train("msl", tiny_lm(), item_path="id", steps=0)
    metrics = trainer.evaluate(ROWS)
    tokens = [path[0] for path in trainer.prompt.encode_items()]
    losses = []
    for history, target in zip(HISTORIES, ROWS[TARGET], strict=True):
        with torch.no_grad():
            logits = trainer.model(torch.tensor([trainer.prompt.encode_history(history)])).logits[0, -1, tokens]
        losses.append(torch.nn.functional.cross_entropy(logits.double()[None], torch.tensor([target])).item())
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_items_with_the_same_codes_share_a_score_and_a_warning_counts_them(train, tiny_lm, caplog):
    with caplog.at_level("WARNING", logger="hf_rec"):
        trainer = train("msl", tiny_lm(), item_path="codes:rq", steps=0)
    assert trainer.prompt.report()["sharing"] == 2
    scores = trainer.recommender().score([[101]], [[103, 104, 105]])[0]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", ["mean", "words"])
def test_a_plain_model_grows_by_the_codes_that_occur(train, tiny_lm, bpe_tokenizer, method, init):
    model = tiny_lm("llama")
    trainer = train(method, model, item_path="codes:rq", path_token_init=init, steps=0)
    assert num_rows(trainer.model) == len(bpe_tokenizer) + 8 == len(trainer.processing_class)
    codes = [model.get_input_embeddings().weight[path[0]] for path in trainer.prompt.encode_items()]
    words = [
        token
        for row in (0, 3, 4, 6, 9)
        for token in bpe_tokenizer(trainer.catalog.titles[row], add_special_tokens=False)["input_ids"]
    ]
    mean = model.get_input_embeddings().weight[words].mean(dim=0)
    assert torch.allclose(codes[0], mean, atol=1e-6) == (init == "words")


def test_the_same_seed_grows_the_same_rows(train, tiny_lm):
    models = [tiny_lm("llama") for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train("msl", model, item_path="id", seed=seed, steps=0)
    one, same, other = (model.get_input_embeddings().weight for model in models)
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.fixture
def base(tmp_path, bpe_tokenizer):
    """`base(tied)`: folder of a Llama that knows no path token."""

    def save(tied):
        config = LlamaConfig(
            vocab_size=len(bpe_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        bpe_tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return save


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_and_saves_the_rows_of_the_path_tokens_alone(train, base, tmp_path, method, tied):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = train(method, base(tied), item_path="codes:rq", peft_config=lora, processing_class=None, steps=0)
    start = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    trainer.save_model()
    rows = [name for name, weight in trainer.model.named_parameters() if "trainable_tokens_delta" in name]
    assert len(rows) == (1 if tied else 2)
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and ("lora_" not in name):
            assert name in rows and weight.shape == (8, 32) and not torch.equal(weight, start[name])
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in stored.values()) == len(rows) * 8 * 32 + 2 * (2 * 32)
    loaded = load_recommender(tmp_path / "run", device="cpu")
    items = [trainer.catalog.ids]
    np.testing.assert_array_equal(trainer.recommender().score([[101]], items)[0], loaded.score([[101]], items)[0])
    assert_lists_are_those_of_brute_force(loaded)
    further = train(method, str(tmp_path / "run"), folder="further", processing_class=None, catalog=None)
    trained = dict(further.model.named_parameters())
    assert all(
        not torch.equal(trained[name], weight) for name, weight in loaded.model.named_parameters() if name in rows
    )
    further.save_model()
    assert load_file(tmp_path / "further" / "adapter_model.safetensors").keys() == stored.keys()
    assert_lists_are_those_of_brute_force(load_recommender(tmp_path / "further", device="cpu"))


def test_the_reference_of_a_trained_adapter_has_its_rows_of_path_tokens(train, base, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    train("msl", base(True), item_path="id", peft_config=lora, processing_class=None, folder="first").save_model()
    trainer = train("softmax_dpo", str(tmp_path / "first"), processing_class=None, catalog=None, steps=0)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(np.log(4))  # K = 3 rejected items, and the policy is its reference


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"trainable_token_indices": [7]}, {"model.embed_tokens": [7, 40, 41], "lm_head": [40, 41]}),
        ({"trainable_token_indices": {"lm_head": [7]}}, {"model.embed_tokens": [40, 41], "lm_head": [7, 40, 41]}),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, None),
    ],
)
def test_tokens_and_modules_that_an_adapter_trains_already_stay(tiny_lm, options, expected):
    lora = LoraConfig(r=2, target_modules=["q_proj"], **options)
    config = train_path_tokens(lora, tiny_lm("llama"), [40, 41])
    assert config.trainable_token_indices == expected
    assert lora.trainable_token_indices == options.get("trainable_token_indices")


def test_a_head_with_a_bias_is_trained_whole_and_other_adapters_are_refused(tiny_lm):
    model = tiny_lm("llama")
    with pytest.raises(ValueError, match="`peft_config` is a LoHaConfig, which cannot train the tokens of item paths"):
        train_path_tokens(LoHaConfig(r=2, target_modules=["q_proj"]), model, [40])
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size)
    config = train_path_tokens(LoraConfig(r=2, target_modules=["q_proj"]), model, [40])
    assert config.modules_to_save == ["model.embed_tokens", "lm_head"] and config.trainable_token_indices is None
    with pytest.raises(ValueError, match="`model` is an adapter"):
        grow_vocabulary(get_peft_model(model, config), model.config.vocab_size + 1, [model.config.vocab_size])


@pytest.mark.parametrize("method", METHODS)
def test_attributes_and_wording_come_from_the_arguments(train, tiny_lm, tmp_path, method):
    words = {"item_attributes": ["textual_id"], "template": "Seen: {history}Next: "}
    trainer = train(method, tiny_lm(), item_path="codes:rq", **words)
    assert (trainer.prompt.item_attributes, trainer.prompt.template) == tuple(words.values())
    trainer.save_model()
    assert_lists_are_those_of_brute_force(load_recommender(tmp_path / "run", device="cpu"))
    told = train(method, tiny_lm(), prompt_form="alpaca", instruction="Name a film.", steps=0)
    assert told.prompt.instruction == "Name a film."
    with pytest.raises(ValueError, match="`item_attributes`: no item of the catalog has an attribute 'maker'"):
        train(method, tiny_lm(), item_attributes=["maker"], steps=0)
    with pytest.raises(ValueError, match="got 0 in 'Next: '"):
        METHODS[method][1](str(tmp_path), template="Next: ")


def test_training_goes_on_from_a_folder_of_codes(train, tiny_lm, catalog, tmp_path):
    first = train("msl", tiny_lm(), item_path="codes:rq", history_path="codes:rq+title", folder="first")
    first.save_model()
    for method in METHODS:
        trainer = train(method, str(tmp_path / "first"), folder=method, processing_class=None, catalog=None)
        assert (
            trainer.prompt.sha256 == first.prompt.sha256 and trainer.prompt.paths_sha256 == first.prompt.paths_sha256
        )
        trainer.save_model()
        assert_lists_are_those_of_brute_force(load_recommender(tmp_path / method, device="cpu"))
    records = [
        {"item_id": item_id, "title": title} | attributes | {"rq": attributes["rq"][::-1]}
        for item_id, title, attributes in zip(catalog.ids, catalog.titles, catalog.attributes, strict=True)
    ]
    with pytest.raises(ValueError, match="`catalog` has other values of 'rq'"):
        train("msl", str(tmp_path / "first"), catalog=Catalog.from_records(records), processing_class=None)


def test_rows_are_tokenised_again_for_other_codes(train, tiny_lm, catalog):
    records = [
        {"item_id": item_id, "title": title, "rq": [row // 4, row % 4]}
        for row, (item_id, title) in enumerate(zip(catalog.ids, catalog.titles, strict=True))
    ]
    found = [
        train("msl", tiny_lm(), item_path="codes:rq", catalog=items, steps=0).train_dataset[0]["labels"]
        for items in (catalog, Catalog.from_records(records))
    ]
    assert len([label for label in found[0] if label != -100]) == 3
    assert len([label for label in found[1] if label != -100]) == 2


def test_a_prompt_with_tokens_that_the_model_lacks_is_refused(train, tiny_lm, bpe_tokenizer, catalog):
    from hf_rec import Prompt
    from hf_rec.data.prompts.path_tokens import add_path_tokens

    tokenizer = copy.deepcopy(bpe_tokenizer)
    add_path_tokens(tokenizer, catalog, "id")
    prompt = Prompt(tokenizer, catalog, item_path="id")
    with pytest.raises(ValueError, match="`prompt` holds token .* but `model` has .*grow_vocabulary"):
        train("msl", tiny_lm(), processing_class=tokenizer, prompt=prompt, steps=0)


def test_settings_that_would_give_answers_away_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="`history_path` 'title' must begin with `item_path` 'codes:rq'"):
        MSLConfig(str(tmp_path), supervise="all", item_path="codes:rq", history_path="title")
    with pytest.raises(ValueError, match="`item_path` must be one form"):
        SoftmaxDPOConfig(str(tmp_path), item_path="codes:rq+title")
