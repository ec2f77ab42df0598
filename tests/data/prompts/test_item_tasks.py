"""The code of a title and the title of a code: questions about one item of the catalog."""

import copy

import pytest

from hf_rec import Catalog
from hf_rec.data.prompts.item_tasks import CODE_TO_TITLE, TITLE_TO_CODE, TaskPrompt, check_tasks
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_tokens import add_path_tokens


TITLES = ["Alien", "Aliens", "Solaris"]


@pytest.fixture(scope="module")
def parts(bpe_tokenizer):
    """Tokenizer, catalog with codes, and a function that makes the prompt of the next item."""
    records = [{"item_id": n, "title": title, "rq": [n % 2, n]} for n, title in enumerate(TITLES)]
    catalog, tokenizer = Catalog.from_records(records), copy.deepcopy(bpe_tokenizer)
    add_path_tokens(tokenizer, catalog, "codes:rq")
    return tokenizer, catalog, lambda **kwargs: Prompt(tokenizer, catalog, **{"item_path": "codes:rq"} | kwargs)


def spelled(tokenizer, row):
    labels = [token for token in row["labels"] if token != -100]
    assert row["input_ids"][-len(labels) :] == labels
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(labels)


def test_the_plain_form_marks_the_question(parts):
    tokenizer, catalog, prompt = parts
    to_code, to_title = (TaskPrompt(task, prompt(), tokenizer, catalog) for task in (TITLE_TO_CODE, CODE_TO_TITLE))
    assert spelled(tokenizer, to_code.encode(1)) == (
        "<s>Code of: Aliens\n<|rq:0:1|><|rq:1:1|>",
        "<|rq:0:1|><|rq:1:1|>",
    )
    assert spelled(tokenizer, to_title.encode(2)) == ("<s>Title of: <|rq:0:0|><|rq:1:2|>Solaris\n", "Solaris\n")


def test_the_other_forms_ask_in_the_instruction(parts):
    tokenizer, catalog, prompt = parts
    whole, answer = spelled(tokenizer, TaskPrompt(TITLE_TO_CODE, prompt(form="alpaca"), tokenizer, catalog).encode(0))
    assert "### Instruction:\nThe input is the title of an item. Write its code.\n" in whole
    assert "### Input:\nAlien\n" in whole and answer == "<|rq:0:0|><|rq:1:0|>"


def test_an_answer_is_the_path_that_the_next_item_has(parts):
    tokenizer, catalog, prompt = parts
    asked = TaskPrompt(TITLE_TO_CODE, prompt(history_path="title"), tokenizer, catalog)
    for item, path in enumerate(prompt().encode_items()):
        assert [token for token in asked.encode(item)["labels"] if token != -100] == path


@pytest.mark.parametrize("item_path", ["title", "id"])
def test_items_without_codes_are_refused(parts, item_path):
    tokenizer, catalog, _ = parts
    add_path_tokens(tokenizer, catalog, "id")
    with pytest.raises(ValueError, match="`tasks` asks for title_to_code, but items have no codes: `item_path` is"):
        TaskPrompt(TITLE_TO_CODE, Prompt(tokenizer, catalog, item_path=item_path), tokenizer, catalog)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            {"next_item": 1, "title_to_cod": 0.2},
            "`tasks` names 'title_to_cod', but there are next_item, title_to_code",
        ),
        ({"next_item": 1, "title_to_code": -0.2}, "must give title_to_code a share of at least 0, got -0.2"),
        ({"next_item": 1, "code_to_title": "0.2"}, "must give code_to_title a share of at least 0, got '0.2'"),
        ({"next_item": 1, "code_to_title": True}, "must give code_to_title a share of at least 0, got True"),
        ({"next_item": float("nan")}, "must give next_item a share of at least 0, got nan"),
        ({"next_item": 0, "title_to_code": 1}, "must give next_item a share above 0, got 0"),
        ({"title_to_code": 1}, "must give next_item a share above 0, got None"),
        ({}, "must give next_item a share above 0, got None"),
    ],
)
def test_shares_that_mean_nothing_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(tasks)
