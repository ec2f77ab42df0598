"""Train a sequence model with in-context examples (LLM-CF, https://huggingface.co/papers/2403.17688)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_rec.columns import EXAMPLES, INPUT_IDS, STORED_ROW, USER_ID, column_values
from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import ItemRows, TrainingBatches, events_before
from hf_rec.models.sequence.llm_cf import LLMCFModel
from hf_rec.trainers.sequential.example_rows import example_texts, known_before, row_times, times_of_examples
from hf_rec.trainers.sequential.llm_cf_config import LLMCFConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer


logger = logging.get_logger(__name__)


class LLMCFTrainer(SequentialTrainer):
    """
    Trainer of [`~hf_rec.models.sequence.llm_cf.LLMCFModel`]: a [`SequentialTrainer`] that stores the training rows in
    the model and finds examples among them.

    The examples of a label are rows of other users that were known when the event before it happened, and are most
    like what precedes it. They are found once, before training. Rows to evaluate find theirs likewise. Nothing of
    validation or test is stored.

    Args:
        model (`str` or [`~hf_rec.models.sequence.llm_cf.LLMCFModel`]): The model, or its folder or Hub name.
        args ([`LLMCFConfig`]): Arguments.
        train_dataset (`datasets.Dataset`): Rows to train on, and to store; with `user_id`. Times come from `timestamp`
            and `history_timestamps`; where no row has any, the rows of all other users count as past.
        eval_dataset, catalog, kwargs: As in [`SequentialTrainer`].
    """

    def __init__(
        self,
        model: str | LLMCFModel,
        args: LLMCFConfig,
        train_dataset: Dataset | None = None,
        eval_dataset: Any = None,
        catalog: Catalog | None = None,
        **kwargs: Any,
    ):
        if isinstance(model, str):
            from transformers import AutoModel

            from hf_rec.models.loading import load_weights

            model = load_weights(AutoModel, model)
        if not isinstance(model, LLMCFModel):
            raise ValueError(f"`model` must be an LLMCFModel, got {type(model).__name__}.")
        if train_dataset is not None and not isinstance(train_dataset, Dataset):
            raise ValueError(
                f"`train_dataset` must be a whole data set, got {type(train_dataset).__name__}: examples are looked "
                "for among all its rows. Load it first."
            )
        self._core = model
        self._users_of_rows: Tensor | None = None
        self._number_of_user: dict[str, int] = {}
        self._any_known = bool((model.examples.times > np.iinfo(np.int64).min).any())
        if train_dataset is not None:
            self._store(train_dataset, args, catalog)
        super().__init__(model, args, train_dataset, eval_dataset, catalog=catalog, **kwargs)

    def _store(self, dataset: Dataset, args: LLMCFConfig, catalog: Catalog | None) -> None:
        model = self._core
        if USER_ID not in dataset.column_names:
            raise ValueError(f"`train_dataset` lacks the column {USER_ID!r}: an example is a row of another user.")
        texts = example_texts(args, dataset, catalog)
        if args.reconstruction_weight and texts is None:
            raise ValueError(
                "`reconstruction_weight` needs texts: give `example_text_column` or `example_text_vectors`, or a "
                "catalog with titles."
            )
        rows = ItemRows.from_dataset(dataset, model.config.num_items)
        times = row_times(rows, dataset)
        stored = times_of_examples(rows, times)
        self._any_known = bool((times[rows.ends - 1] >= 0).any())
        if not self._any_known:
            logger.warning("No training row has a time: rows of all other users are taken for examples as if past.")
        users = list(map(str, column_values(dataset, USER_ID).to_pylist()))
        self._number_of_user = {user: number for number, user in enumerate(dict.fromkeys(users))}
        self._users_of_rows = torch.tensor([self._number_of_user[user] for user in users])
        length = model.config.example_length
        histories = events_before(rows, rows.ends - 1, length)
        histories = np.pad(histories, ((0, 0), (length - histories.shape[1], 0)), constant_values=-1)
        model.set_examples(
            torch.from_numpy(histories),
            torch.from_numpy(rows.events[rows.ends - 1]),
            torch.from_numpy(stored),
            None if texts is None else torch.from_numpy(texts),
            bool(args.reconstruction_weight),
        )

    def _examples(self, dataset: Dataset, rows: ItemRows, events: np.ndarray) -> np.ndarray:
        """Examples `[len(events), M]` of events as labels."""
        before = known_before(rows, row_times(rows, dataset), self._any_known)[events]
        users = None
        if USER_ID in dataset.column_names:
            names = map(str, column_values(dataset, USER_ID).to_pylist())
            number = np.array([self._number_of_user.get(name, -1) for name in names], dtype=np.int64)
            users = torch.from_numpy(number[np.searchsorted(rows.ends, events, side="right")])
        index, config = self._core.examples, self._core.config
        found = []
        for part in np.array_split(np.arange(len(events)), max(len(events) // 4096, 1)):
            found.append(
                index.find(
                    torch.from_numpy(events_before(rows, events[part], config.max_length)),
                    config.num_examples,
                    torch.from_numpy(before[part]),
                    None if users is None else users[part],
                    self._users_of_rows,
                )
            )
        return torch.cat(found).numpy()

    # Data

    def _training_batches(self, dataset: Any) -> tuple[Any, np.ndarray | None]:
        batches, counts = super()._training_batches(dataset)
        if not isinstance(batches, TrainingBatches):
            return batches, counts
        rows = ItemRows.from_dataset(dataset, self._core.config.num_items)
        labels = np.concatenate([np.arange(*span) for span in zip(batches.label_starts, batches.ends, strict=True)])
        examples = np.full((len(rows.events), self._core.config.num_examples), -1, dtype=np.int64)
        examples[labels] = self._examples(dataset, rows, labels)
        batches.of_labels[EXAMPLES] = examples
        batches.of_labels[STORED_ROW] = np.full(len(rows.events), -1, dtype=np.int64)
        batches.of_labels[STORED_ROW][rows.ends - 1] = np.arange(len(rows))
        without = int((examples[labels] < 0).all(axis=1).sum())
        logger.info(f"{len(labels) - without} of {len(labels)} labels have examples.")
        return batches, counts

    def _evaluation_batches(self, dataset: Any) -> Any:
        batches = super()._evaluation_batches(dataset)
        if isinstance(dataset, Dataset):
            batches.of_rows[EXAMPLES] = self._examples(dataset, batches.rows, batches.rows.ends - 1)
        return batches

    # Loss and evaluation

    def _more_inputs(self, inputs: dict[str, Tensor], places: Tensor) -> dict[str, Tensor]:
        examples = inputs[EXAMPLES]
        if self.layout == "prefixes":
            return {"examples": examples.flatten(0, 1)}
        return {"examples": examples.flatten(0, 1)[places], "places": places}

    def _more_loss(self, core: Any, outputs: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor | float:
        if not self.args.reconstruction_weight:
            return 0.0
        rows = inputs[STORED_ROW].flatten()[places]
        feature = outputs.feature[places] if self.layout == "prefixes" else outputs.feature
        told = core.text_output(feature)
        text = core.examples.texts[rows.clamp(min=0)]
        counts = (rows >= 0) & text.any(dim=1) & feature.any(dim=1)
        total = ((1 - F.cosine_similarity(told, text)) * counts).sum()
        return self._noted("reconstruction_loss", total, len(places), self.args.reconstruction_weight)

    def _user_vectors(self, core: Any, inputs: dict[str, Tensor]) -> Tensor:
        return core.user_vectors(inputs[INPUT_IDS], examples=inputs.get(EXAMPLES))
