"""Fine-tune a causal LM to name the next item, with the masked softmax loss or with plain SFT."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, SUPERVISE_FROM, TARGET, TRIE_NODES
from hf_rec.data.catalog import Catalog
from hf_rec.data.collators import PromptCollator
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.splits import seen_items
from hf_rec.hub import save_recommender
from hf_rec.losses.trie_softmax import chunked_cross_entropy, sft_parts
from hf_rec.metrics.ranking import list_bounds, ranking_metrics
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.models.loading import load_weights
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.beam_search import trie_beam_search
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.ranking_collator import RankingCollator
from hf_rec.trainers.msl.temperature import Temperature
from hf_rec.trainers.trie_logits import LabelledPositions, labelled_positions, valid_logits, vocabulary_logits
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


logger = logging.get_logger(__name__)

_DIAGNOSED_POSITIONS = 256  # rows of whole-vocabulary logits the diagnostic may ask for
_CHANGES = ("shortened", "unnamed", "merged")  # counts of `Prompt.report` that a user should see
_RANKED = 10  # places that evaluation during training measures


class _TemperatureCallback(TrainerCallback):
    """Moves the temperature between optimizer steps: before the step is logged, evaluated or saved."""

    def __init__(self, trainer: "MSLTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.temperature.update(self.trainer.accelerator)


class MSLTrainer(RecommenderTrainer):
    """
    Trainer of language models that recommend by writing an item's title (MSL, https://huggingface.co/papers/2504.04178).

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): A causal LM, a `PeftModel` over one, or a name or folder
            for `from_pretrained` (with `args.model_init_kwargs`).
        args ([`MSLConfig`], *optional*): Arguments; the output folder is `<model name>-MSL` without them.
        train_dataset (`datasets.Dataset` or `IterableDataset`): Rows `{history, target}` (catalog rows; also
            `supervise_from` for `supervise="all"`), tokenised here, or rows `{input_ids, labels}`, taken as they are.
        eval_dataset (a data set, or a `dict` of them, *optional*): Same rows. The last item of a row is its target.
        processing_class (tokenizer, *optional*): Loaded from the model's folder where it is not given.
        catalog ([`Catalog`]): The items.
        prompt ([`Prompt`], *optional*): Made from `args` where it is not given.
        trie ([`ItemTrie`], *optional*): Built from the prompt's item paths where it is not given.
        peft_config (`peft.PeftConfig`, *optional*): Wraps the model in a fresh adapter.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~transformers.Trainer`]. `compute_metrics` sees `predictions = (item_rows [U, 10], scores [U, 10])` and
            `label_ids [U]` (a leaf's first item where several share a title); what it returns is merged with ours.

    Raises:
        `ValueError`: Where an argument is missing or would be ignored; the message names it.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: MSLConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        peft_config=None,
        callbacks=None,
        compute_metrics=None,
        optimizers=(None, None),
        compute_loss_func=None,
    ):
        name = model if isinstance(model, str) else model.config.name_or_path
        args = args if args is not None else MSLConfig(f"{Path(name).name or type(model).__name__}-MSL")
        if catalog is None:
            raise ValueError("`catalog` is required: it holds the items that the model may name.")
        if isinstance(model, str):
            model = load_weights(AutoModelForCausalLM, model, **(args.model_init_kwargs or {}))
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if peft_config is not None:
            model = _with_adapter(model, peft_config, args)
        self.catalog = catalog
        self.prompt = prompt or Prompt(
            processing_class,
            catalog,
            form=args.prompt_form,
            max_length=args.max_length,
            max_history=args.max_history,
        )
        _check_positions(model, self.prompt)
        self.trie = trie if trie is not None else ItemTrie.build(self.prompt.encode_items())
        csr = self.trie.csr()
        self._warm = _warm_leaves(train_dataset, csr, len(catalog))
        pad_token_id = processing_class.pad_token_id
        pad_token_id = processing_class.eos_token_id if pad_token_id is None else pad_token_id
        self._user_metrics = compute_metrics
        super().__init__(
            model=model,
            args=args,
            data_collator=PromptCollator(
                pad_token_id or 0, csr, drop_forced=args.loss_type == "msl", padding_side="right"
            ),
            train_dataset=self._tokenised(train_dataset, args, args.supervise),
            eval_dataset=self._tokenised(eval_dataset, args, "last"),
            processing_class=processing_class,
            callbacks=callbacks,
            compute_metrics=self._metrics,
            optimizers=optimizers,
            compute_loss_func=compute_loss_func,
        )
        self._ranking_collator = RankingCollator(
            PromptCollator(pad_token_id or 0, csr, drop_forced=False, padding_side="right"), pad_token_id or 0
        )
        self.csr = csr.to(self.args.device)
        self.head = CompactHead.install(self.accelerator.unwrap_model(self.model))
        start = min(max(args.tau, args.tau_min), args.tau_max) if args.adaptive_tau else args.tau
        num_valid = int(csr.num_children[csr.root])
        self.temperature = Temperature(start, num_valid, args.eta, args.tau_min, args.tau_max, self.args.device)
        self._diagnosed_step = None
        if args.adaptive_tau:
            self.add_callback(_TemperatureCallback(self))

    @property
    def tau(self) -> float:
        """The temperature in force: that of the next training step, of evaluation, and of a folder saved now."""
        return self.temperature.tau

    def recommender(self) -> LanguageModelRecommender:
        """The model as it is now, under the contract of `recommend` and `score`; sharded, within `whole_weights()`."""
        return LanguageModelRecommender(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.catalog,
            self.prompt,
            self.csr,
            tau=self.tau,
            scoring=self.args.scoring,
        )

    # Data

    def _tokenised(self, dataset, args: MSLConfig, supervise: str):
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self._tokenised(part, args, supervise) for key, part in dataset.items()}
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                f"A data set must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}. "
                "Make one with `datasets.Dataset.from_list`."
            )
        columns = dataset.column_names or list(next(iter(dataset)))
        if {INPUT_IDS, LABELS} <= set(columns):
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
        how = {"prompt": self.prompt, "supervise": supervise}
        if isinstance(dataset, IterableDataset):
            return dataset.map(_encode_row, fn_kwargs=how, remove_columns=columns)
        with PartialState().main_process_first():
            return dataset.map(
                _encode_row,
                fn_kwargs=how,
                remove_columns=columns,
                num_proc=args.dataset_num_proc,
                new_fingerprint=Hasher.hash(
                    (dataset._fingerprint, self.prompt.sha256, self.catalog.sha256, supervise)
                ),
                desc="Tokenising",
            )

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [INPUT_IDS, LABELS]

    def get_eval_dataloader(self, eval_dataset=None):
        return self._with_ranking_collator(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset):
        return self._with_ranking_collator(
            super().get_test_dataloader, self._tokenised(test_dataset, self.args, "last")
        )

    def _with_ranking_collator(self, make, dataset):
        train_collator, self.data_collator = self.data_collator, self._ranking_collator
        try:
            return make(dataset)
        finally:
            self.data_collator = train_collator

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As [`~transformers.Trainer.evaluate`]; adds `nll`, `nll_warm` (targets that occur in training) and ranks."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._tokenised(eval_dataset, self.args, "last")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Sum of the losses of the labels, divided by the labels of the whole accumulated, distributed batch.

        Under `"msl"` a label counts where the trie branches; the loss at the others is exactly 0.
        """
        inputs = dict(inputs)
        labelled = labelled_positions(inputs.pop(LABELS), inputs.pop(TRIE_NODES))
        self._diagnose(model, inputs, labelled)
        if self.args.loss_type == "lml":
            logits = vocabulary_logits(model, self.head, inputs, labelled.flat)
            losses = chunked_cross_entropy(logits, labelled.targets, self.tau)
        else:
            logits = valid_logits(model, self.head, inputs, labelled, self.csr)
            losses = logits.losses(self.tau)
            if self.args.adaptive_tau and model.training:
                self.temperature.observe(*logits.first_token_logits())
        loss = self.scale_loss(losses.sum(), len(losses), num_items_in_batch)
        return (loss, {"losses": losses}) if return_outputs else loss

    @torch.no_grad()
    def _diagnose(self, model, inputs: dict[str, Tensor], labelled: LabelledPositions) -> None:
        """Take plain SFT's loss apart, once at each step that will be logged."""
        step = self.state.global_step + 1
        if not model.training or step == self._diagnosed_step or step % max(int(self.state.logging_steps or 1), 1):
            return
        self._diagnosed_step = step
        branching = (self.csr.num_children[labelled.nodes] > 1).nonzero().squeeze(1)
        chosen = branching[torch.linspace(0, len(branching) - 1, min(len(branching), _DIAGNOSED_POSITIONS)).long()]
        with evaluation_mode(model):  # dropout would move the random state of the training step
            logits = vocabulary_logits(model, self.head, inputs, labelled.flat[chosen])
        if len(chosen):
            parts = sft_parts(logits, labelled.targets[chosen], self.csr.children(labelled.nodes[chosen]))
            invalid, valid = parts.invalid_gradient.sum(), parts.valid_gradient.sum()
            self._logged["invalid_gradient_share"].append((invalid / (invalid + valid).clamp(min=1e-12)).item())
            self._logged["invalid_loss"].append(parts.invalid_loss.mean().item())
            self._logged["valid_loss"].append(parts.valid_loss.mean().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the temperature, and the share of its updates that met a limit."""
        if "loss" in logs:
            logs["tau"] = self.tau
            if (clamped := self.temperature.pop_clamped_share()) is not None:
                logs["tau_clamped"] = clamped
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Likelihood of the target and, unless `eval_num_beams` is 0, the ten best items."""
        inputs = self._prepare_inputs(inputs)
        prompt_ids, prompt_mask, leaf = (inputs.pop(key) for key in ("prompt_ids", "prompt_mask", "target_leaf"))
        labelled = labelled_positions(inputs.pop(LABELS), inputs.pop(TRIE_NODES))
        num_beams = 2 * _RANKED if self.args.eval_num_beams is None else self.args.eval_num_beams
        model = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = valid_logits(model, self.head, inputs, labelled, self.csr).losses(self.tau)
            nll = torch.zeros(len(leaf), device=losses.device).index_add(0, labelled.rows, losses / self.tau)
            leaves = torch.full((len(leaf), _RANKED), -1, device=leaf.device)
            scores = torch.full((len(leaf), _RANKED), -torch.inf, device=leaf.device)
            if num_beams:
                found = trie_beam_search(
                    model,
                    prompt_ids,
                    prompt_mask,
                    self.csr,
                    num_beams=max(num_beams, _RANKED),
                    tau=self.tau,
                    scoring=self.args.scoring,
                    num_results=_RANKED,
                )
                width = min(_RANKED, found.leaves.shape[1])
                leaves[:, :width], scores[:, :width] = found.leaves[:, :width], found.scores[:, :width]
        loss = losses.sum() / max(len(losses), 1)
        return loss, (leaves, scores, nll), leaf

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        leaves, scores, nll = prediction.predictions
        metrics = {"nll": float(nll.mean())}
        warm = np.zeros(len(nll), dtype=bool) if self._warm is None else self._warm[prediction.label_ids]
        if warm.any():
            metrics["nll_warm"] = float(nll[warm].mean())
        if self.args.eval_num_beams != 0:
            metrics |= ranking_metrics(*list_bounds(leaves.tolist(), scores, prediction.label_ids.tolist()))
        if self._user_metrics is not None:
            first = self.trie.csr().leaf_rows[self.trie.csr().leaf_ptr[:-1]].numpy()
            items = (first[leaves.clip(min=0)] * (leaves >= 0) - (leaves < 0), scores)
            metrics |= self._user_metrics(EvalPrediction(predictions=items, label_ids=first[prediction.label_ids]))
        return metrics

    # Files

    def save_recommender_files(self, output_dir: str) -> None:
        """Catalog, trie, prompt, tokenizer and the temperature of these very weights."""
        save_recommender(
            output_dir,
            catalog=self.catalog,
            prompt=self.prompt,
            trie=self.trie,
            tau=self.tau,
            scoring=self.args.scoring,
            kind="language_model",
            tokenizer=self.processing_class,
        )

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)  # the one hook that every kind of resume passes through
        if checkpoint is not None:
            self._load_temperature(checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_temperature(self.state.best_model_checkpoint)

    def _load_temperature(self, folder: str) -> None:
        if self.args.adaptive_tau:
            self.temperature.tau = json.loads(Path(folder, "recommender.json").read_text(encoding="utf-8"))["tau"]


def _check_positions(model: PreTrainedModel, prompt: Prompt) -> None:
    """Refuse prompts that the model has no positions for, and tell what the prompt did to titles."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and prompt.max_length > positions:
        raise ValueError(
            f"`max_length` is {prompt.max_length}, but the model has {positions} positions. Set `max_length` to "
            f"{positions} or less; the oldest items of long histories are dropped."
        )
    if changed := {name: count for name, count in prompt.report().items() if name in _CHANGES and count}:
        logger.warning(f"Titles that the prompt had to change: {changed} (see `Prompt.report`).")


def _encode_row(row: dict, prompt: Prompt, supervise: str) -> dict[str, list[int]]:
    return prompt.encode_example(row[HISTORY], row[TARGET], row.get(SUPERVISE_FROM), supervise)


def _warm_leaves(train_dataset, trie: TrieCSR, num_items: int) -> np.ndarray | None:
    """Which leaves hold an item that occurs in the training rows; `None` where the rows do not tell items."""
    if not isinstance(train_dataset, Dataset) or not {HISTORY, TARGET} <= set(train_dataset.column_names):
        return None
    warm = np.zeros(len(trie), dtype=bool)
    warm[trie.row_leaf(num_items).numpy()[sorted(seen_items(train_dataset))]] = True
    return warm


def _with_adapter(model: PreTrainedModel, peft_config, args: MSLConfig):
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(args.gradient_checkpointing))
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, peft_config)
