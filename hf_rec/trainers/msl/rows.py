"""Rows of histories and targets, tokenised: `input_ids` and `labels`."""

from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers.utils import logging

from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, SUPERVISE_FROM, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.splits import distinct_labels
from hf_rec.trainers.item_rows import check_catalog_rows


logger = logging.get_logger(__name__)

_NUM_LABELS = "num_labels"


class PromptRows:
    """
    Turns data sets of rows `{history, target}` into tokens; rows `{input_ids, labels}` stay as they are.

    Args:
        prompt ([`Prompt`]), catalog ([`Catalog`]): How a history becomes tokens, and its items.
        num_proc (`int` or `None`): Processes that tokenise.
        keeps_history (`bool`): Whether evaluation rows keep their history beside the tokens.

    Attributes:
        distinct_labels (`int` or `None`): Labelled events of the training rows, those that the prompt drops left out;
            `None` where the rows do not tell.
    """

    def __init__(self, prompt: Prompt, catalog: Catalog, num_proc: int | None, keeps_history: bool = False):
        self.prompt, self.catalog = prompt, catalog
        self.num_proc = num_proc
        self.keeps_history = keeps_history
        self.distinct_labels: int | None = None

    def for_training(self, dataset: Any, supervise: str) -> Any:
        """Rows whose labels are the targets (`"last"`) or also the events from `supervise_from` on (`"all"`)."""
        if dataset is None:
            return None
        _check_kind("train_dataset", dataset)
        found = self._tokenised(dataset, supervise)
        if isinstance(dataset, Dataset) and _NUM_LABELS in found.column_names:
            self.distinct_labels = sum(found[_NUM_LABELS])
            self._warn_of_lost_labels(distinct_labels(dataset, supervise))
            found = found.remove_columns(_NUM_LABELS)
        elif isinstance(dataset, Dataset) and found is not dataset:
            self.distinct_labels = len(dataset)
        return found

    def _warn_of_lost_labels(self, wanted: int) -> None:
        assert self.distinct_labels is not None
        if lost := wanted - self.distinct_labels:
            logger.warning(
                f"`supervise='all'`: {lost} of {wanted} labelled events are dropped with the oldest items of their "
                f"histories, and train nothing (`max_length` {self.prompt.max_length}, `max_history` "
                f"{self.prompt.max_history}). Raise these, or prepare the split in windows that fit."
            )

    def for_evaluation(self, dataset: Any) -> Any:
        """Rows whose label is the target; also a `dict` of data sets."""
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self.for_evaluation(part) for key, part in dataset.items()}
        _check_kind("eval_dataset", dataset)
        return self._tokenised(dataset, "last", self.keeps_history)

    def _tokenised(
        self, dataset: Dataset | IterableDataset, supervise: str, keeps_history: bool = False
    ) -> Dataset | IterableDataset:
        columns = dataset.column_names or list(next(iter(dataset)))
        if {INPUT_IDS, LABELS} <= set(columns):
            if keeps_history and HISTORY not in columns:
                raise ValueError(
                    f"`seen='mask'` needs the column `{HISTORY}` of evaluation rows beside `{INPUT_IDS}`: it holds "
                    "the items to leave out."
                )
            return dataset
        if missing := {HISTORY, TARGET} - set(columns):
            raise ValueError(
                f"The data set needs the columns `{HISTORY}` and `{TARGET}`, or `{INPUT_IDS}` and `{LABELS}`; it has "
                f"{sorted(columns)} and lacks {sorted(missing)}."
            )
        if supervise == "all" and SUPERVISE_FROM not in columns:
            raise ValueError(
                f"`supervise='all'` needs the column `{SUPERVISE_FROM}`: an event must be a label in one window only."
            )
        check_catalog_rows(dataset, len(self.catalog))
        dropped = [column for column in columns if column != HISTORY] if keeps_history else columns
        how = {"prompt": self.prompt, "supervise": supervise}
        if isinstance(dataset, IterableDataset):
            return dataset.map(_encode_row, fn_kwargs=how, remove_columns=dropped)
        with PartialState().main_process_first():
            return dataset.map(
                _encode_row,
                fn_kwargs=how,
                remove_columns=dropped,
                num_proc=self.num_proc,
                new_fingerprint=Hasher.hash(
                    (dataset._fingerprint, self.prompt.sha256, self.prompt.paths_sha256, supervise, keeps_history)
                ),
                desc="Tokenising",
            )


def _encode_row(row: dict[str, Any], prompt: Prompt, supervise: str) -> dict[str, Any]:
    history = row[HISTORY]
    encoded: dict[str, Any] = prompt.encode_example(history, row[TARGET], row.get(SUPERVISE_FROM), supervise)
    if supervise == "all":
        # The target, and the events from `supervise_from` on that the prompt keeps
        encoded[_NUM_LABELS] = 1 + min(prompt.num_kept(history), len(history) - row[SUPERVISE_FROM])
    return encoded


def _check_kind(name: str, dataset: Any) -> None:
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"`{name}` must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}. Make one with "
            "`datasets.Dataset.from_dict` or `Dataset.from_list`, of catalog rows: `catalog.rows(ids)` gives those of "
            "raw ids."
        )
