"""Bring the item vectors of a frozen sequence model and text vectors into one space."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from hf_rec.columns import INPUT_IDS, LABEL_PLACES, LABELS
from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import ItemCollator, ItemRows
from hf_rec.data.splits import seen_items
from hf_rec.hub import save_recommender
from hf_rec.losses.alignment import squared_error
from hf_rec.losses.item_softmax import bce
from hf_rec.models.a_llmrec.model import ALLMRecModel
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.models.sequence.loading import load_sequence_model
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trainers.a_llmrec.config import ALLMRecConfig
from hf_rec.trainers.a_llmrec.item_text import text_vectors
from hf_rec.trainers.item_ranking import ItemRankingTrainer
from hf_rec.trainers.seeded_draws import draw_outside, position_keys, row_keys, uniform
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric


logger = logging.get_logger(__name__)


class ALLMRecTrainer(ItemRankingTrainer):
    """
    Stage 1 of A-LLMRec (https://huggingface.co/papers/2404.11343).

    For each label, with one negative, the loss is

        recommendation_weight * BCE of the scores through the reconstructed item vectors
        + matching_weight * squared error between the joint vectors of items and texts
        + alpha * squared error of the reconstructed item vectors
        + beta * squared error of the reconstructed text vectors,

    each squared error a mean over entries, summed over target and negative. Negatives are drawn evenly from the items
    of the training rows that are not in the row of the label. Only the autoencoders are trained.

    Evaluation ranks each target among all items with the reconstructed vectors: `eval_ndcg@10`, `eval_hit_rate@10`,
    `eval_mrr@10`, the same at 5, and `eval_nll`. Every saved folder is a recommender that does so.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): A trained sequence model, or its folder or Hub id; or an
            [`~hf_rec.models.a_llmrec.model.ALLMRecModel`] or its folder, to train it further.
        args ([`ALLMRecConfig`], *optional*): Arguments.
        train_dataset (`datasets.Dataset`, *optional*): Rows `{history, target, supervise_from, ...}` in catalog rows.
        eval_dataset (a data set, or a `dict` of them, *optional*): Rows to rank.
        catalog ([`Catalog`]): The items, as the sequence model was trained with them.
        text_vectors (`np.ndarray` of shape `(N, t)`, *optional*): In place of those that `args` describe.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~hf_rec.trainers.sequential.trainer.SequentialTrainer`].

    Raises:
        `ValueError`: Where model, catalog, text and data do not fit together; the message names what does not.
    """

    _fills_with_blanks = True

    def __init__(
        self,
        model: str | os.PathLike | SequencePreTrainedModel | ALLMRecModel,
        args: ALLMRecConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        catalog: Catalog | None = None,
        text_vectors: np.ndarray | None = None,
        callbacks: list | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        optimizers: tuple = (None, None),
    ):
        if catalog is None:
            raise ValueError("`catalog` is required: it holds the items and their texts.")
        given: Any = load_sequence_model(model, "model") if isinstance(model, str | os.PathLike) else model
        if args is None:
            args = ALLMRecConfig(f"{Path(given.config.name_or_path).name or type(given).__name__}-A-LLMRec")
        if compute_metrics is None:
            check_selection_metric(args, ("loss", "nll"), RANKING_METRICS, eval_dataset)
        catalog.check_made_for(given.config.num_items, given.config.catalog_sha256, "`model`")
        args.remove_unused_columns = False  # batches are cut from arrays that hold no unused column
        self.catalog = catalog
        aligned = _with_texts(given, args, catalog, train_dataset, text_vectors)
        config, inner = aligned.config, aligned.sequence_model
        self._whole_rows = inner.causal and not inner.masked
        layout = "sequences" if self._whole_rows else "prefixes"
        collator = ItemCollator(config.max_length, config.num_items, layout, args.supervise == "last")
        self._eval_collator = ItemCollator(config.max_length, config.num_items, "ranking")
        self._user_metrics = compute_metrics
        self._seen = aligned.item_seen.cpu().nonzero().squeeze(1)  # what negatives are drawn from
        self._place_of_seen = aligned.item_seen.cpu().long().cumsum(0) - 1
        super().__init__(
            model=aligned,
            args=args,
            data_collator=collator,
            train_dataset=self._training_batches(train_dataset, collator),
            eval_dataset=self._evaluation_batches(eval_dataset),
            callbacks=callbacks,
            compute_metrics=self._metrics,
            optimizers=optimizers,
        )

    def recommender(self) -> SequenceRecommender:
        """The model as it is now, under the contract of `recommend` and `score`."""
        return SequenceRecommender(self.accelerator.unwrap_model(self.model), self.catalog)

    def _training_batches(self, dataset: Any, collator: ItemCollator) -> Any:
        if not isinstance(dataset, Dataset):
            return dataset
        rows = ItemRows.from_dataset(dataset, collator.num_items)
        most = int((rows.ends - rows.starts).max(initial=0))
        if most >= len(self._seen) and any(
            len(set(rows.events[start:end].tolist())) >= len(self._seen)
            for start, end in zip(rows.starts, rows.ends, strict=True)
        ):
            raise ValueError(
                f"`train_dataset` has a row with all {len(self._seen)} items of the training rows: no negative is "
                "left for it. Cut rows with a smaller `--window`."
            )
        batches = collator.training_batches(rows)
        if not len(batches):
            raise ValueError("`train_dataset` has no label: every row is a single event, which nothing precedes.")
        logger.info(f"{batches.num_labels} labels in {len(batches)} samples.")
        return batches

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Sum over the labels of the four parts, divided by the labels of the whole accumulated batch."""
        input_ids, labels, places = inputs[INPUT_IDS], inputs[LABELS], inputs[LABEL_PLACES]
        targets = labels.flatten()[places]
        items = torch.stack([targets, self._negatives(input_ids, labels, places)], dim=1)
        outputs = model(input_ids=input_ids, label_places=places, items=items, whole_rows=self._whole_rows)
        parts = {
            "recommendation": bce(outputs.scores[:, 0], outputs.scores[:, 1:]),
            "matching": squared_error(outputs.item_joints, outputs.text_joints),
            "item_reconstruction": squared_error(outputs.rebuilt_items, outputs.item_vectors),
            "text_reconstruction": squared_error(outputs.rebuilt_texts, outputs.text_vectors),
        }
        weights = (self.args.recommendation_weight, self.args.matching_weight, self.args.alpha, self.args.beta)
        total = torch.zeros((), device=targets.device)
        for (name, values), weight in zip(parts.items(), weights, strict=True):
            self._logged[f"{name}_loss"].append(values.detach().sum() / max(len(places), 1))
            total = total + weight * values.sum()
        loss = self.scale_loss(total, len(places), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _negatives(self, input_ids: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        """One item for each label that is not in its row, by (seed, step, row, position) alone."""
        self._seen, self._place_of_seen = self._seen.to(input_ids.device), self._place_of_seen.to(input_ids.device)
        width = labels.shape[1] if self._whole_rows else 1
        keys = position_keys(input_ids).flatten() if self._whole_rows else row_keys(input_ids)
        row = torch.cat([input_ids, labels[:, -1:]], dim=1)
        row = torch.where(row >= 0, self._place_of_seen[row.clamp(min=0)], -1)[places // width]
        numbers = uniform(self.args.seed, self.state.global_step, keys[places])
        return self._seen[draw_outside(numbers[:, None], row, len(self._seen)).squeeze(1)]

    def save_recommender_files(self, output_dir: str) -> None:
        """The catalog, and what else makes the folder a recommender."""
        save_recommender(output_dir, catalog=self.catalog, kind=SequenceRecommender.kind, scoring="exact")


def _with_texts(
    model: SequencePreTrainedModel | ALLMRecModel,
    args: ALLMRecConfig,
    catalog: Catalog,
    train_dataset: Any,
    given: np.ndarray | None,
) -> ALLMRecModel:
    """The model to train: the one given, or a new one over a sequence model, its weights drawn by `args.seed`."""
    if isinstance(model, ALLMRecModel):
        if given is not None:
            raise ValueError("`text_vectors` are given, but `model` has its own. Leave them out to train it further.")
        return model
    if not isinstance(train_dataset, Dataset):
        raise ValueError(
            "`train_dataset` must be a datasets.Dataset where `model` is a sequence model: it says which items that "
            "one has seen."
        )
    vectors = torch.from_numpy(text_vectors(args, catalog) if given is None else given)
    model.config.catalog_sha256 = catalog.sha256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return ALLMRecModel.from_parts(
            model, vectors, seen_items=seen_items(train_dataset), joint_size=args.joint_size
        )
