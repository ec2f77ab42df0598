"""
A language model that judges candidates: the answer to a prompt is one of a few words.

Shapes: C candidates of a user · P orders of them · W words that the model may answer with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.item_tokens import ItemTokens, check_item_tokens
from hf_rec.models.language.positions import check_positions
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, Recommender, Times
from hf_rec.recommenders.exact import ranked
from hf_rec.search.answer_logits import answer_logits
from hf_rec.search.model_inputs import is_encoder_decoder
from hf_rec.trie.item_trie import ItemTrie


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CandidateOrder = Literal["shuffled", "retrieved"]
_PROBE_TOKENS = 8
_SCORES_AT_ONCE = 2**20  # of all items, for all users of a batch


class Reranker(Recommender):
    """
    Scores candidates by the answer of a language model.

    With a prompt of the form `"yes_no"` the score of an item is the log of the odds of yes, `logit(yes) - logit(no)`,
    whatever else is scored. With `"letters"` candidates are judged together: the score is the log-probability of the
    item's letter among those of all candidates, averaged over orders of them, so it belongs to a set of candidates,
    and nothing but such a set can be ranked ([`~hf_rec.recommenders.reranked.RerankedRecommender`] does).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal LM. It need not be in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        catalog ([`Catalog`]): Items.
        prompt ([`RerankPrompt`]): How a history and candidates become tokens.
        permutations (`int`, *optional*, defaults to `1`): Orders that candidates are judged in, with letters. They are
            rotations of the first one, so that with as many orders as candidates each stands once in every place.
        candidate_order (`str`, *optional*, defaults to `"shuffled"`): The first order: `"shuffled"`, drawn from `seed`
            and the history for the set of candidates, or `"retrieved"`, as they are given.
        seed (`int`, *optional*, defaults to `0`): Of the orders.
        shared_prefix (`bool`, *optional*, defaults to `True`): Read what candidates and orders of a user share once.
        batch_size (`int`, *optional*, defaults to `16`): Histories worked on at a time.
    """

    kind = "reranker"
    is_exact = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        prompt: RerankPrompt,
        permutations: int = 1,
        candidate_order: CandidateOrder = "shuffled",
        seed: int = 0,
        shared_prefix: bool = True,
        batch_size: int = 16,
    ):
        super().__init__(catalog, batch_size)
        check_judge(model, prompt)
        if len(prompt) != len(catalog):
            raise ValueError(f"`catalog` has {len(catalog)} items, `prompt` {len(prompt)}. Make the prompt from it.")
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.candidate_order, self.seed = candidate_order, seed
        self.set_permutations(permutations)
        self.shared_prefix = shared_prefix
        words = prompt.text_tokens()[:_PROBE_TOKENS]
        self._probe = ItemTrie.build([[token] for token in words]).csr()

    @property
    def form(self) -> str:
        """`"yes_no"` or `"letters"`."""
        return self.prompt.form

    def set_permutations(self, permutations: int) -> None:
        """Average over this many orders from now on."""
        if not 1 <= permutations <= self.prompt.num_candidates:
            raise ValueError(
                f"`permutations` must be from 1 to the {self.prompt.num_candidates} candidates of a prompt, got "
                f"{permutations}."
            )
        self.permutations = permutations

    def order_settings(self) -> dict[str, Any]:
        """What says in which orders candidates are judged."""
        return {"permutations": self.permutations, "candidate_order": self.candidate_order, "seed": self.seed}

    def judge(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        disliked: Sequence[Sequence[int]] | None = None,
    ) -> list[np.ndarray]:
        """
        Scores of candidates.

        Args:
            histories (`list[list[int]]`): Catalog rows of what each user chose, or liked, oldest first.
            candidates (`list[list[int]]`): Catalog rows to score; with letters each once, and no more than there are
                letters. May be empty.
            disliked (`list[list[int]]`, *optional*): Catalog rows of what each user did not like.

        Returns:
            `list[np.ndarray]`: For each user one float32 score for each candidate.
        """
        if self.form == "letters":
            return [_mean_over_orders(*judged) for judged in self.judge_orders(histories, candidates, disliked)]
        endings = [[self.prompt.encode_candidates([row]) for row in rows] for rows in candidates]
        logits = self._answers(histories, disliked, endings)
        return [(part[:, 0] - part[:, 1]).cpu().numpy() for part in logits]

    def judge_orders(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        disliked: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        With letters, the log-probability of each place of each order; arguments are those of [`~Reranker.judge`].

        Returns:
            `list[tuple[np.ndarray, np.ndarray]]`: For each user two arrays of shape `(P, C)`: which candidate stands
            in a place of an order, as an index into its candidates, and the log-probability of the place's letter.
        """
        orders = [self.orders(*pair) for pair in zip(histories, candidates, strict=True)]
        endings = [
            [self.prompt.encode_candidates([rows[place] for place in order]) for order in own.tolist()]
            for rows, own in zip(candidates, orders, strict=True)
        ]
        logits = self._answers(histories, disliked, endings)
        return [
            (order, part[:, : order.shape[1]].log_softmax(dim=1).cpu().numpy())
            for order, part in zip(orders, logits, strict=True)
        ]

    def orders(self, history: Sequence[int], candidates: Sequence[int]) -> np.ndarray:
        """
        The orders in which candidates are judged: `int64` of shape `(P, C)`, indices into `candidates`.

        Under `"shuffled"` they depend on the set of candidates alone, not on who came first.
        """
        if len(set(candidates)) < len(candidates):
            raise ValueError(f"`candidates` must hold an item once, got {list(candidates)}: each has one letter.")
        if not len(candidates):
            return np.empty((0, 0), dtype=np.int64)
        first = np.arange(len(candidates))
        if self.candidate_order == "shuffled":
            generator = np.random.default_rng([self.seed, len(history), *history, *sorted(candidates)])
            first = generator.permutation(np.argsort(np.asarray(candidates, dtype=np.int64)))
        count = max(1, min(self.permutations, len(candidates)))
        return np.stack([np.roll(first, -(turn * len(candidates) // count)) for turn in range(count)])

    def _answers(
        self,
        histories: Sequence[Sequence[int]],
        disliked: Sequence[Sequence[int]] | None,
        endings: list[list[list[int]]],
    ) -> list[Tensor]:
        """Logits of the words, `(endings of the user, W)`, for each user; users without candidates have none."""
        asked = [user for user, own in enumerate(endings) if own]
        device = self.model.device
        columns = torch.tensor(self.prompt.verbalizer_ids, device=device)
        found = [torch.zeros(0, len(columns)) for _ in endings]
        if not asked:
            return found
        beginnings = [self.prompt.encode_user(histories[user], disliked[user] if disliked else ()) for user in asked]
        with evaluation_mode(self.model), torch.no_grad():
            logits = answer_logits(
                self.model,
                beginnings,
                [endings[user] for user in asked],
                columns,
                self._probe.to(device),
                self.shared_prefix,
            )
        for user, part in zip(asked, logits, strict=True):
            found[user] = part
        return found

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        if self.form == "yes_no":
            return self.judge(histories, candidates)
        unique = [list(dict.fromkeys(rows)) for rows in candidates]
        if (most := max(map(len, unique), default=0)) > self.prompt.num_candidates:
            raise ValueError(
                f"`candidates` holds {most} items for a user, but this re-ranker of the form 'letters' judges up to "
                f"{self.prompt.num_candidates} together. Give fewer, or rank all items with a RerankedRecommender."
            )
        found = self.judge(histories, unique)
        scores = [dict(zip(rows, values, strict=True)) for rows, values in zip(unique, found, strict=True)]
        return [
            np.array([values[row] for row in rows], dtype=np.float32)
            for values, rows in zip(scores, candidates, strict=True)
        ]

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        return ranked(torch.from_numpy(self._score_all_rows(histories, timestamps)), k, allowed)

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        if self.form == "letters":
            raise ValueError(
                "A re-ranker of the form 'letters' orders the candidates of another recommender: put the two together "
                "with `hf-rec rerank`, or RerankedRecommender(retriever, reranker)."
            )
        return super()._score_all_rows(histories, timestamps)

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return max(1, min(size, _SCORES_AT_ONCE // len(self.catalog)))


def check_judge(model: nn.Module, prompt: RerankPrompt) -> None:
    """Refuse a model that cannot answer a prompt."""
    if is_encoder_decoder(model):
        raise ValueError(
            f"`model` must be a causal LM, got {type(model).__name__}, which reads prompts in an encoder of its own."
        )
    check_positions(model.config, prompt.max_length)
    item_tokens = ItemTokens.of(model)
    check_item_tokens(item_tokens, prompt.item_token_start, prompt.user_token)
    if item_tokens is not None and item_tokens.knowledge.features != "item":
        raise ValueError(
            f"The collaborative tokens of `model` show {item_tokens.knowledge.features!r}, but candidates are read "
            "behind a history that is not read again: a re-ranker takes 'item'."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if (largest := max(prompt.verbalizer_ids)) >= rows:
        raise ValueError(
            f"`prompt` is answered with token {largest}, but `model` has {rows} tokens. Load both from one folder."
        )


def _mean_over_orders(orders: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Mean log-probability of each candidate: `(C,)`."""
    if not orders.size:
        return np.zeros(0, dtype=np.float32)
    of_candidate = np.empty(log_probs.shape, dtype=np.float32)
    np.put_along_axis(of_candidate, orders, log_probs, axis=1)
    return of_candidate.mean(axis=0)
