"""Item paths of every form: titles, text columns, codes, one token an item, and numbers."""

import copy

import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_forms import item_texts
from hf_rec.data.prompts.path_tokens import add_path_tokens, path_token_ids, words_under_tokens
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.trie import ItemTrie


CODES = [[3, 0, 7], [3, 1, 7], [0, 0, 7], [3, 0, 9]]


def films(**columns):
    """Four films with the columns given, one value a film."""
    titles = ["Alien", "Aliens", "Solaris", "Heat"]
    records = [{"item_id": f"f{row}", "title": title} for row, title in enumerate(titles)]
    return Catalog.from_records(
        record | {name: values[row] for name, values in columns.items()} for row, record in enumerate(records)
    )


@pytest.fixture
def tokenizer(bpe_tokenizer):
    return copy.deepcopy(bpe_tokenizer)


def prompt_for(tokenizer, catalog, item_path, history_path=None, **settings):
    add_path_tokens(tokenizer, catalog, item_path, history_path)
    return Prompt(tokenizer, catalog, item_path=item_path, history_path=history_path, **settings)


def test_a_code_is_one_token_for_its_level_and_paths_need_no_separator(tokenizer):
    before = len(tokenizer)
    prompt = prompt_for(tokenizer, films(rq=CODES), "codes:rq")
    assert len(tokenizer) == before + 6  # levels of 2, 2 and 2 codes
    names = [tokenizer.convert_ids_to_tokens(path) for path in prompt.encode_items()]
    assert names == [[f"<|rq:{level}:{code}|>" for level, code in enumerate(codes)] for codes in CODES]
    assert prompt.encode_history([2, 0]) == [tokenizer.bos_token_id, *prompt.encode_item(2), *prompt.encode_item(0)]


def test_an_id_is_one_token_and_a_text_column_takes_the_place_of_the_title(tokenizer):
    catalog = films(textual_id=["red nail", "blue nail", "soap &amp; salt", "soap"])
    prompt = prompt_for(tokenizer, catalog, "id")
    assert tokenizer.convert_ids_to_tokens([path[0] for path in prompt.encode_items()]) == [
        f"<|item:f{row}|>" for row in range(4)
    ]
    assert set(map(len, prompt.encode_items())) == {1}
    named = Prompt(tokenizer, catalog, item_path="textual_id")
    plain = PlainTextEncoder(tokenizer)
    assert named.encode_item(2) == plain("soap & salt") + named.separator_ids


def test_a_history_item_is_its_forms_one_after_the_other(tokenizer):
    catalog = films(rq=CODES)
    both = prompt_for(tokenizer, catalog, "codes:rq", "codes:rq+title")
    codes, titles = Prompt(tokenizer, catalog, item_path="codes:rq"), Prompt(tokenizer, catalog)
    assert both.encode_items() == codes.encode_items()
    expected = [token for row in (1, 3) for token in codes.encode_item(row) + titles.encode_item(row)]
    assert both.encode_history([1, 3]) == [tokenizer.bos_token_id, *expected]
    assert both.count_tokens([1, 3]) == len(both.encode_history([1, 3]))
    other_way = Prompt(tokenizer, catalog, item_path="title", history_path="title+codes:rq")
    assert other_way.encode_history([1])[1:] == titles.encode_item(1) + codes.encode_item(1)


def test_under_all_the_labels_of_a_history_item_are_its_path_as_an_answer(tokenizer):
    prompt = prompt_for(tokenizer, films(rq=CODES), "codes:rq", "codes:rq+title")
    example = prompt.encode_example([0, 1, 2], 3, supervise="all")
    labelled = [label for label in example["labels"] if label != -100]
    assert labelled == [token for row in (1, 2, 3) for token in prompt.encode_item(row)]
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    assert all(label in (-100, token) for token, label in pairs)
    start = 1 + prompt.count_tokens([0]) - 1  # BOS and the first item
    assert example["labels"][start : start + 3] == prompt.encode_item(1)


def test_under_all_a_history_that_would_give_its_answers_away_is_refused(tokenizer):
    prompt = prompt_for(tokenizer, films(rq=CODES), "codes:rq", "title+codes:rq")
    with pytest.raises(ValueError, match="`history_path` 'title\\+codes:rq' must begin with `item_path` 'codes:rq'"):
        prompt.encode_example([0, 1], 2, supervise="all")
    assert prompt.encode_example([0, 1], 2)["labels"][-3:] == prompt.encode_item(2)


def test_titles_that_spell_a_path_token_stay_text(tokenizer):
    catalog = Catalog.from_records(
        [{"item_id": 1, "title": "<|rq:0:3|>", "rq": [3]}, {"item_id": 2, "title": "a <|item:1|> b", "rq": [4]}]
    )
    added = add_path_tokens(tokenizer, catalog, "codes:rq", "codes:rq+id+title")
    prompt = Prompt(tokenizer, catalog, item_path="title")
    assert not set(added) & {token for path in prompt.encode_items() for token in path}
    assert tokenizer.decode(prompt.encode_item(0)[: -len(prompt.separator_ids)]) == "<|rq:0:3|>"


def test_raw_ids_cannot_break_out_of_their_token(tokenizer):
    catalog = Catalog.from_records([{"item_id": "a|>b<|x"}, {"item_id": "</s>"}, {"item_id": "七 +"}])
    ids = add_path_tokens(tokenizer, catalog, "id")
    names = tokenizer.convert_ids_to_tokens(ids)
    assert all(name.count("<") == 1 and name.count(">") == 1 and name.isascii() for name in names)
    assert len(set(names)) == 3


def test_numbers_depend_on_neither_the_order_of_the_catalog_nor_that_of_events():
    catalog = films()
    numbers = dict(zip(catalog.ids, item_texts(catalog, "digits"), strict=True))
    turned = catalog.subset([2, 0, 3, 1])
    assert dict(zip(turned.ids, item_texts(turned, "digits"), strict=True)) == numbers
    assert sorted(numbers.values()) == ["0", "1", "2", "3"]
    # Ids that count items in the order of some log: their numbers do not follow it
    counted = Catalog.from_records([{"item_id": row} for row in range(100)])
    texts = list(map(int, item_texts(counted, "digits")))
    assert sum(after - before == 1 for before, after in zip(texts, texts[1:], strict=False)) < 10


def test_a_number_is_spelled_with_the_tokens_of_text(tokenizer):
    prompt = Prompt(tokenizer, films(), item_path="digits")
    for row, number in enumerate(item_texts(films(), "digits")):
        assert prompt.encode_item(row) == PlainTextEncoder(tokenizer)(number) + prompt.separator_ids


def test_items_that_share_a_path_are_one_leaf_and_are_counted(tokenizer):
    prompt = prompt_for(tokenizer, films(rq=[[1, 2], [1, 2], [1, 3], [1, 2]]), "codes:rq")
    assert prompt.report()["sharing"] == 3 and prompt.report()["merged"] == 0
    assert sorted(ItemTrie.build(prompt.encode_items()).items(prompt.encode_item(0))) == [0, 1, 3]


BAD_COLUMNS = {
    "text": (["1 2", [1, 2], [1, 3], [2, 2]], "item 'f0' has '1 2'"),
    "text inside": ([["1", "2"]] * 4, "item 'f0' has \\['1', '2'\\]"),
    "negative": ([[1, 2], [1, -2], [1, 3], [2, 2]], "item 'f1' has \\[1, -2\\]"),
    "not whole": ([[1, 2], [1, 2.5], [1, 3], [2, 2]], "item 'f1' has \\[1, 2.5\\]"),
    "truth": ([[1, 2], [1, 3], [True, 3], [2, 2]], "item 'f2' has \\[True, 3\\]"),
    "empty": ([[1, 2], [], [1, 3], [2, 2]], "item 'f1' has \\[\\]"),
    "unequal": ([[1, 2], [1, 2], [1, 2, 3], [2, 2]], "'f0' has 2 of them and item 'f2' has 3"),
    "missing": ([[1, 2], None, [1, 2], None], "no codes for 2 of 4 items \\('f1', 'f3'\\)"),
}


@pytest.mark.parametrize("kind", BAD_COLUMNS)
def test_bad_codes_are_refused_and_an_item_is_named(tokenizer, kind):
    values, message = BAD_COLUMNS[kind]
    with pytest.raises(ValueError, match=message):
        add_path_tokens(tokenizer, films(rq=values), "codes:rq")


def test_codes_outside_what_the_tokenizer_was_made_for_are_refused(tokenizer):
    add_path_tokens(tokenizer, films(rq=CODES), "codes:rq")
    other = films(rq=[[3, 0, 7], [3, 0, 8], [0, 0, 7], [3, 1, 7]])
    with pytest.raises(ValueError, match="not <|rq:2:8|>, which item 'f1' needs at level 2"):
        Prompt(tokenizer, other, item_path="codes:rq")


def test_a_tokenizer_without_the_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="lacks the tokens of 'codes:rq'.*add_path_tokens"):
        Prompt(tokenizer, films(rq=CODES), item_path="codes:rq")


def test_bad_text_columns_are_refused(tokenizer):
    catalog = films(a=["x", 2, "y", "z"], rq=CODES)
    for column, message in {
        "a": "`item_path` or `history_path` 'a' must name a column of text, but item 'f1' has 2 \\(int\\)",
        "rq": "'rq' must name a column of text.*'codes:rq'",
        "brand": "`item_path` or `history_path` 'brand': no item of .* has an attribute 'brand'. There are 'a', 'rq'",
    }.items():
        with pytest.raises(ValueError, match=message):
            Prompt(tokenizer, catalog, item_path=column)


def test_items_without_a_text_are_named_after_their_row_and_counted(tokenizer):
    prompt = prompt_for(tokenizer, films(a=["x", None, "", " \n "]), "a")
    assert prompt.report()["unnamed"] == 3 and prompt.report()["sharing"] == 0
    assert prompt.encode_item(1) == PlainTextEncoder(tokenizer)("item 1") + prompt.separator_ids


@pytest.mark.parametrize(
    "item_path, history_path, message",
    [
        ("codes:rq+title", None, "`item_path` must be one form"),
        ("codes:", None, "`item_path` has a form 'codes:' without a name"),
        ("title", "codes:rq+", "`history_path` has a form '' without a name"),
        ("title", "title+title", "`history_path` names 'title' twice"),
        (None, None, "`item_path` must be one form, got None"),
    ],
)
def test_settings_that_name_no_form_are_refused(tokenizer, item_path, history_path, message):
    with pytest.raises(ValueError, match=message):
        Prompt(tokenizer, films(rq=CODES), item_path=item_path, history_path=history_path)


@pytest.mark.parametrize("item_path, history_path", [("codes:rq", None), ("id", "codes:rq+title"), ("digits", None)])
def test_a_saved_prompt_loads_without_tokenising_and_is_the_same(tokenizer, tmp_path, item_path, history_path):
    catalog = films(rq=CODES)
    prompt = prompt_for(tokenizer, catalog, item_path, history_path)
    prompt.save(tmp_path)
    loaded = Prompt.load(tmp_path, tokenizer, catalog)
    assert loaded.sha256 == prompt.sha256 and loaded.paths_sha256 == prompt.paths_sha256
    assert loaded.report() == prompt.report() and loaded.item_path == item_path
    assert loaded.encode_example([0, 1], 2) == prompt.encode_example([0, 1], 2)


def test_a_catalog_with_other_codes_is_another_catalog(tokenizer, tmp_path):
    catalog, other = films(rq=CODES), films(rq=[CODES[1], CODES[0], *CODES[2:]])
    prompt = prompt_for(tokenizer, catalog, "codes:rq")
    assert catalog.sha256 == other.sha256  # of ids and titles
    assert prompt.is_made_from(catalog) and not prompt.is_made_from(other)
    prompt.save(tmp_path)
    assert Prompt.load(tmp_path, tokenizer, other).encode_items() == [prompt.encode_item(row) for row in (1, 0, 2, 3)]
    assert Prompt(tokenizer, other, item_path="codes:rq").paths_sha256 != prompt.paths_sha256
    Prompt(tokenizer, catalog, item_path="digits").save(tmp_path / "digits")
    with pytest.raises(ValueError, match="numbers the items of the catalog that it was made for"):
        Prompt.load(tmp_path / "digits", tokenizer, catalog.subset([0, 2]))


def test_settings_that_are_not_used_leave_a_prompt_as_it_is(tokenizer, tmp_path):
    catalog = films(rq=CODES)
    plain = Prompt(tokenizer, catalog)
    same = Prompt(tokenizer, catalog, item_path="title", history_path="title")
    assert same.sha256 == plain.sha256
    plain.save(tmp_path)
    assert 'item_path":' not in (tmp_path / "prompt.json").read_text().replace("item_paths", "")
    add_path_tokens(tokenizer, catalog, "codes:rq")
    assert Prompt(tokenizer, catalog, item_path="codes:rq", history_path="title").sha256 != plain.sha256


def test_the_words_under_a_code_are_those_of_its_items(tokenizer):
    catalog = films(rq=CODES)
    add_path_tokens(tokenizer, catalog, "codes:rq", "codes:rq+id")
    words = words_under_tokens(tokenizer, catalog, "codes:rq", "codes:rq+id")
    assert sorted(words) == path_token_ids(tokenizer, catalog, "codes:rq", "codes:rq+id")
    titles = [PlainTextEncoder(tokenizer)(title) for title in catalog.titles]
    first = tokenizer.convert_tokens_to_ids("<|rq:0:3|>")
    assert sorted(words[first].tolist()) == sorted(titles[0] + titles[1] + titles[3])
    assert words[tokenizer.convert_tokens_to_ids("<|item:f2|>")].tolist() == titles[2]
