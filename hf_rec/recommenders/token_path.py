"""How a language model spells an item after a history: each token of its path, against what else could stand there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.recommenders.contract import RawId
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.model_inputs import base_model, decoder_start_token


@dataclass(frozen=True)
class PathToken:
    """A token that may stand at a place of a path: its text, and its log-probability there in nats."""

    token_id: int
    text: str
    log_probability: float

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


@dataclass(frozen=True)
class PathStep:
    """
    One token of a path.

    Attributes:
        token ([`PathToken`]): The token of the item.
        num_children (`int`): Tokens that may stand there, the item's own among them.
        others (`list` of [`PathToken`]): The likeliest of the others.
    """

    token: PathToken
    num_children: int
    others: list[PathToken]


@torch.no_grad()
def token_path(
    recommender: LanguageModelRecommender, history: Sequence[RawId], item_id: RawId, most_others: int = 5
) -> list[PathStep]:
    """
    The path of an item through the trie.

    Args:
        recommender ([`LanguageModelRecommender`]): Whose trie and probabilities.
        history (`list[str | int]`): Raw ids, oldest first.
        item_id (`str` or `int`): Raw id of the item.
        most_others (`int`, *optional*, defaults to `5`): Other tokens named at each place.

    Returns:
        `list` of [`PathStep`]: Their log-probabilities sum to the score of the item.
    """
    rows = recommender.catalog.rows(history)
    path = recommender.prompt.encode_item(recommender.catalog.row(item_id))
    with evaluation_mode(recommender.model):
        prompt, _ = recommender.prompt_tokens([rows])
        answer = torch.tensor([path], device=prompt.device)
        logits = _logits(recommender, prompt, answer)
        processor = recommender.logits_processor(1)
        steps = []
        for place, token in enumerate(path):
            written = torch.cat([prompt[:, -1:], answer[:, :place]], dim=1)
            steps.append(_step(recommender, processor(written, logits[:, place])[0], token, most_others))
    return steps


def _logits(recommender: LanguageModelRecommender, prompt: Tensor, answer: Tensor) -> Tensor:
    """Logits before each token of the answer, float32 of shape `(1, length, V)`."""
    model, length = recommender.model, answer.shape[1]
    if recommender.has_encoder:
        start = answer.new_full((1, 1), decoder_start_token(base_model(model).config))
        outputs = model(input_ids=prompt, decoder_input_ids=torch.cat([start, answer[:, :-1]], dim=1))
        return outputs.logits.float()
    tokens = torch.cat([prompt, answer[:, :-1]], dim=1)
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -length:].float()


def _step(recommender: LanguageModelRecommender, log_probs: Tensor, token: int, most_others: int) -> PathStep:
    allowed = (log_probs > -torch.inf).nonzero().squeeze(1)
    best = allowed[log_probs[allowed].argsort(descending=True, stable=True)].tolist()

    def named(token_id: int) -> PathToken:
        text = recommender.tokenizer.decode([token_id], skip_special_tokens=False)
        if "\ufffd" in text or not text:  # part of a character
            text = recommender.tokenizer.convert_ids_to_tokens(token_id)
        return PathToken(token_id, text, float(log_probs[token_id]))

    others = [other for other in best if other != token][:most_others]
    return PathStep(named(token), len(best), [named(other) for other in others])
