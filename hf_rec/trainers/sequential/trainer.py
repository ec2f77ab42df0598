"""Train a sequence model on item ids, with a full or a sampled softmax or a pairwise loss."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import AutoModel
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from hf_rec.columns import IGNORE_INDEX, INPUT_IDS, LABEL_PLACES, LABELS, TEACHER_LIST
from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import ItemCollator, ItemRows
from hf_rec.hub import save_recommender
from hf_rec.models.loading import load_weights
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trainers.seeded_draws import position_keys, row_keys
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.item_text import item_text_vectors
from hf_rec.trainers.sequential.layout import label_layout, tie_to_catalog
from hf_rec.trainers.sequential.loss import ItemLoss
from hf_rec.trainers.sequential.optimizer import AdamTrainer
from hf_rec.trainers.sequential.robust import RobustLoss
from hf_rec.trainers.sequential.sampling import hide_labels
from hf_rec.trainers.sequential.teacher import TeacherLists, teacher_of


logger = logging.get_logger(__name__)


class SequentialTrainer(AdamTrainer):
    """
    Trainer of SASRec and its kin (SCE, https://huggingface.co/papers/2402.06216).

    Rows are `{history, target, supervise_from, ...}` in catalog rows, one a user for leave-one-out splits. Padding is
    dropped before any item is scored. Evaluation ranks each target among all items: `eval_ndcg@10`,
    `eval_hit_rate@10`, `eval_mrr@10`, the same at 5, and `eval_nll` (also `eval_loss`), the mean minus log of the
    target's share in a softmax over all items.

    Args:
        model (`str` or [`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): A sequence model, or its folder or
            Hub name.
        args ([`SequentialConfig`], *optional*): Arguments.
        train_dataset (`datasets.Dataset` or `IterableDataset`, *optional*): Rows to train on.
        eval_dataset (a data set, or a `dict` of them, *optional*): Rows to rank.
        catalog ([`~hf_rec.data.catalog.Catalog`], *optional*): The items. With it every saved folder is a whole
            recommender.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~transformers.Trainer`]. `compute_metrics` sees `predictions = (better [U], tied [U], nll [U])` and
            `label_ids [U]`, the targets; what it returns is merged with ours.

    Raises:
        `ValueError`: Where model, catalog, data and arguments do not fit together; the message names what does not.
    """

    _fills_with_blanks = True

    def __init__(
        self,
        model: str | SequencePreTrainedModel,
        args: SequentialConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        catalog: Catalog | None = None,
        callbacks: list | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        optimizers: tuple = (None, None),
    ):
        if isinstance(model, str):
            model = load_weights(AutoModel, model)
        if not isinstance(model, SequencePreTrainedModel):
            raise ValueError(f"`model` must be a sequence model of `hf_rec.models`, got {type(model).__name__}.")
        if args is None:
            name = Path(model.config.name_or_path).name or type(model).__name__
            args = SequentialConfig(f"{name}-sequential")
        if compute_metrics is None:
            check_selection_metric(args, ("loss", "nll"), RANKING_METRICS, eval_dataset)
        args.remove_unused_columns = False  # batches are cut from arrays that hold no unused column
        self.catalog = catalog
        tie_to_catalog(model, catalog)
        self.layout = label_layout(model, args)
        config = model.config
        self._train_collator = ItemCollator(
            config.max_length, config.num_items, self.layout, args.supervise == "last", args.shortest_prefix
        )
        self._eval_collator = ItemCollator(config.max_length, config.num_items, "ranking")
        self.artefacts: dict[str, str] = {}  # hashes of what is learned from beside the rows
        if (text := item_text_vectors(args, catalog)) is not None:
            model.set_text_vectors(text.vectors, args.text_weight, args.seed)
            self.artefacts["item_text_vectors"] = text.sha256
        batches, counts = self._training_batches(train_dataset)
        self.item_loss = ItemLoss(args, config.num_items, counts)
        trains = train_dataset is not None
        self.robust_loss = RobustLoss(args, counts) if args.robust_weight and trains else None
        self.teacher: TeacherLists | None = None
        if args.teacher_lists is not None and trains:
            self.teacher = teacher_of(args, catalog, train_dataset, self.layout, self.robust_loss)
            batches.of_labels[TEACHER_LIST] = self.teacher.list_of_event
            self.artefacts["teacher_lists"] = self.teacher.sha256
        self._user_metrics = compute_metrics
        super().__init__(
            model=model,
            args=args,
            data_collator=self._train_collator,
            train_dataset=batches,
            eval_dataset=self._evaluation_batches(eval_dataset),
            callbacks=callbacks,
            compute_metrics=self._metrics,
            optimizers=optimizers,
        )
        if args.item_optimizer == "lazy":
            if self.args.world_size > 1:
                raise ValueError(
                    f"`item_optimizer='lazy'` trains in one process, got {self.args.world_size}: sparse gradients are "
                    "not averaged over processes here. Use 'dense'."
                )
            model.set_sparse_item_gradient(True)

    def recommender(self) -> SequenceRecommender:
        """The model as it is now, under the contract of `recommend` and `score`."""
        if self.catalog is None:
            raise ValueError("`catalog` was not given: a recommender needs it to speak of raw item ids.")
        return SequenceRecommender(self.accelerator.unwrap_model(self.model), self.catalog)

    # Data

    def _training_batches(self, dataset: Dataset | IterableDataset | None) -> tuple[Any, np.ndarray | None]:
        if not isinstance(dataset, Dataset):
            return dataset, None
        rows = ItemRows.from_dataset(dataset, self._train_collator.num_items)
        batches = self._train_collator.training_batches(rows)
        if not len(batches):
            raise ValueError("`train_dataset` has no label: every row is a single event, which nothing precedes.")
        logger.info(
            f"{batches.num_labels} labels in {len(batches)} samples; {batches.num_dropped_rows} rows have no label."
        )
        if batches.num_dropped_events:
            logger.warning(
                f"{batches.num_dropped_events} events of the {len(batches)} training samples are not read: the model "
                f"reads the newest {batches.max_length} of each (`max_length`)."
            )
        return batches, rows.item_counts(self._train_collator.num_items)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """As in Trainer; hides the labels of a masked model first, since the labels of a step are counted here."""
        if self.layout == "masked":
            epoch_iterator = map(self._masked, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _masked(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        args, mask_item = self.args, self.accelerator.unwrap_model(self.model).mask_item
        input_ids, labels = hide_labels(
            batch[INPUT_IDS],
            batch[LABELS],
            mask_item,
            args.mask_ratio,
            args.last_mask_ratio,
            IGNORE_INDEX,
            seed=args.seed,
            step=self.state.global_step,
        )
        places = (labels != IGNORE_INDEX).flatten().nonzero().squeeze(1)
        return {INPUT_IDS: input_ids, LABELS: labels, LABEL_PLACES: places}

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Sum of the losses of the labels, divided by the labels of the whole accumulated, distributed batch."""
        input_ids, labels, places = inputs[INPUT_IDS], inputs[LABELS], inputs[LABEL_PLACES]
        outputs = model(input_ids=input_ids, **self._more_inputs(inputs, places))
        if self.layout == "prefixes":  # the only label of a prefix is that of its row
            vectors, rows = outputs.user_vector[places], places
        else:
            vectors, rows = outputs.last_hidden_state.flatten(0, 1)[places], places // labels.shape[1]
        core, targets = self.accelerator.unwrap_model(model), labels.flatten()[places]
        needs_keys = self.item_loss.needs_positions or self.teacher is not None
        keys = self._position_keys(input_ids, places) if needs_keys else None
        total = self.item_loss(
            core,
            vectors,
            targets,
            keys,
            self.state.global_step,
            torch.cat([input_ids, labels[:, -1:]], dim=1)[rows] if self.item_loss.needs_seen else None,
        )
        if self.robust_loss is not None:
            robust = self.robust_loss(core, vectors, targets[:, None])
            total = total + self._noted("robust_loss", robust, len(places), self.args.robust_weight)
        if self.teacher is not None and keys is not None:
            lists = inputs[TEACHER_LIST].flatten()[places]
            lesson = self.teacher(core, vectors, targets, lists, keys, self.state.global_step)
            total = total + self._noted("teacher_loss", lesson, len(places), self.args.teacher_weight)
        total = total + self._more_loss(core, outputs, inputs, places)
        loss = self.scale_loss(total, len(places), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _more_inputs(self, inputs: dict[str, Tensor], places: Tensor) -> dict[str, Tensor]:
        """What a model reads beside histories; `places` are the labelled positions."""
        return {}

    def _more_loss(self, core: Any, outputs: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor | float:
        """A sum over labels that a model has beside its ranking loss."""
        return 0.0

    def _noted(self, name: str, total: Tensor, num_labels: int, weight: float) -> Tensor:
        """A part of the loss, weighted; its mean over labels is logged without the weight."""
        self._logged[name].append(total.detach() / max(num_labels, 1))
        return weight * total

    def _position_keys(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """What the draws of each labelled position depend on."""
        keys = row_keys(input_ids) if self.layout == "prefixes" else position_keys(input_ids).flatten()
        return keys[places]

    # Files

    def save_recommender_files(self, output_dir: str) -> None:
        """The catalog, and what else makes the folder a recommender."""
        if self.catalog is None:
            return
        save_recommender(
            output_dir,
            catalog=self.catalog,
            kind=SequenceRecommender.kind,
            scoring="exact",
            extra={"artefacts": self.artefacts} if self.artefacts else None,
        )
