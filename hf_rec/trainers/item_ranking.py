"""
Validation of models that score all items for a history: exact ranks of the targets, and minus log of their share in a
softmax over all items.

Shapes: U users.
"""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalPrediction

from hf_rec.columns import INPUT_IDS, SEEN, TARGET
from hf_rec.data.item_batches import ItemCollator, ItemRows
from hf_rec.evaluation.validation import validation_metrics
from hf_rec.recommenders.ranks import exact_ranks
from hf_rec.trainers.base_trainer import RecommenderTrainer


class ItemRankingTrainer(RecommenderTrainer):
    """
    Trainer whose model has `user_vectors`, `score_items` and `config.num_items`, and whose arguments have `seen`.

    A subclass sets `_eval_collator` and `_user_metrics` before `super().__init__`.
    """

    _eval_collator: ItemCollator
    _user_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None

    def _evaluation_batches(self, dataset: Any) -> Any:
        """Rows to rank, or a `dict` of them, as a data set of batches; what is none is handed on."""
        if isinstance(dataset, dict):
            return {name: self._evaluation_batches(part) for name, part in dataset.items()}
        if not isinstance(dataset, Dataset):
            return dataset
        return self._eval_collator.batches(ItemRows.from_dataset(dataset, self._eval_collator.num_items))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self.collating_with(self._eval_collator):
            return super().get_eval_dataloader(self._evaluation_batches(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self.collating_with(self._eval_collator):
            return super().get_test_dataloader(self._evaluation_batches(test_dataset))

    def _user_vectors(self, core: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The users of a batch to rank."""
        return core.user_vectors(inputs[INPUT_IDS])

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Exact ranks of the targets among all items, and minus log of their share in the softmax."""
        inputs = self._prepare_inputs(inputs)
        core = self.accelerator.unwrap_model(model)
        seen = inputs[SEEN] if self.args.seen == "mask" else None
        with torch.no_grad():
            with self.accelerator.autocast():
                vectors = self._user_vectors(core, inputs)
            better, tied, nll = exact_ranks(
                core.score_items, core.config.num_items, vectors.float(), inputs[TARGET], seen
            )
        if prediction_loss_only:
            return nll.mean(), None, None
        return nll.mean(), (better, tied, nll), inputs[TARGET]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        """The metrics of [`~hf_rec.evaluation.validation.validation_metrics`], and those of the user."""
        better, tied, nll = prediction.predictions
        metrics = validation_metrics(nll, (better, tied), seen=self.args.seen)
        if self._user_metrics is not None:
            metrics |= self._user_metrics(prediction)
        return metrics
