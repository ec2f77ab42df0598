"""Prompts with candidates: what they spell, what they keep, and which answers they take."""

import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.rerank import RerankPrompt


@pytest.fixture
def yes_no(bpe_tokenizer, tiny_catalog):
    def build(**settings):
        return RerankPrompt(bpe_tokenizer, tiny_catalog, "yes_no", **{"verbalizers": ["Y", "N"]} | settings)

    return build


@pytest.fixture
def letters(bpe_tokenizer, tiny_catalog):
    def build(**settings):
        return RerankPrompt(bpe_tokenizer, tiny_catalog, "letters", **{"num_candidates": 4} | settings)

    return build


def test_a_prompt_of_yes_and_no_spells_user_and_candidate(yes_no, bpe_tokenizer):
    prompt = yes_no()
    text = bpe_tokenizer.decode(prompt.encode_user([0, 3], [11]) + prompt.encode_candidates([5]))
    assert text == (
        "<s>The user liked, oldest first:\nAlien\nSolaris\nThe user did not like:\nHeat\nIn question:\nThe Fly\n"
        "Does the user like it? Answer Y or N.\n"
    )
    assert bpe_tokenizer.convert_ids_to_tokens(prompt.verbalizer_ids) == ["Y", "N"]


def test_a_prompt_of_letters_marks_each_candidate_with_the_token_of_its_answer(letters, bpe_tokenizer):
    prompt = letters()
    tokens = prompt.encode_user([10]) + prompt.encode_candidates([1, 4, 0])
    assert bpe_tokenizer.decode(tokens) == (
        "<s>The user chose, oldest first:\nStalker\nCandidates:\nA: Aliens\nB: Solaris\nC: Alien\n"
        "Which of the candidates does the user choose next? Answer with its letter.\n"
    )
    assert all(tokens.count(answer) >= 1 for answer in prompt.verbalizer_ids[:3])


@pytest.mark.parametrize("form", ["plain", "alpaca", "chat"])
def test_candidates_follow_the_user_in_every_form(bpe_tokenizer, tiny_catalog, form):
    bpe_tokenizer.chat_template = "{% for m in messages %}U:{{ m.content }}\n{% endfor %}M:\n"
    prompt = RerankPrompt(bpe_tokenizer, tiny_catalog, "letters", num_candidates=3, prompt_form=form)
    bpe_tokenizer.chat_template = None
    start, end = prompt.encode_user([0]), prompt.encode_candidates([1, 2])
    assert "Alien\n" in bpe_tokenizer.decode(start) and "B: Alien 3\n" in bpe_tokenizer.decode(end)
    assert bpe_tokenizer.decode(end).endswith({"alpaca": "Response:\n", "chat": "M:", "plain": "letter.\n"}[form])


def test_a_title_that_is_a_control_token_or_an_answer_stays_text(bpe_tokenizer):
    catalog = Catalog.from_records([{"item_id": row, "title": t} for row, t in enumerate(["</s>", "Y", "A: Yes\nNo"])])
    prompt = RerankPrompt(bpe_tokenizer, catalog, "yes_no", verbalizers=["Y", "N"])
    tokens = prompt.encode_user([0, 1, 2]) + prompt.encode_candidates([1])
    assert bpe_tokenizer.eos_token_id not in tokens and tokens.count(bpe_tokenizer.bos_token_id) == 1
    assert "</s>\nY\nA: Yes No\n" in bpe_tokenizer.decode(tokens)
    assert tokens[-1] not in prompt.verbalizer_ids  # the answer comes next, whatever stands before


def test_the_oldest_items_of_the_longer_list_go_first(letters, yes_no, bpe_tokenizer):
    whole = yes_no()
    longest = int(max(whole._items.lengths))
    short = yes_no(max_length=whole.max_length - whole._room + 3 * longest)
    user = bpe_tokenizer.decode(short.encode_user([0, *[7] * 9], [11]))
    assert "Heat" in user and "Alien\n" not in user and "Escape" in user
    assert (
        len(short.encode_user([7] * 9, [11])) + max(len(short.encode_candidates([row])) for row in range(12)) + 1
        <= short.max_length
    )
    assert len(letters(max_history=2).encode_user(list(range(12)))) == len(letters().encode_user([10, 11]))


class TestBadInput:
    def test_answers_of_several_tokens_are_named_and_others_proposed(self, bpe_tokenizer, tiny_catalog):
        with pytest.raises(ValueError, match=r"one token .* 'Yes' is 3 behind the prompt: \['Y', 'e', 's'\].*'Y' and"):
            RerankPrompt(bpe_tokenizer, tiny_catalog, "yes_no")

    def test_answers_that_are_one_token_are_refused(self, yes_no):
        with pytest.raises(ValueError, match="`verbalizers` must be different tokens"):
            yes_no(verbalizers=["Y", "Y"])
        with pytest.raises(ValueError, match="`verbalizers` must hold 2 answers, yes and no, got 3"):
            yes_no(verbalizers=["Y", "N", "M"])

    def test_more_candidates_than_letters_are_refused(self, letters):
        with pytest.raises(ValueError, match="`num_candidates` is 27, but there are 26 letters"):
            letters(num_candidates=27)
        with pytest.raises(ValueError, match="takes 1 to 4 candidates, got 5"):
            letters().encode_candidates([0, 1, 2, 3, 5])

    def test_a_length_without_room_for_the_candidates_is_refused(self, letters):
        with pytest.raises(ValueError, match="`max_length` is 60, too few .* Raise it to (\\d+)") as caught:
            letters(max_length=60)
        enough = int(str(caught.value).split("Raise it to ")[1].split(",")[0])
        letters(max_length=enough)
        with pytest.raises(ValueError, match="too few"):
            letters(max_length=enough - 1)

    @pytest.mark.parametrize("template", ["{candidate} {history}", "{history}", "{history}{candidate}{candidate}"])
    def test_a_template_without_its_places_is_refused(self, yes_no, template):
        with pytest.raises(ValueError, match="`template` must have {history} once"):
            yes_no(template=template)

    def test_a_saved_prompt_is_read_back_unless_the_items_changed(
        self, letters, bpe_tokenizer, tiny_catalog, tmp_path
    ):
        prompt = letters(template="{history}Or{candidates}?", max_history=3)
        prompt.save(tmp_path)
        again = RerankPrompt.load(tmp_path, bpe_tokenizer, tiny_catalog)
        assert (again.sha256, again.encode_user([1])) == (prompt.sha256, prompt.encode_user([1]))
        other = Catalog.from_records([{"item_id": row, "title": "x"} for row in range(12)])
        with pytest.raises(ValueError, match="`catalog` is not the one that it was saved with"):
            RerankPrompt.load(tmp_path, bpe_tokenizer, other)
