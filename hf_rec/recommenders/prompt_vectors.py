"""
Vectors of users and items from a retrieval model, for whole catalogs and many users: prompts of about equal length are
read together, in batches of a bounded number of tokens.

Shapes: N items of the catalog · U users · v width of the vectors.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from hf_rec.columns import INPUT_IDS, PADDING_ITEM, SLOT_ITEMS
from hf_rec.data.prompts.retrieval import RetrievalPrompt, pad_prompts
from hf_rec.models.evaluation_mode import evaluation_mode


if TYPE_CHECKING:
    from hf_rec.models.llm_srec.model import LLMSRecModel

CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 65_536  # of one batch
_PROGRESS_DELAY = 3.0  # seconds before a progress bar appears


class PromptVectors:
    """
    Encodes users and items with a retrieval model.

    Args:
        model ([`~hf_rec.models.llm_srec.model.LLMSRecModel`]): The model. It need not be in eval mode.
        prompt ([`RetrievalPrompt`]): How users and items become tokens.
        teacher_items (`np.ndarray` of shape `(N,)`, *optional*): For each catalog row the item that the model's
            teacher knows it as, -1 where it knows none. Default: the rows themselves.
    """

    def __init__(self, model: "LLMSRecModel", prompt: RetrievalPrompt, teacher_items: np.ndarray | None = None):
        self.model = model
        self.prompt = prompt
        known = model.config.num_items
        if teacher_items is None:
            teacher_items = np.where(np.arange(len(prompt)) < known, np.arange(len(prompt)), PADDING_ITEM)
        if len(teacher_items) != len(prompt) or teacher_items.max(initial=-1) >= known:
            raise ValueError(
                f"`teacher_items` must give one of the {known} items of the teacher, or -1, for each of the "
                f"{len(prompt)} catalog rows, got {len(teacher_items)} entries up to {teacher_items.max(initial=-1)}."
            )
        self.teacher_items = teacher_items

    @property
    def num_cold(self) -> int:
        """Items of the catalog whose slot holds a zero vector, because the teacher has not seen them."""
        seen = self.model.item_seen.cpu().numpy()
        return int((~((self.teacher_items >= 0) & seen[self.teacher_items])).sum())

    def items(self, rows: Sequence[int] | np.ndarray | None = None, lengths: np.ndarray | None = None) -> Tensor:
        """
        Vectors of all items, or of some: float32 of shape `(len(rows), v)`, on the device of the model.

        Args:
            rows (`list[int]`, *optional*): Catalog rows. Default: all.
            lengths (`np.ndarray` of shape `(len(rows),)`, *optional*): Tokens by which batches are cut, at least those
                of each row. Processes that share out a catalog give the same ones, to work in equally many batches.
        """
        wanted = np.arange(len(self.prompt)) if rows is None else np.asarray(rows, dtype=np.int64)
        lengths = self.prompt.item_lengths[wanted] if lengths is None else lengths

        def inputs(places: np.ndarray) -> dict[str, Tensor]:
            return self.prompt.item_inputs(wanted[places].tolist())

        return self._encode("item", lengths, inputs, "Encoding items")

    def users(self, histories: Sequence[Sequence[int]], timestamps: Sequence[Sequence[int]] | None = None) -> Tensor:
        """
        Vectors of users after their histories (catalog rows): float32 of shape `(U, v)`, on the device of the model.
        """
        times = [None] * len(histories) if timestamps is None else timestamps
        prompts = [self.prompt.encode_user(*pair) for pair in zip(histories, times, strict=True)]
        lengths = np.array([len(prompt[INPUT_IDS]) for prompt in prompts], dtype=np.int64)
        return self._encode(
            "user", lengths, lambda places: pad_prompts([prompts[i] for i in places]), "Encoding users"
        )

    @torch.no_grad()
    def _encode(
        self,
        query: str,
        lengths: np.ndarray,
        batch_of: Callable[[np.ndarray], dict[str, Tensor]],
        description: str,
    ) -> Tensor:
        device = self.model.device
        prefix = self.prompt.user_prefix if query == "user" else self.prompt.item_prefix
        prefix_ids = torch.tensor(prefix, device=device)
        vectors = torch.empty(len(lengths), self.model.config.vector_size, device=device)
        budget = CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
        with (
            evaluation_mode(self.model),
            logging.tqdm(
                total=len(lengths),
                desc=description,
                unit=query,
                delay=_PROGRESS_DELAY,
                leave=False,
                disable=os.environ.get("RANK", "0") != "0",
            ) as progress,
        ):
            for places in token_batches(lengths, budget):
                inputs = batch_of(places)
                inputs[SLOT_ITEMS] = self._known_to_teacher(inputs[SLOT_ITEMS])
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                inputs["prefix_ids"] = prefix_ids
                # The model is called whole: engines that shard its weights gather them then
                if query == "user":
                    encoded = self.model(user_inputs=inputs).user_vectors
                else:
                    encoded = self.model(item_inputs=inputs).item_vectors
                vectors[torch.from_numpy(places).to(device)] = encoded.float()
                progress.update(len(places))
        return vectors

    def _known_to_teacher(self, slots: Tensor) -> Tensor:
        """
        Slots with the teacher's items in place of catalog rows; an index past its table marks an unknown item.
        """
        items = torch.from_numpy(self.teacher_items)[slots.clamp(min=0)]
        return torch.where(slots < 0, slots, items.where(items >= 0, self.model.config.num_items))


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Places in batches of at most `budget` tokens, padding included, longest first; at least one place each."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches
