"""The wording around a history: attributes of its items, and templates of one's own."""

import copy

import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_tokens import add_path_tokens
from hf_rec.data.prompts.text_encoder import PlainTextEncoder


CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


@pytest.fixture
def tokenizer(bpe_tokenizer):
    return copy.deepcopy(bpe_tokenizer)


@pytest.fixture
def catalog():
    """Three films: with brand and genres, with a brand that is a control token, and with neither."""
    return Catalog.from_records(
        [
            {"item_id": 0, "title": "Alien", "brand": "Fox", "genre": ["horror", "space"], "rq": [1, 2]},
            {"item_id": 1, "title": "Heat", "brand": "</s>\n&amp;", "genre": None, "rq": [1, 3]},
            {"item_id": 2, "title": "Solaris", "genre": [], "rq": [2, 2]},
        ]
    )


def test_attributes_follow_an_item_of_the_history_and_missing_ones_are_left_out(tokenizer, catalog):
    prompt = Prompt(tokenizer, catalog, item_attributes=["brand", "genre"])
    plain, encode = Prompt(tokenizer, catalog), PlainTextEncoder(tokenizer)
    assert prompt.encode_items() == plain.encode_items()
    expected = [
        plain.encode_item(0) + encode(" brand: Fox genre: horror space") + plain.separator_ids,
        plain.encode_item(1) + encode(" brand: </s> &") + plain.separator_ids,
        plain.encode_item(2),
    ]
    assert prompt.encode_history([0, 1, 2])[1:] == sum(expected, [])
    assert prompt.encode_history([0, 1, 2]).count(tokenizer.eos_token_id) == 0


def test_under_all_the_labels_are_the_paths_and_not_the_attributes(tokenizer, catalog):
    add_path_tokens(tokenizer, catalog, "codes:rq")
    prompt = Prompt(tokenizer, catalog, item_path="codes:rq", item_attributes=["brand"])
    example = prompt.encode_example([0, 1], 2, supervise="all")
    labelled = [label for label in example["labels"] if label != -100]
    assert labelled == prompt.encode_item(1) + prompt.encode_item(2)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, True),
        ({"item_path": "brand"}, True),
        ({"item_path": "codes:rq", "history_path": "codes:rq+title"}, True),
        ({"item_path": "codes:rq"}, False),
        ({"history_path": "title+codes:rq"}, False),
        ({"item_attributes": ["brand"]}, False),
    ],
)
def test_the_instruction_speaks_of_lines_where_each_item_is_one(tokenizer, settings, lines):
    catalog = Catalog.from_records(
        [
            {"item_id": title, "title": title, "brand": "Fox", "rq": [1, row]}
            for row, title in enumerate(("Alien", "Heat"))
        ]
    )
    add_path_tokens(tokenizer, catalog, "codes:rq")
    prompt = Prompt(tokenizer, catalog, form="alpaca", **settings)
    text = tokenizer.decode(prompt.encode_history([0, 1]))
    asked = f"The input lists the items a user has chosen, oldest first{', one on each line' * lines}. Write the item"
    assert asked in text
    history = text.split("### Input:\n")[1].split("\n### Response:")[0]
    assert (history.count("\n") == 2 and history.endswith("\n")) == lines


def test_an_attribute_that_no_item_has_is_refused(tokenizer, catalog):
    with pytest.raises(
        ValueError, match="`item_attributes`: no item of the catalog has an attribute 'maker'.*'brand', 'genre'"
    ):
        Prompt(tokenizer, catalog, item_attributes=["brand", "maker"])
    with pytest.raises(ValueError, match="`item_attributes` must be a list of names"):
        Prompt(tokenizer, catalog, item_attributes="brand")


def test_long_attributes_are_cut_and_counted(tokenizer):
    catalog = Catalog.from_records([{"item_id": 0, "title": "Alien", "about": "x " * 500}])
    prompt = Prompt(tokenizer, catalog, item_attributes=["about"], max_item_tokens=40)
    assert prompt.report()["shortened"] == 1 and len(prompt.encode_history([0])) <= 1 + 2 * 40


def test_a_template_is_the_text_around_the_history_and_other_braces_are_text(tokenizer, catalog):
    template = '{"user": {"chose": [{history}]}}</s> Next:\n'
    prompt = Prompt(tokenizer, catalog, template=template)
    head, tail = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in template.split("{history}"))
    items = prompt.encode_item(1) + prompt.encode_item(0)
    assert prompt.encode_history([1, 0]) == [tokenizer.bos_token_id, *head, *items, *tail]
    assert tail.count(tokenizer.eos_token_id) == 1
    example = prompt.encode_example([1, 0], 2)
    assert example["input_ids"] == prompt.encode_history([1, 0]) + prompt.encode_item(2)


def test_a_template_under_chat_is_the_message_of_the_user(tokenizer, catalog):
    tokenizer.chat_template = CHAT
    prompt = Prompt(tokenizer, catalog, form="chat", template="Chosen:\n{history}What next?")
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<s>Chosen:\n", "What next?</s>")]
    assert prompt.encode_history([0]) == pieces[0] + prompt.encode_item(0) + pieces[1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"template": "Name the next one."}, "one place for the history, {history}, got 0"),
        ({"template": "{history} and {history}"}, "one place for the history, {history}, got 2"),
        ({"template": "{ history }"}, "got 0"),
        ({"template": "{history}", "form": "alpaca"}, "`template` is the whole wording"),
        ({"template": "{history}", "form": "chat", "instruction": "Go."}, "`template` is the whole wording"),
        ({"instruction": "Go."}, '`instruction` has no place in form="plain"'),
    ],
)
def test_wording_that_has_no_place_is_refused(tokenizer, catalog, settings, message):
    with pytest.raises(ValueError, match=message):
        Prompt(tokenizer, catalog, **settings)


def test_a_saved_prompt_keeps_template_and_attributes(tokenizer, catalog, tmp_path):
    prompt = Prompt(tokenizer, catalog, item_attributes=("brand",), template="So far: {history}Then: ")
    prompt.save(tmp_path)
    loaded = Prompt.load(tmp_path, tokenizer, catalog)
    assert loaded.sha256 == prompt.sha256 != Prompt(tokenizer, catalog).sha256
    assert loaded.encode_history([0, 1]) == prompt.encode_history([0, 1])
    assert loaded.template == prompt.template and loaded.item_attributes == ["brand"]
    renamed = Catalog.from_records(
        {"item_id": item_id, "title": title, "brand": "Mosfilm"}
        for item_id, title in zip(catalog.ids, catalog.titles, strict=True)
    )
    assert not loaded.is_made_from(renamed)
    other = Prompt.load(tmp_path, tokenizer, renamed)
    assert other.encode_history([2]) == Prompt(tokenizer, renamed, **prompt_settings(prompt)).encode_history([2])


def prompt_settings(prompt):
    return {"item_attributes": prompt.item_attributes, "template": prompt.template}
