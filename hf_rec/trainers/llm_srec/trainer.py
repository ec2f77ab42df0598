"""Distil a sequence model's sense of order into a frozen language model that retrieves items."""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction, has_length
from transformers.utils import logging

from hf_rec.columns import ATTENTION_MASK, INPUT_IDS, LABELS, SEEN, SLOT_ITEMS, TARGET, TEACHER_VECTOR
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.evaluation.validation import validation_metrics
from hf_rec.hub import save_recommender
from hf_rec.losses.distillation import match_loss, retrieval_loss, uniformity_loss
from hf_rec.models.language.positions import check_positions
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.recommenders.item_index import ItemIndex
from hf_rec.recommenders.prompt_vectors import PromptVectors
from hf_rec.recommenders.retrieval import RetrievalRecommender, check_teacher_catalog
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.llm_srec.config import LLMSRecConfig
from hf_rec.trainers.llm_srec.gather import gather_rows
from hf_rec.trainers.llm_srec.negatives import RetrievalNegatives
from hf_rec.trainers.llm_srec.rows import (
    RetrievalRows,
    Rows,
    collate_ranking,
    collate_training,
)
from hf_rec.trainers.llm_srec.student import default_arguments, make_student, new_prompt, trained_hash
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric


logger = logging.get_logger(__name__)

_PROMPT = (INPUT_IDS, ATTENTION_MASK, SLOT_ITEMS)


class LLMSRecTrainer(RecommenderTrainer):
    """
    Trainer of LLM-SRec (https://huggingface.co/papers/2502.13909).

    The loss has three terms, each a mean over the users of the batch: retrieval of the target, match with the
    teacher's user vector, and uniformity. Terms that couple rows (uniformity, `match_form="infonce"`,
    `negatives="in_batch"`) see the rows of all processes, so that two processes take the steps of one; under gradient
    accumulation they are the mean over micro-batches. With the others alone, 8 x 1 and 1 x 8 take the same steps too.
    Where the last batch of an epoch is not full, several processes repeat rows of the first one in it.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): A [`~hf_rec.models.llm_srec.model.LLMSRecModel`] or its
            folder; or, with `sequence_model`, the causal LM to be frozen, or its folder or Hub id.
        args ([`LLMSRecConfig`], *optional*): Arguments.
        train_dataset (`datasets.Dataset` or `IterableDataset`, *optional*): Rows `{history, target,
            history_timestamps, ...}` in catalog rows. The teacher's vectors are computed once and kept with them.
        eval_dataset (a data set, or a `dict` of them, *optional*): Rows to rank.
        processing_class (tokenizer, *optional*): Loaded from the language model's folder where it is not given.
        catalog ([`Catalog`]): The items, as the sequence model was trained with them.
        prompt ([`RetrievalPrompt`], *optional*): Made from `args` where it is not given.
        sequence_model (`str` or [`~hf_rec.models.sequence.base.SequencePreTrainedModel`], *optional*): The teacher.
        teacher_items (`set[int]`, *optional*): Catalog rows that the teacher was trained on, where the trainer makes
            the model; those of `train_dataset` by default. All others are read by their text alone.
        peft_config (`peft.PeftConfig`, *optional*): Train an adapter on the language model too, where the trainer
            makes the model.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~transformers.Trainer`]. `compute_metrics` sees `predictions = (better [U], tied [U], nll [U])` and
            `label_ids [U]`, the targets; what it returns is merged with ours.

    Raises:
        `ValueError`: Where an argument is missing, or model, teacher, catalog and data do not belong together.
    """

    lr_scheduler: Any

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: LLMSRecConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: RetrievalPrompt | None = None,
        sequence_model: str | SequencePreTrainedModel | None = None,
        teacher_items: set[int] | None = None,
        peft_config: Any = None,
        callbacks: list | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        optimizers: tuple = (None, None),
    ):
        if catalog is None:
            raise ValueError("`catalog` is required: it holds the items that the model retrieves.")
        args = args if args is not None else default_arguments(model)
        if compute_metrics is None:
            check_selection_metric(args, ("loss", "nll"), RANKING_METRICS, eval_dataset)
        model = make_student(model, sequence_model, args, train_dataset, teacher_items, peft_config)
        check_teacher_catalog(model.config, catalog)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                model.config.language_model,
                revision=model.config.language_model_revision,
                trust_remote_code=False,
            )
        self.catalog = catalog
        self.prompt = prompt or new_prompt(args, processing_class, catalog)
        check_positions(model.language_model.config, self.prompt.max_length, self.prompt.longest)
        self._rows = RetrievalRows(self.prompt, model.sequence_model, args.supervise, args.dataset_num_proc)
        self._user_metrics = compute_metrics
        self._index: ItemIndex | None = None  # of an evaluation that is under way
        self._saved: tuple[str | None, ItemIndex] | None = None  # hash of the weights that were saved, and their index
        self._micro_batch = 0
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_training,
            train_dataset=self._rows.for_training(train_dataset),
            eval_dataset=self._ranking_rows(eval_dataset),
            processing_class=processing_class,
            callbacks=callbacks,
            compute_metrics=self._metrics,
            optimizers=optimizers,
        )
        # Engines want to know beforehand which weights get no gradient
        model.teacher_head.requires_grad_(self._uses_teacher)
        seen = model.item_seen.cpu().nonzero().squeeze(1)
        self.negatives = RetrievalNegatives(seen, len(catalog), args.effective_num_negatives, args.seed)
        self._space_evaluations()
        self._item_prefix = torch.tensor(self.prompt.item_prefix, device=self.args.device)
        self._user_prefix = torch.tensor(self.prompt.user_prefix, device=self.args.device)
        self._report_items(len(catalog) - len(seen))

    def _space_evaluations(self) -> None:
        """Turn `evaluations_per_epoch` into steps."""
        if self.args.evaluations_per_epoch is None or self.train_dataset is None:
            return
        self.args.eval_steps = max(1, self._steps_per_epoch() // self.args.evaluations_per_epoch)
        if self.args.save_strategy == "steps":
            self.args.save_steps = self.args.eval_steps

    def _report_items(self, num_unknown: int) -> None:
        counts = self.prompt.report()
        logger.info(
            f"{counts['items']} items: {num_unknown} unknown to the teacher (read by their text alone), "
            f"{counts['untitled']} without a title (named after their id), {counts['shortened']} cut to fit."
        )

    def recommender(self) -> RetrievalRecommender:
        """The model as it is now, under the contract of `recommend` and `score`."""
        model, index = self.accelerator.unwrap_model(self.model), None
        if self._saved is not None and self._saved[0] is not None and self._saved[0] == trained_hash(model):
            index = self._saved[1]  # encoded when these weights were saved
        return RetrievalRecommender(model, self.processing_class, self.catalog, self.prompt, index)

    # Data

    def _ranking_rows(self, dataset: Any) -> Any:
        if isinstance(dataset, dict):
            return {name: self._rows.for_ranking(part) for name, part in dataset.items()}
        return self._rows.for_ranking(dataset)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [INPUT_IDS, SLOT_ITEMS, LABELS, TEACHER_VECTOR, TARGET, SEEN]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self.collating_with(collate_ranking):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self.collating_with(collate_ranking):
            return super().get_test_dataloader(self._ranking_rows(test_dataset))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        As [`~transformers.Trainer.evaluate`]; adds `nll`, and `ndcg@10` and the like by exact ranking of all items.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._ranking_rows(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # Training

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """As in Trainer; micro-batches are counted, since their shared negatives are drawn by their number."""
        self._micro_batch = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Weighted sum of the terms, scaled by this micro-batch's share of the step's users."""
        step, targets = self.state.global_step, inputs[LABELS]
        # Drawn on the host from what the collator left there: nothing is read back from the device
        seen = torch.from_numpy(inputs[SEEN])
        negatives = self._draw_negatives(step, seen)
        items, place = torch.cat([seen[:, -1], negatives.flatten()]).unique(return_inverse=True)
        outputs = model(
            user_inputs=self._hide(step, self._user_inputs(inputs)),
            item_inputs=self._hide(step, self._item_inputs(items)),
            teacher_vectors=inputs[TEACHER_VECTOR] if self._uses_teacher else None,
        )
        chosen = outputs.item_vectors[place.to(targets.device)]
        own, other = chosen[: len(targets)], chosen[len(targets) :].view(*negatives.shape, -1)
        terms = self._terms(
            gather_rows(outputs.user_vectors, self.accelerator),
            gather_rows(outputs.teacher_vectors, self.accelerator) if self._uses_teacher else None,
            gather_rows(own, self.accelerator),
            gather_rows(other, self.accelerator),
            targets=self.accelerator.gather(targets),
            negatives=self.accelerator.gather(negatives.to(targets.device)),
        )
        total = sum(self._weights[name] * term for name, term in terms.items())
        if model.training:
            self._micro_batch += 1
            for name, term in terms.items():
                self._logged[name].append(term.detach())
        loss = self.scale_loss(total * len(targets), len(targets), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    @property
    def _weights(self) -> dict[str, float]:
        """Weight of each term, by the name under which it is logged."""
        args = self.args
        return {
            "retrieval_loss": args.retrieval_weight,
            "match_loss": args.match_weight,
            "uniformity_loss": args.uniformity_weight,
        }

    @property
    def _uses_teacher(self) -> bool:
        """Whether any term reads the teacher's user vectors."""
        return self.args.match_weight > 0 or (self.args.uniformity_weight > 0 and self.args.uniformity_of == "teacher")

    def _draw_negatives(self, step: int, seen: Tensor) -> Tensor:
        """Negatives of each user, `(B, K)`, or those that the users of this process share, `(M,)`; on the CPU."""
        if self.args.negatives == "random":
            return self.negatives.by_user(step, seen)
        process = self.accelerator.process_index, self.accelerator.num_processes
        return self.negatives.shared(step, self._micro_batch, *process)

    def _terms(
        self, users: Tensor, teacher: Tensor | None, own: Tensor, other: Tensor, targets: Tensor, negatives: Tensor
    ) -> dict[str, Tensor]:
        """The terms of the loss over the users of all processes: means, in the order of the log."""
        args = self.args
        if args.negatives == "in_batch":
            other, negatives = torch.cat([own, other]), torch.cat([targets, negatives])
        terms = {"retrieval_loss": retrieval_loss(users, own, other, keep=negatives != targets[:, None])}
        if args.match_weight:
            terms["match_loss"] = match_loss(users, teacher, args.match_form, args.match_temperature)
        if args.uniformity_weight:
            spread = teacher if args.uniformity_of == "teacher" else own
            terms["uniformity_loss"] = uniformity_loss(users) + uniformity_loss(spread)
        return terms

    def _user_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: inputs[name] for name in _PROMPT} | {"prefix_ids": self._user_prefix}

    def _item_inputs(self, items: Tensor) -> dict[str, Tensor]:
        """Prompts of items (on the CPU), where the model is."""
        inputs = {name: tensor.to(self.args.device) for name, tensor in self.prompt.item_inputs(items.numpy()).items()}
        return inputs | {"prefix_ids": self._item_prefix}

    def _hide(self, step: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`inputs` with the slots of some items emptied: an index past the table marks an unknown item."""
        if not self.args.cold_item_rate:
            return inputs
        slots = inputs[SLOT_ITEMS]
        hidden = self.negatives.hidden(step, slots, self.args.cold_item_rate) & (slots >= 0)
        return inputs | {SLOT_ITEMS: slots.masked_fill(hidden, len(self.catalog))}

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate falls by `lr_decay` at each evaluation."""
        if self.args.lr_decay == 1 or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        every = self.args.eval_steps if self.args.eval_strategy == "steps" else self._steps_per_epoch()
        if every < 1:  # a share of all steps
            every = every * num_training_steps
        every = math.ceil(every)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, partial(_decayed, self.args.lr_decay, every))
        return self.lr_scheduler

    def _steps_per_epoch(self) -> int:
        if not has_length(self.train_dataset):
            raise ValueError(
                "`train_dataset` has no length, so `evaluations_per_epoch` and `lr_decay` by epochs have no meaning. "
                "Set `eval_strategy='steps'` and `eval_steps`."
            )
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps = len(self.train_dataset) / batch
        return max(1, int(steps) if self.args.dataloader_drop_last else math.ceil(steps))

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; all items are encoded with the first batch, shared out among the processes."""
        self._index = None
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._index = None

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Exact ranks of the targets among all items, and minus log of their share in the softmax."""
        inputs = self._prepare_inputs(inputs)
        seen = inputs[SEEN] if self.args.seen == "mask" else None
        with torch.no_grad():
            if self._index is None:
                self._index = self._encode_items(model)
            with self.accelerator.autocast():
                users = model(user_inputs=self._user_inputs(inputs)).user_vectors
            better, tied, nll = self._index.rank(users.float(), inputs[TARGET], seen)
        if prediction_loss_only:
            return nll.mean(), None, None
        return nll.mean(), (better, tied, nll), inputs[TARGET]

    def encode_catalog(self) -> ItemIndex:
        """Vectors of all items by the model as it is now; every process calls this and gets the whole."""
        with self.whole_weights():
            return self._encode_items(self.model_wrapped if self.is_fsdp_enabled else self.model)

    def _encode_items(self, model: nn.Module) -> ItemIndex:
        if not self.is_fsdp_enabled:  # whose hooks gather the weights
            model = self.accelerator.unwrap_model(model)
        encoder = PromptVectors(model, self.prompt)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        lengths = self.prompt.item_lengths
        order = np.argsort(-lengths, kind="stable")
        padded = np.pad(order, (0, -len(order) % processes), mode="edge")  # as many for each process
        with self.accelerator.autocast():
            # Items rank, rank + processes, ...: those of the first process are the longest, and set all batches
            own = encoder.items(padded[rank::processes], lengths=lengths[padded[::processes]])
        gathered = self.accelerator.gather(own)
        vectors = torch.empty(len(order), gathered.shape[1], device=gathered.device)
        vectors[torch.from_numpy(np.concatenate([padded[start::processes] for start in range(processes)]))] = gathered
        return ItemIndex(vectors, self.catalog, self.prompt.sha256, encoder.teacher_items)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        better, tied, nll = prediction.predictions
        metrics = validation_metrics(nll, (better, tied), seen=self.args.seen)
        if self._user_metrics is not None:
            metrics |= self._user_metrics(prediction)
        return metrics

    # Files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save what was trained and what makes it a recommender; a checkpoint of Trainer's own goes without the index.
        """
        self._saved = None
        if not _internal_call:
            self._saved = trained_hash(self.accelerator.unwrap_model(self.model)), self.encode_catalog()
        super().save_model(output_dir, _internal_call)

    def save_recommender_files(self, output_dir: str) -> None:
        """Catalog, prompt, tokenizer and, at the end of training, the item index."""
        if self._saved is not None:
            self._saved[1].save(output_dir)
        save_recommender(
            output_dir,
            catalog=self.catalog,
            kind=RetrievalRecommender.kind,
            prompt=self.prompt,
            tokenizer=self.processing_class,
            scoring="exact",
        )


def _decayed(factor: float, every: int, step: int) -> float:
    """Share of the learning rate that is left after `step` optimizer steps, with an evaluation each `every`."""
    return factor ** (step // every)
