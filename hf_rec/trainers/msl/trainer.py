"""Fine-tune a causal LM to name the next item, with the masked softmax loss or with plain SFT."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from hf_rec.columns import (
    ATTENTION_MASK,
    DEAD_NODE,
    DECODER_INPUT_IDS,
    FIRST_TOKENS,
    HISTORY,
    INPUT_IDS,
    LABELS,
    SEGMENTS,
    TASK,
)
from hf_rec.data.catalog import Catalog
from hf_rec.data.collators import PromptCollator
from hf_rec.data.encoder_decoder_collator import EncoderDecoderCollator
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.ranking_collator import RankingCollator
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.evaluation.validation import validation_metrics
from hf_rec.losses.trie_softmax import sft_parts, token_cross_entropy
from hf_rec.metrics.ranking import list_bounds
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.search.model_inputs import base_model, decoder_start_token, is_encoder_decoder
from hf_rec.trainers.causal_lm import add_adapter
from hf_rec.trainers.collaborative import freeze_language_model, sequence_knowledge
from hf_rec.trainers.item_rows import warm_leaves
from hf_rec.trainers.language_trainer import RANKED, LanguageTrainer
from hf_rec.trainers.msl.collaborative import Hiding
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.rows import PromptRows
from hf_rec.trainers.msl.task_losses import TaskLosses
from hf_rec.trainers.msl.task_rows import with_tasks
from hf_rec.trainers.msl.temperature import Temperature
from hf_rec.trainers.packed_rows import PackedRows
from hf_rec.trainers.seen_leaves import SEEN_LEAVES, WithSeenLeaves
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric
from hf_rec.trainers.starting_point import StartingPoint, model_name, padding_token
from hf_rec.trainers.trie_logits import root_children, valid_logits, vocabulary_logits
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


logger = logging.get_logger(__name__)

_DIAGNOSED_POSITIONS = 256  # rows of whole-vocabulary logits the diagnostic may ask for


class _TemperatureCallback(TrainerCallback):
    """Moves the temperature between optimizer steps: before the step is logged, evaluated or saved."""

    def __init__(self, trainer: "MSLTrainer"):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.temperature.update(self.trainer.accelerator)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and (advice := self.trainer.temperature.advice()):
            logger.warning(advice)


class MSLTrainer(LanguageTrainer):
    """
    Trainer of language models that recommend by writing an item's title (MSL, https://huggingface.co/papers/2504.04178).

    Args:
        model (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal LM, or an
            encoder-decoder model such as T5: it reads the history in its encoder and writes the item in its decoder,
            so that `supervise` must be `"last"`. A folder or Hub id may hold an adapter, which is trained further, and
            is loaded in float32 unless `args.model_init_kwargs` says otherwise. A folder that a trainer of hf_rec
            wrote brings tokenizer, catalog, prompt, trie and temperature along.
        args ([`MSLConfig`], *optional*): Arguments; the output folder is `<model name>-MSL` without them.
        train_dataset (`datasets.Dataset` or `IterableDataset`): Rows `{history, target}` (catalog rows; also
            `supervise_from` for `supervise="all"`), tokenised here, or rows `{input_ids, labels}`, taken as they are.
        eval_dataset (a data set, or a `dict` of them, *optional*): Same rows. The last item of a row is its target.
        processing_class (tokenizer, *optional*): Loaded from the model's folder where it is not given.
        catalog ([`Catalog`], *optional*): The items; those of the model's folder where they are not given.
        prompt ([`Prompt`], *optional*), trie ([`ItemTrie`], *optional*): Those of the model's folder, or made from
            `args` and the catalog, where they are not given.
        peft_config ([`~peft.PeftConfig`], *optional*): Wraps the model in a fresh adapter.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~transformers.Trainer`]. `compute_metrics` sees `predictions = (item_rows [U, 10], scores [U, 10])` and
            `label_ids [U]` (a leaf's first item where several share a title); what it returns is merged with ours.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of a model given by name.
        sequence_model (`str`, `os.PathLike` or [`~hf_rec.models.sequence.base.SequencePreTrainedModel`], *optional*):
            For `args.collaborative`: a trained sequence model over the same catalog, or its folder. Items that
            `train_dataset` does not have are unknown to it. It is copied, stays frozen, and is saved too.

    Raises:
        `ValueError`: Where an argument is missing or would be ignored; the message names it.

    Example:

    ```python
    from datasets import Dataset

    from hf_rec import Catalog, MSLConfig, MSLTrainer

    catalog = Catalog.from_records([{"item_id": "a1", "title": "Alien"}, {"item_id": "s1", "title": "Solaris"}])
    rows = Dataset.from_dict({"history": [catalog.rows(["a1"])], "target": [catalog.row("s1")]})
    trainer = MSLTrainer("Qwen/Qwen2.5-0.5B", MSLConfig("runs/msl"), train_dataset=rows, catalog=catalog)
    trainer.train()
    print(trainer.recommender().recommend([["a1"]], k=1).item_ids)
    ```
    """

    _fills_with_blanks = True
    catalog: Catalog
    prompt: Prompt
    trie: ItemTrie
    csr: TrieCSR

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: MSLConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        compute_metrics: Any = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        sequence_model: str | os.PathLike | PreTrainedModel | None = None,
    ):
        args = args if args is not None else MSLConfig(f"{model_name(model)}-MSL")
        set_seed(args.seed)  # a new adapter is drawn below, and Trainer sets the seed after that
        if compute_metrics is None:
            check_selection_metric(args, ("loss", "nll", "nll_warm"), RANKING_METRICS, eval_dataset)
        start = StartingPoint.of(
            model,
            args,
            processing_class=processing_class,
            catalog=catalog,
            prompt=prompt,
            trie=trie,
            quantization_config=quantization_config,
            knowledge=sequence_knowledge(sequence_model, args.collaborative, args.user_token, catalog, train_dataset),
        )
        if start.catalog is None:
            raise ValueError("`catalog` is required: it holds the items that the model may name.")
        model = start.model
        start_token_id = _check_encoder_decoder(model, args) if is_encoder_decoder(model) else None
        if peft_config is not None:
            model = add_adapter(model, start.adapter_config(peft_config, args.loading_options.get("revision")), args)
        self.take_items(start, args)
        self._hiding = Hiding.of(model, args)
        if args.freeze_language_model:
            freeze_language_model(model)
        self._user_metrics = compute_metrics
        pad_token_id, csr = padding_token(start.tokenizer), self.trie.csr()
        self._root_tokens = root_children(self.csr)
        self._packed_rows = PackedRows(model, self.prompt.max_length) if args.packing else None
        self._prompt_rows = PromptRows(
            self.prompt, self.catalog, args.dataset_num_proc, keeps_history=args.seen == "mask"
        )
        train_rows = self._prompt_rows.for_training(train_dataset, args.supervise)
        if shares := args.task_shares:
            train_rows = with_tasks(train_rows, shares, self.prompt, start.tokenizer, self.catalog, args.seed)
        drop_forced = args.loss_type == "msl"
        collator: Any = PromptCollator(
            pad_token_id,
            csr,
            drop_forced,
            layout="padded" if self._packed_rows is None else self._packed_rows.layout,
        )
        if start_token_id is not None:
            collator = EncoderDecoderCollator(pad_token_id, csr, drop_forced, start_token_id)
        self._warm = warm_leaves(train_dataset, self.csr, len(self.catalog))
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_rows,
            eval_dataset=self._prompt_rows.for_evaluation(eval_dataset),
            processing_class=start.tokenizer,
            callbacks=callbacks,
            compute_metrics=self._metrics,
            optimizers=optimizers,
        )
        self.check_search()
        self._ranking_collator: Any = RankingCollator(pad_token_id, csr, start_token_id)
        if args.seen == "mask":
            self._ranking_collator = WithSeenLeaves(self._ranking_collator, csr, len(self.catalog))
        self.head = CompactHead.install(self.accelerator.unwrap_model(self.model))
        first = min(max(start.tau, args.tau_min), args.tau_max) if args.adaptive_tau else start.tau
        num_valid = int(csr.num_children[csr.root])
        self.temperature = Temperature(first, num_valid, args.eta, args.tau_min, args.tau_max, self.args.device)
        self._task_losses = TaskLosses(self.args.device) if args.tasks else None
        self._diagnosed_step: int | None = None
        if args.adaptive_tau:
            self.add_callback(_TemperatureCallback(self))

    @property
    def tau(self) -> float:
        return self.temperature.tau

    @property
    def distinct_labels(self) -> int | None:
        """
        Labelled events of the training rows, without those that the prompt drops; `None` where the rows do not tell.
        """
        return self._prompt_rows.distinct_labels

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [INPUT_IDS, LABELS, HISTORY, TASK]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self.collating_with(self._ranking_collator):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self.collating_with(self._ranking_collator):
            return super().get_test_dataloader(self._prompt_rows.for_evaluation(test_dataset))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As [`~transformers.Trainer.evaluate`]; adds `nll`, `nll_warm` (targets that occur in training) and ranks."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prompt_rows.for_evaluation(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """
        Sum of the losses of the labels, divided by the labels of the whole accumulated, distributed batch.

        Under `"msl"` a label of an item counts where the trie branches; the loss at the others is exactly 0.
        """
        targets = TrieTargets.from_batch(inputs)
        model_inputs = self._model_inputs(model, inputs)
        if self._hiding is not None and model.training:
            step, num_steps = self.state.global_step, self.state.max_steps
            model_inputs[INPUT_IDS] = self._hiding.hide(model_inputs[INPUT_IDS], step, num_steps)
            if self._hiding.curriculum:
                self._logged["collaborative"].append(float(self._hiding.shows_any(step, num_steps)))
        diagnosed = self._diagnosed_targets(model, targets)
        if self.args.loss_type == "lml":
            whole = vocabulary_logits(model, self.head, model_inputs, targets.positions)
            losses = token_cross_entropy(whole, targets.tokens, self.tau)
            whole = whole.detach().index_select(0, diagnosed)
        else:
            rows = targets.positions.index_select(0, diagnosed)
            logits = valid_logits(model, self.head, model_inputs, targets, self._root_tokens, rows)
            losses, whole = logits.losses(self.tau), logits.whole
            if self.args.adaptive_tau and model.training:
                self.temperature.observe(*logits.first_token_logits(inputs.get(FIRST_TOKENS)))
        if len(diagnosed):
            self._diagnose(whole, targets.tokens[diagnosed], targets.nodes[diagnosed])
        if self._task_losses is not None and TASK in inputs:
            self._task_losses.add(losses, inputs[TASK].index_select(0, targets.groups))
        loss = self.scale_loss(losses.sum(), len(losses), num_items_in_batch)
        return (loss, {"losses": losses}) if return_outputs else loss

    def _model_inputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model is called with. Padding is on the right, where causal attention never sees it."""
        if DECODER_INPUT_IDS in batch:
            return {name: batch[name] for name in (INPUT_IDS, ATTENTION_MASK, DECODER_INPUT_IDS)}
        if self._packed_rows is None or SEGMENTS not in batch:
            return {INPUT_IDS: batch[INPUT_IDS]}
        self._packed_rows.probe(model, self.head, batch, self.accelerator)
        return self._packed_rows.inputs(batch)

    def _diagnosed_targets(self, model: nn.Module, targets: TrieTargets) -> Tensor:
        """Which targets to take plain SFT's loss apart for: some, once at each step that will be logged."""
        step, count = self.state.global_step + 1, len(targets.positions)
        if not model.training or step == self._diagnosed_step or step % max(int(self.state.logging_steps or 1), 1):
            count = 0
        else:
            self._diagnosed_step = step
        places = torch.linspace(0, max(count - 1, 0), min(count, _DIAGNOSED_POSITIONS))
        return places.long().to(targets.positions.device)

    @torch.no_grad()
    def _diagnose(self, logits: Tensor, tokens: Tensor, nodes: Tensor) -> None:
        """Note how plain SFT's loss and gradient divide, where the trie branches."""
        is_item, nodes = nodes != DEAD_NODE, nodes.clamp(min=self.csr.root)
        parts = sft_parts(logits, tokens, self.csr.children(nodes))
        branches = is_item & (self.csr.num_children[nodes] > 1)
        invalid_loss, valid_loss, invalid_gradient, valid_gradient = ((part * branches).sum() for part in parts)
        count = branches.sum().clamp(min=1)
        total = (invalid_gradient + valid_gradient).clamp(min=1e-12)
        self._logged["invalid_gradient_share"].append(invalid_gradient / total)
        self._logged["invalid_loss"].append(invalid_loss / count)
        self._logged["valid_loss"].append(valid_loss / count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the temperature, the share of its updates that met a limit, and the loss of each task."""
        if "loss" in logs:
            logs["tau"] = self.tau
            if (clamped := self.temperature.pop_clamped_share()) is not None:
                logs["tau_clamped"] = clamped
            if self._task_losses is not None:
                logs |= self._task_losses.pop(self.accelerator)
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple:
        """Mean `-log P` of the targets in nats, that of each, and the ten best items unless `eval_num_beams` is 0."""
        inputs = self._prepare_inputs(inputs)
        prompt_ids, prompt_mask, leaf = (inputs[key] for key in ("prompt_ids", "prompt_mask", "target_leaf"))
        targets = TrieTargets.from_batch(inputs)
        model = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            model_inputs = self._model_inputs(model, inputs)
            losses = valid_logits(model, self.head, model_inputs, targets, self._root_tokens).losses(self.tau)
            nll = torch.zeros(len(leaf), device=losses.device).index_add(0, targets.groups, losses / self.tau)
            if prediction_loss_only:
                return nll.mean(), None, None
            leaves = torch.full((len(leaf), RANKED), -1, device=leaf.device)
            scores = torch.full((len(leaf), RANKED), -torch.inf, device=leaf.device)
            if self.num_beams:
                leaves, scores = self.rank_prompts(model, prompt_ids, prompt_mask, inputs.get(SEEN_LEAVES))
        return nll.mean(), (leaves, scores, nll), leaf

    def _metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        leaves, scores, nll = prediction.predictions
        targets = prediction.label_ids
        ranks = list_bounds(leaves.tolist(), scores, targets.tolist()) if self.num_beams else None
        warm = None if self._warm is None else self._warm.numpy()[targets]
        metrics = validation_metrics(nll, ranks, num_beams=self.num_beams, seen=self.args.seen, warm=warm)
        if self._user_metrics is not None:
            first = self.trie.csr().leaf_rows[self.trie.csr().leaf_ptr[:-1]].numpy()
            items = np.where(leaves >= 0, first[leaves.clip(min=0)], -1)
            metrics |= self._user_metrics(
                EvalPrediction(
                    predictions=(items, scores),
                    label_ids=first[targets],
                    inputs=prediction.inputs,
                    losses=prediction.losses,
                )
            )
        return metrics

    # Files

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # the one hook that every kind of resume passes through
        if checkpoint is not None:
            self._load_temperature(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_temperature(self.state.best_model_checkpoint)

    def _load_temperature(self, folder: str) -> None:
        if self.args.adaptive_tau:
            self.temperature.tau = json.loads(Path(folder, "recommender.json").read_text(encoding="utf-8"))["tau"]


def _check_encoder_decoder(model: nn.Module, args: MSLConfig) -> int:
    """Start token of the decoder, unless `args` ask for what such a model cannot do."""
    if args.supervise != "last":
        raise ValueError(
            f"`supervise` must be 'last' for an encoder-decoder model, got {args.supervise!r}: the history stands in "
            "the encoder, which sees it as a whole, so that its items cannot be labels. Prepare one row for each "
            "event that is to be one, or use a decoder."
        )
    if args.packing:
        raise ValueError(
            f"`packing` must be False for {type(base_model(model)).__name__}: its encoder and its decoder have rows "
            "of their own. Set `train_sampling_strategy` to 'group_by_length' to save padding."
        )
    if args.tasks:
        raise ValueError(
            f"`tasks` must be None for {type(base_model(model)).__name__}: rows of other tasks are made for a decoder."
        )
    return decoder_start_token(base_model(model).config)
