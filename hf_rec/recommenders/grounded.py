"""
BIGRec's grounding: a language model writes freely, and the items whose text is nearest to what it wrote are listed
(https://huggingface.co/papers/2308.08434).

Shapes: U users · N items of the catalog · M different texts of the items · H hidden size of the base model.
"""

import hashlib
import math
import os
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from hf_rec.data.prompts.path_forms import DIGITS, is_text
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.processes import process_state
from hf_rec.recommenders.contract import Recommender, Times
from hf_rec.recommenders.exact import ExactRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.text_states import TextStates
from hf_rec.search.model_inputs import base_model, is_encoder_decoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # whatever a model has for chats
_OF_BEAMS = {"length_penalty": 0.0, "early_stopping": False}  # the most probable text, whatever its length
MOST_GAMMA = 100.0  # 2 to this power is far from what float32 cannot hold


class GroundedRecommender(ExactRecommender):
    """
    The score of an item is minus the distance between its text and what the language model wrote for the user:

    `score = -D / (1 + C) ** gamma`, where `D` is the L2 distance of the last-token states that the base model has for
    both texts, and `C` is what another recommender, such as popularity, thinks of the item. Both are brought to 0 .. 1
    over the whole catalog for each user, so `exclude` and `allow` change no score. Items of one text share a distance.

    What is written is the most probable text of a beam search (of one beam: the greedy one) that nothing holds to the
    catalog, up to the separator that ends an item. A text that is an item's own has the distance 0.

    Args:
        writer ([`LanguageModelRecommender`]): The language model that writes, and its prompt; trained with
            `loss_type="lml"`, as one that was trained with MSL does not know when to stop. Its items must be paths of
            text.
        base ([`~transformers.PreTrainedModel`]): The causal LM that compares texts, as it was before any fine-tuning.
        base_tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; it need not be that of the writer.
        item_vectors (`torch.Tensor` of shape `(M, H)`, *optional*): As [`~GroundedRecommender.item_vectors`] gives
            them; without it the items are encoded when they are first needed.
        weight ([`Recommender`], *optional*): Gives `C`, over the same items.
        gamma (`float`, *optional*, defaults to `0.0`): How much `C` counts, from 0 (not at all) to 100.
        num_beams (`int`, *optional*, defaults to `4`): Of the search for the text.
        batch_size (`int`, *optional*): Histories at a time; defaults to that of the writer.
        fit (`dict`, *optional*): How `gamma` was chosen, JSON values; kept in the folder.
    """

    kind = "grounded"

    def __init__(
        self,
        writer: LanguageModelRecommender,
        base: PreTrainedModel,
        base_tokenizer: "PreTrainedTokenizerBase",
        item_vectors: Tensor | None = None,
        weight: Recommender | None = None,
        gamma: float = 0.0,
        num_beams: int = 4,
        batch_size: int | None = None,
        fit: dict[str, Any] | None = None,
    ):
        _check_writer(writer)
        _check_weight(writer, weight, gamma)
        if isinstance(num_beams, bool) or not isinstance(num_beams, int) or num_beams < 1:
            raise ValueError(f"`num_beams` must be a whole number of at least 1, got {num_beams!r}.")
        super().__init__(writer.catalog, writer.batch_size if batch_size is None else batch_size)
        self.writer, self.weight, self.fit = writer, weight, fit
        self.gamma, self.num_beams = float(gamma), num_beams
        self.base = TextStates(base, base_tokenizer)
        tokens = self.base.tokens(_texts(writer, writer.prompt.encode_items()))
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(tokens))}
        self._text_of_item = torch.tensor([self._numbers[text] for text in tokens])
        self._vectors = None if item_vectors is None else self._checked(item_vectors)
        self._encoding = Lock()

    @property
    def texts_sha256(self) -> str:
        """Hash of the tokens of all texts, in the order of [`~GroundedRecommender.item_vectors`]."""
        return hashlib.sha256(repr([*self._numbers]).encode()).hexdigest()

    @property
    def item_vectors(self) -> Tensor:
        """
        State of the last token of each different text of the items, float32 of shape `(M, H)`: texts in the order of
        the first item that has them. Encoded now if they were not before.
        """
        with self._encoding:  # threads that ask at once wait for one of them
            if self._vectors is None:
                self._vectors = self.base.vectors([*self._numbers])
            return self._vectors

    def encode_items(self) -> None:
        """Encode the items now. The processes of a launch share them out, so each of them must call this."""
        from accelerate.utils import gather

        state, texts = process_state(), [*self._numbers]
        share = math.ceil(len(texts) / state.num_processes)
        own = [
            texts[place % len(texts)]
            for place in range(state.process_index * share, (state.process_index + 1) * share)
        ]
        with self._encoding:
            self._vectors = gather(self.base.vectors(own).to(state.device))[: len(texts)].to(self.base.model.device)

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write a folder that [`~hf_rec.hub.load_recommender`] reads. It holds the writer and the other recommender as
        folders of their own, the vectors of the items, and the base model, unless that one came from the Hub.

        Args:
            folder (`str` or `os.PathLike`): New or empty.
        """
        from hf_rec.recommenders.folders import save_grounded

        save_grounded(folder, self)

    def write(self, histories: list[list[int]]) -> list[str]:
        """What the language model writes after each history (catalog rows)."""
        writer = self.writer
        ends = _ends(writer)
        with evaluation_mode(writer.model):
            input_ids, attention_mask = writer.prompt_tokens(histories)
            before = 1 if is_encoder_decoder(writer.model) else input_ids.shape[1]
            written = writer.model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=writer.trie.max_depth,
                num_beams=self.num_beams,
                do_sample=False,
                **_SETTINGS | (_OF_BEAMS if self.num_beams > 1 else {}),
                stopping_criteria=StoppingCriteriaList([_EndsWith(end, before) for end in ends]),
                pad_token_id=writer.tokenizer.pad_token_id or 0,
            )
        return _texts(writer, [_cut(tokens, ends) for tokens in written[:, before:].tolist()], is_path=False)

    def parts(self, histories: list[list[int]], timestamps: Times | None) -> tuple[Tensor, Tensor | None]:
        """
        What the scores are made of.

        Args:
            histories (`list[list[int]]`): Catalog rows.
            timestamps (`list[list[int]]`, *optional*): Unix seconds of the events.

        Returns:
            `tuple`: `D` and `C` (`None` without `weight`), float32 of shape `(U, N)`, on the CPU.
        """
        items = self.item_vectors
        distances = torch.cdist(
            self._vectors_of(self.write(histories), items), items, compute_mode="donot_use_mm_for_euclid_dist"
        )
        distances = _from_0_to_1(distances.cpu())[:, self._text_of_item]
        if self.weight is None:
            return distances, None
        return distances, _from_0_to_1(_finite(self.weight, self.weight._score_all_rows(histories, timestamps)))

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        return weighted(*self.parts(histories, timestamps), self.gamma).numpy()

    def _vectors_of(self, texts: list[str], items: Tensor) -> Tensor:
        """States of texts, `(U, H)`; that of an item's own text is the item's, bit for bit."""
        tokens = self.base.tokens(texts)
        unknown = [text for text in dict.fromkeys(tokens) if text not in self._numbers]
        place = self._numbers | {text: len(items) + number for number, text in enumerate(unknown)}
        known = torch.cat([items, self.base.vectors(unknown)]) if unknown else items
        return known[torch.tensor([place[text] for text in tokens], device=known.device)]

    def _checked(self, vectors: Tensor) -> Tensor:
        expected = (len(self._numbers), self.base.width)
        if vectors.shape != expected:
            raise ValueError(
                f"`item_vectors` must have the shape {expected}, one row for each different text, got "
                f"{tuple(vectors.shape)}. Leave it out: the items are then encoded."
            )
        if not vectors.isfinite().all():
            raise ValueError("`item_vectors` hold numbers that are NaN or infinite. Encode the items again.")
        return vectors.to(self.base.model.device, torch.float32)

    def _cost(self, history: list[int]) -> int:
        return self.writer._cost(history)


def weighted(distances: Tensor, preferences: Tensor | None, gamma: float) -> Tensor:
    """`-D / (1 + C) ** gamma` for [`~GroundedRecommender.parts`]; 0 for what is nearest, whatever `gamma`."""
    if preferences is not None and gamma:
        distances = distances / (1 + preferences) ** gamma
    return 0 - distances


class _EndsWith(StoppingCriteria):
    """A text is over where these tokens have been written."""

    def __init__(self, tokens: list[int], before: int):
        self.tokens, self.before = tokens, before

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        written = input_ids[:, max(self.before, input_ids.shape[1] - len(self.tokens)) :]
        if written.shape[1] < len(self.tokens):
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return (written == torch.tensor(self.tokens, device=input_ids.device)).all(dim=1)


def _ends(writer: LanguageModelRecommender) -> list[list[int]]:
    """What ends an item: the separator, or the end of all text."""
    eos = base_model(writer.model).generation_config.eos_token_id
    stops = {writer.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    return [writer.prompt.separator_ids, *([token] for token in sorted(stops))]


def _cut(tokens: list[int], ends: list[list[int]]) -> list[int]:
    """What stands before the first end."""
    for place in range(len(tokens)):
        if any(tokens[place : place + len(end)] == end for end in ends):
            return tokens[:place]
    return tokens


def _texts(writer: LanguageModelRecommender, tokens: list[list[int]], is_path: bool = True) -> list[str]:
    """The text of token paths, without the separator that ends each."""
    size = len(writer.prompt.separator_ids)
    found = writer.tokenizer.batch_decode(
        [path[:-size] for path in tokens] if is_path else tokens,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [" ".join(text.split()) for text in found]


def _from_0_to_1(values: Tensor) -> Tensor:
    """Each row from its smallest value, as 0, to its largest, as 1; 0 where all are equal."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return (values - low) / (high - low).where(high > low, 1)


def _finite(part: Recommender, scores: np.ndarray) -> Tensor:
    found = torch.from_numpy(scores)
    if not found.isfinite().all():
        raise ValueError(
            f"`weight` is a {type(part).__name__} that gives {int((~found.isfinite()).sum())} scores that are NaN or "
            "infinite, so it cannot weigh items. Its weights are damaged: train it again."
        )
    return found


def _check_writer(writer: LanguageModelRecommender) -> None:
    if not isinstance(writer, LanguageModelRecommender):
        raise ValueError(
            f"`writer` must be a language model's recommender, got a {type(writer).__name__}. Load its folder with "
            "load_recommender(folder)."
        )
    form = writer.prompt.item_path
    if not is_text(form) or form == DIGITS:
        raise ValueError(
            f"`writer` writes items as {form!r}, which is no text: nothing says which of them are near to each other. "
            "Train it on titles or on a column of text."
        )


def _check_weight(writer: LanguageModelRecommender, weight: Recommender | None, gamma: float) -> None:
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= MOST_GAMMA:
        raise ValueError(f"`gamma` must be a number from 0 to {MOST_GAMMA:g}, got {gamma!r}.")
    if weight is None:
        if gamma:
            raise ValueError(f"`gamma` is {gamma}, but there is no `weight` for it to act on. Give one, or gamma 0.")
        return
    if not isinstance(weight, Recommender):
        raise ValueError(
            f"`weight` must be a recommender, got {weight!r}. Load a folder with load_recommender(folder)."
        )
    if not writer.catalog.has_items_of(weight.catalog):
        raise ValueError(
            f"`weight` is a {type(weight).__name__} over another catalog ({len(weight.catalog)} items, hash "
            f"{weight.catalog.sha256[:12]}) than `writer` ({len(writer.catalog)}, {writer.catalog.sha256[:12]}). "
            "Train both on the same prepared data."
        )
