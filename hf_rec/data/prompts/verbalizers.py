"""The words that a candidate prompt is answered with: each is one token of the tokenizer in place."""

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAIRS = (("Yes", "No"), ("yes", "no"), ("Y", "N"), ("y", "n"), ("+", "-"), ("1", "0"))  # to suggest


def default_verbalizers(form: str, num_candidates: int) -> list[str]:
    """`Yes` and `No`, or as many letters as there are candidates."""
    if form == "yes_no":
        return ["Yes", "No"]
    letters = string.ascii_uppercase
    if num_candidates > len(letters):
        raise ValueError(
            f"`num_candidates` is {num_candidates}, but there are {len(letters)} letters. Lower it, or name as many "
            "`verbalizers`, each one token of the tokenizer."
        )
    return list(letters[:num_candidates])


def verbalizer_tokens(tokenizer: "PreTrainedTokenizerBase", before: str, words: Sequence[str]) -> list[int]:
    """
    Tokens of answers, as they are behind the text of a prompt.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Of the language model.
        before (`str`): The text that the answer follows.
        words (`list[str]`): Answers; also added tokens of the tokenizer.

    Returns:
        `list[int]`: One token a word, all different.
    """
    found = [_tokens(tokenizer, before, word) for word in words]
    for word, tokens in zip(words, found, strict=True):
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            spelled = tokenizer.convert_ids_to_tokens(tokens)
            raise ValueError(
                f"`verbalizers` must be one token of the tokenizer each, but {word!r} is {len(tokens)} behind the "
                f"prompt: {spelled}.{_suggestion(tokenizer, before, len(words))}"
            )
    ids = [tokens[0] for tokens in found]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"`verbalizers` must be different tokens, but of {list(words)} some are the same to this tokenizer: {ids}."
        )
    return ids


def _tokens(tokenizer: "PreTrainedTokenizerBase", before: str, word: str) -> list[int]:
    """Ids that a word adds to a text."""
    added = tokenizer.get_added_vocab()
    if word in added:
        return [added[word]]
    start, whole, alone = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, before + word, word)
    )
    return whole[len(start) :] if before and whole[: len(start)] == start else alone


def _suggestion(tokenizer: "PreTrainedTokenizerBase", before: str, num_words: int) -> str:
    if num_words == 2:
        for pair in _PAIRS:
            tokens = [_tokens(tokenizer, before, word) for word in pair]
            if all(len(ids) == 1 and ids[0] != tokenizer.unk_token_id for ids in tokens) and tokens[0] != tokens[1]:
                return f" {pair[0]!r} and {pair[1]!r} are."
    return " Name others."
