import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import PLACEHOLDER, RetrievalPrompt, pad_prompts


DAY = 86_400


@pytest.fixture(scope="module")
def prompt(bpe_tokenizer, tiny_catalog):
    return RetrievalPrompt(bpe_tokenizer, tiny_catalog, max_history=4)


def text_of(tokenizer, encoded, marks="<V>"):
    """The prompt as a person reads it, with slots marked."""
    parts, run = [], []
    for token, item in zip(encoded["input_ids"][:-1], encoded["slot_items"][:-1], strict=True):
        if item >= 0:
            parts += [tokenizer.decode(run), f"{marks[:-1]}{item}{marks[-1]}"]
            run = []
        else:
            run.append(token)
    return "".join([*parts, tokenizer.decode(run)])


class TestUserPrompt:
    def test_it_numbers_the_items_with_date_title_and_slot_and_asks(self, prompt, bpe_tokenizer):
        encoded = prompt.encode_user([0, 9], [0, 400 * DAY])
        assert text_of(bpe_tokenizer, encoded) == (
            "1. 1970-01-01 Alien<V0>\n2. 1971-02-05 Amélie<V9>\nThe item that the user chooses next is"
        )
        assert encoded["input_ids"][-1] == PLACEHOLDER and encoded["slot_items"][-1] == -1
        assert prompt.user_prefix[0] == bpe_tokenizer.bos_token_id

    @pytest.mark.parametrize("times", [None, [], [-1, -1]])
    def test_a_date_is_left_out_where_the_time_is_unknown(self, prompt, bpe_tokenizer, times):
        text = text_of(bpe_tokenizer, prompt.encode_user([0, 9], times))
        assert text.startswith("1. Alien<V0>\n2. Amélie<V9>\n")

    def test_repeated_items_keep_their_own_dates(self, prompt, bpe_tokenizer):
        text = text_of(bpe_tokenizer, prompt.encode_user([5, 5], [0, DAY]))
        assert text.startswith("1. 1970-01-01 The Fly<V5>\n2. 1970-01-02 The Fly<V5>\n")

    def test_an_empty_history_leaves_question_and_query(self, prompt):
        encoded = prompt.encode_user([])
        assert set(encoded["slot_items"]) == {-1}
        assert encoded["input_ids"] == prompt.encode_user([3])["input_ids"][-len(encoded["input_ids"]) :]

    def test_more_items_than_max_history_lose_the_oldest(self, prompt):
        history = [0, 1, 2, 3, 4, 5]
        assert prompt.encode_user(history, [0] * 6) == prompt.encode_user(history[2:], [0] * 4)

    def test_a_history_longer_than_the_context_loses_the_oldest_and_never_the_query(self, bpe_tokenizer, tiny_catalog):
        long = RetrievalPrompt(bpe_tokenizer, tiny_catalog, max_history=50)
        whole = len(long.user_prefix) + len(long.encode_user([6] * 12)["input_ids"])
        for max_length in range(whole - 40, whole + 1, 3):
            prompt = RetrievalPrompt(bpe_tokenizer, tiny_catalog, max_length=max_length, max_history=50)
            encoded = prompt.encode_user([6] * 12)
            kept = sum(item >= 0 for item in encoded["slot_items"])
            assert len(prompt.user_prefix) + len(encoded["input_ids"]) <= max_length
            assert encoded == prompt.encode_user([6] * kept)
            one_more = long.encode_user([6] * (kept + 1))["input_ids"]
            assert kept == 12 or len(prompt.user_prefix) + len(one_more) > max_length

    def test_a_length_without_room_for_one_item_is_refused(self, bpe_tokenizer, tiny_catalog):
        with pytest.raises(ValueError, match="`max_length` is 30"):
            RetrievalPrompt(bpe_tokenizer, tiny_catalog, max_length=30)

    @pytest.mark.parametrize(
        ("history", "times", "message"),
        [
            ([12], None, "between 0 and 11"),
            ([1], [1, 2], "2 times for a history of 1"),
            ([1], [10**13], "milliseconds"),
        ],
    )
    def test_bad_events_are_named(self, prompt, history, times, message):
        with pytest.raises(ValueError, match=message):
            prompt.encode_user(history, times)


class TestItemPrompt:
    def test_title_slot_and_query_stand_at_the_end_of_each_row(self, prompt, bpe_tokenizer):
        batch = prompt.item_inputs([0, 7, 8])
        lengths = batch["attention_mask"].sum(dim=1)
        assert lengths.tolist() == prompt.item_lengths[[0, 7, 8]].tolist()
        for row, item in enumerate([0, 7, 8]):
            end = int(lengths[row])
            assert batch["slot_items"][row].tolist() == [-1] * (end - 2) + [item] + [-1] * (
                len(batch["slot_items"][0]) - end + 1
            )
        assert bpe_tokenizer.decode(batch["input_ids"][1, : lengths[1] - 2]) == ' The "Great" Escape, Part 1'

    def test_items_without_a_title_are_named_after_their_id_and_counted(self, bpe_tokenizer):
        catalog = Catalog.from_records(
            [{"item_id": "a", "title": "Heat"}, {"item_id": "b"}, {"item_id": "c", "title": " "}]
        )
        prompt = RetrievalPrompt(bpe_tokenizer, catalog)
        assert prompt.report() == {"items": 3, "untitled": 2, "shortened": 0}
        assert "untitled item b" in text_of(bpe_tokenizer, prompt.encode_user([1]))

    def test_a_title_that_spells_a_control_token_stays_text(self, bpe_tokenizer):
        catalog = Catalog.from_records(
            [{"item_id": 0, "title": "</s> [UserOut] <pad> \n"}, {"item_id": 1, "title": "x" * 10_000}]
        )
        prompt = RetrievalPrompt(bpe_tokenizer, catalog, max_item_tokens=64)
        encoded = prompt.encode_user([0, 1])
        ids = [t for t, item in zip(encoded["input_ids"][:-1], encoded["slot_items"][:-1], strict=True) if item < 0]
        assert not set(ids) & set(bpe_tokenizer.all_special_ids)
        assert prompt.report()["shortened"] == 1 and prompt.item_lengths.max() <= 66

    def test_attributes_follow_the_title_in_the_item_prompt_alone(self, bpe_tokenizer):
        catalog = Catalog.from_records(
            [
                {"item_id": 0, "title": "Heat", "genre": ["Crime", "Drama"], "year": 1995},
                {"item_id": 1, "title": "Alien"},
            ]
        )
        prompt = RetrievalPrompt(bpe_tokenizer, catalog, item_attributes=["year", "genre"])
        ids = prompt.item_inputs([0])["input_ids"][0, :-2]
        assert bpe_tokenizer.decode(ids) == " Heat year: 1995 genre: Crime Drama"
        assert "1995" not in text_of(bpe_tokenizer, prompt.encode_user([0]))
        assert bpe_tokenizer.decode(prompt.item_inputs([1])["input_ids"][0, :-2]) == " Alien"


def test_batches_are_padded_on_the_right(prompt):
    prompts = [prompt.encode_user([0, 1, 2]), prompt.encode_user([])]
    batch = pad_prompts(prompts)
    lengths = [len(encoded["input_ids"]) for encoded in prompts]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for row, encoded in enumerate(prompts):
        torch.testing.assert_close(batch["slot_items"][row, : lengths[row]], torch.tensor(encoded["slot_items"]))
        assert (batch["slot_items"][row, lengths[row] :] == -1).all()


def test_it_saves_and_loads_and_knows_its_tokenizer(prompt, bpe_tokenizer, tiny_catalog, tmp_path):
    prompt.save(tmp_path)
    loaded = RetrievalPrompt.load(tmp_path, bpe_tokenizer, tiny_catalog)
    assert loaded.sha256 == prompt.sha256
    assert loaded.encode_user([1, 2], [0, 1]) == prompt.encode_user([1, 2], [0, 1])
    np.testing.assert_array_equal(loaded.item_lengths, prompt.item_lengths)
    path = tmp_path / "user_prompt.json"
    path.write_text(path.read_text().replace('"max_history": 4', '"max_history": 5'))
    with pytest.raises(ValueError, match="edited"):
        RetrievalPrompt.load(tmp_path, bpe_tokenizer, tiny_catalog)


def test_a_tokenizer_without_any_special_token_works(bpe_tokenizer, tiny_catalog):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer.backend_tokenizer)
    assert bare.pad_token is None and bare.bos_token is None
    prompt = RetrievalPrompt(bare, tiny_catalog)
    assert prompt.encode_user([0])["input_ids"][-1] == PLACEHOLDER
