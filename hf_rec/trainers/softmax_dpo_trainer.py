"""Rank one answer above K others, relative to a reference: S-DPO on TRL's DPOTrainer."""

import copy
import json
import math
import shutil
import textwrap
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from hf_rec.columns import ATTENTION_MASK, HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.negatives import label_counts
from hf_rec.data.preference_collator import (
    ANSWER_LENGTHS,
    CHOSEN_IDS,
    PROMPT_IDS,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_IDS,
    PreferenceCollator,
)
from hf_rec.data.prompts import Prompt
from hf_rec.data.sequences import seen_items
from hf_rec.generation.beam_search import trie_beam_search
from hf_rec.generation.recommend import LanguageModelRecommender, evaluation_mode
from hf_rec.hub import save_recommender
from hf_rec.losses.preference import softmax_dpo_loss
from hf_rec.losses.trie_softmax import chunked_cross_entropy
from hf_rec.metrics.ranking import list_bounds, metric_values
from hf_rec.models.compact_head import CompactHead
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.packed_answers import PackedAnswers, attention_mask
from hf_rec.trainers.preference_metrics import reward_metrics
from hf_rec.trainers.preference_rows import (
    encode_items,
    encode_text,
    most_rejected,
    row_kind,
    tokenised,
    with_negatives,
)
from hf_rec.trainers.prompt_sharing import PromptSharing, mask_dtype
from hf_rec.trainers.reference import (
    REF_ADAPTER,
    REFERENCE_FILE,
    check_reference,
    check_resumed_reference,
    describe_reference,
    freeze_reference_adapter,
    frozen_copy,
)
from hf_rec.trainers.softmax_dpo_config import SoftmaxDPOConfig
from hf_rec.trainers.starting_point import (
    Items,
    StartingPoint,
    context_length,
    has_adapter,
    load_trainable_adapter,
    resolve_items,
)
from hf_rec.trainers.trie_loss import valid_logits, vocabulary_logits
from hf_rec.trie.item_trie import ItemTrie


_RANKED = 10  # places that evaluation during training measures
_RANKING_METRICS = ("hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10", "mrr@10")


class SoftmaxDPOTrainer(RecommenderTrainer, DPOTrainer):
    """
    Trainer for Softmax-DPO: DPO with any number of rejected answers (S-DPO, https://huggingface.co/papers/2406.09215).
    It is not TRL's `SDPOTrainer`, which is another method.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy to start from. A folder
            (or Hub id) that a trainer of hf_rec wrote brings tokenizer, catalog, prompt, trie and temperature along.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): The reference; by default the policy as it is now: a
            frozen copy of its adapter, its base model where `peft_config` makes a new adapter, a second model
            otherwise. None is kept under `args.precompute_ref_log_probs`.
        args ([`SoftmaxDPOConfig`], *optional*): Arguments; the output folder is `<model name>-S-DPO` without them.
        train_dataset (`datasets.Dataset` or `IterableDataset`): Rows of one kind.
            - `{history, target}` (catalog rows), with rejected items in `rejected`, or drawn as `args` says;
            - `{prompt, chosen, rejected}` as text or messages, `rejected` one answer or a list of them;
            - `{prompt_ids, chosen_ids, rejected_ids}` as tokens, `rejected_ids` a list of lists.
            The number of rejected answers may differ from row to row; each is ranked against its own.
        eval_dataset (a data set, or a `dict` of them, *optional*): The same.
        processing_class (tokenizer, *optional*): Loaded from the model's folder where it is not given.
        catalog ([`Catalog`], *optional*), prompt ([`Prompt`], *optional*), trie ([`ItemTrie`], *optional*): Items, for
            item rows and for `scoring="valid"`. Prompt and trie are made from the catalog where they are not given.
        compute_metrics (*optional*): Sees `predictions [U, 1 + K]`, the rewards with the chosen one first (`-inf`
            where a row has fewer), and `label_ids [U]`, all 0.
        callbacks, optimizers, quantization_config, peft_config (*optional*): As in [`~trl.DPOTrainer`].
    """

    loss_is_scaled_for_ga = False  # a mean over rows, all of which weigh the same

    _tag_names = ["trl", "hf_rec", "softmax-dpo"]
    _name = "Softmax-DPO"
    _paper = {
        "title": "On Softmax Direct Preference Optimization for Recommendation",
        "id": "2406.09215",
        "citation": textwrap.dedent("""\
            @inproceedings{chen2024softmax,
                title     = {{On Softmax Direct Preference Optimization for Recommendation}},
                author    = {Yuxin Chen and Junfei Tan and An Zhang and Zhengyi Yang and Leheng Sheng and
                             Enzhi Zhang and Xiang Wang and Tat-Seng Chua},
                booktitle = {Advances in Neural Information Processing Systems 37},
                year      = 2024
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ):
        name, start = model if isinstance(model, str) else model.config.name_or_path, None
        args = args if args is not None else SoftmaxDPOConfig(f"{Path(name).name or type(model).__name__}-S-DPO")
        if isinstance(model, str):
            start = StartingPoint.find(model, (args.model_init_kwargs or {}).get("revision"))
            folder = model if start is None else start.folder
            if has_adapter(folder):
                model, quantization_config = load_trainable_adapter(folder, args, quantization_config), None
                args = copy.copy(args)
                args.model_init_kwargs = None  # used up; DPOTrainer warns of what it would ignore
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name) if start is None else start.tokenizer
        settings = {"form": args.prompt_form, "max_length": args.max_length or 512, "max_history": args.max_history}
        items = resolve_items(start, processing_class, catalog, prompt, trie, **settings)
        self._set_items(items, args, context_length(model))
        self.tau = args.tau or (1.0 if start is None else start.tau)
        if not isinstance(model, str):
            check_reference(model, ref_model)
            has_reference = is_peft_model(model) or peft_config is not None or args.precompute_ref_log_probs
            # Under ZeRO-3 each process holds a part of the weights, and DPOTrainer reads them again from their folder
            if ref_model is None and not has_reference and not is_deepspeed_zero3_enabled():
                ref_model = frozen_copy(model)
        self._shares_prompt = PromptSharing(args.shared_prefix, autocast=args.bf16 or args.fp16)
        tokens = (processing_class.pad_token_id, processing_class.eos_token_id, 0)
        self._collator = PreferenceCollator(
            pad_token_id=next(token for token in tokens if token is not None),
            trie=items.trie.csr() if args.scoring == "valid" else None,
            in_batch=args.negatives == "in_batch",
        )
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=self._collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        freeze_reference_adapter(self.model)
        self._reference = describe_reference(self.model, self.ref_model)

    def _set_items(self, items: Items, args: SoftmaxDPOConfig, context: int | None) -> None:
        if items.trie is None and args.scoring == "valid":
            raise ValueError(
                "`scoring='valid'` needs `catalog` (or `trie`), or a `model` folder that a trainer of hf_rec wrote. "
                "For text rows without items use `scoring='full_vocab'`."
            )
        if items.prompt is not None and context is not None and items.prompt.max_length > context:
            raise ValueError(
                f"Prompt and answer may take {items.prompt.max_length} tokens, but the model has {context} positions. "
                "Lower `max_length`, here or where `prompt` is made."
            )
        self.items = items
        self.csr = None if items.trie is None else items.trie.csr().to(args.device)
        # Most tokens of a prompt with one answer
        self._max_length = min((length for length in (args.max_length, context) if length is not None), default=None)
        self._counts = self._warm = None

    def recommender(self) -> LanguageModelRecommender:
        """The model as it is now, under the contract of `recommend` and `score`."""
        if self.items.prompt is None:
            raise ValueError("A recommender needs the items: give the trainer a `catalog`.")
        return LanguageModelRecommender(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.items.catalog,
            self.items.prompt,
            self.csr,
            tau=self.tau,
            scoring=self.args.scoring,
        )

    # Data

    def _prepare_dataset(self, dataset, processing_class, args: SoftmaxDPOConfig, dataset_name: str):
        kind, is_train = row_kind(dataset.column_names or list(next(iter(dataset)))), dataset_name == "train"
        if kind == "items" and self.items.prompt is None:
            raise ValueError(f"Rows with `{HISTORY}` and `{TARGET}` need `catalog`, whose rows they are.")
        with PartialState().main_process_first():
            if kind == "items":
                num_items = len(self.items.catalog)
                leaf_of_row = self.items.trie.csr().row_leaf(num_items)
                if is_train and isinstance(dataset, Dataset):
                    self._counts = label_counts(dataset, num_items)
                    self._warm = torch.zeros(len(self.csr), dtype=torch.bool)
                    self._warm[leaf_of_row[sorted(seen_items(dataset))]] = True
                dataset = with_negatives(dataset, args, leaf_of_row.numpy(), self._counts, is_train)
            encode = {
                "items": partial(encode_items, prompt=self.items.prompt),
                "text": partial(encode_text, processing_class=processing_class),
                "tokens": dict,
            }[kind]
            dataset = tokenised(
                dataset,
                kind,
                encode,
                may_lack_rejected=args.negatives == "in_batch",
                max_length=self._max_length,
                # Scoring and temperature are for what DPOTrainer caches under this fingerprint
                settings=(self.items.hashes, Hasher.hash(processing_class), self._max_length, args.scoring, self.tau),
                num_proc=args.dataset_num_proc,
            )
        if isinstance(dataset, Dataset):
            self._collator.num_rejected = max(self._collator.num_rejected, most_rejected(dataset))
        return dataset

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS, REF_CHOSEN, REF_REJECTED]

    # Log-probabilities

    def _answer_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """
        Log-probability of every answer.

        Returns:
            `torch.Tensor` of shape `(B, 1 + K)`, float32: The chosen answer first; 0 where a row has fewer than K.
        """
        batch = PackedAnswers.from_batch(inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        head = CompactHead.install(unwrapped)
        valid = self.args.scoring == "valid"
        tokens = batch.tokens(self.csr if valid else None)
        packed = self._shares_prompt(model, head, batch, self.accelerator)
        model_inputs, labelled = batch.select(tokens, packed)
        if packed:
            implementation = unwrapped.config._attn_implementation
            model_inputs[ATTENTION_MASK] = attention_mask(batch.answers, implementation, mask_dtype(unwrapped))
        if valid:
            losses = valid_logits(model, head, model_inputs, labelled, self.csr).losses(self.tau)
        else:
            logits = vocabulary_logits(model, head, model_inputs, labelled.flat)
            losses = chunked_cross_entropy(logits, labelled.targets, self.tau)
        shape = batch.answer_lengths.shape
        sums = torch.zeros(shape[0] * shape[1], device=losses.device)
        return sums.index_add(0, tokens.rows * shape[1] + tokens.slots, -losses / self.tau).view(shape)

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """
        Log-probabilities of the reference.

        Args:
            model (`torch.nn.Module`): The reference model, or the policy where the reference is an adapter or the base
                model inside it.
            inputs (`dict[str, torch.Tensor]`): A batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Of the chosen answers `(B,)`, of the rejected ones `(B, K)`.
        """
        adapter = nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            policy = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(policy, REF_ADAPTER if REF_ADAPTER in policy.peft_config else None)
        with torch.no_grad(), evaluation_mode(model), adapter, self.accelerator.autocast():
            log_probs = self._answer_log_probs(model, inputs)
        return log_probs[:, 0], log_probs[:, 1:]

    # Loss

    def _compute_loss(self, model, inputs, return_outputs):
        mode = "train" if self.model.training else "eval"
        if self.precompute_ref_logps:
            ref_chosen, ref_rejected = inputs[REF_CHOSEN], inputs[REF_REJECTED]
        else:  # first, so that its activations are gone before the policy's come
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        log_probs = self._answer_log_probs(model, inputs)
        absent = inputs[ANSWER_LENGTHS][:, 1:] == 0
        chosen = log_probs[:, 0] - ref_chosen
        rejected = (log_probs[:, 1:] - ref_rejected).masked_fill(absent, -torch.inf)
        losses = softmax_dpo_loss(chosen, rejected, self.beta)
        rewards = self.beta * torch.cat([chosen[:, None], rejected], dim=1).detach()
        self._note(mode, reward_metrics(rewards, log_probs.detach()))
        if mode == "eval":
            self._note_targets(losses.detach(), -log_probs[:, 0], PackedAnswers.from_batch(inputs))
        return (losses.mean(), rewards) if return_outputs else losses.mean()

    def _note_targets(self, losses: Tensor, nll: Tensor, batch: PackedAnswers) -> None:
        """Mean `-log P` of the chosen answers; this and the loss of those among them that occur in training."""
        noted = {"nll": nll}
        if self._warm is not None and batch.trie_nodes is not None:
            warm = self._warm.to(nll.device)[batch.chosen_leaves(self.csr)]
            noted |= {"nll_warm": nll.masked_fill(~warm, torch.nan), "loss_warm": losses.masked_fill(~warm, torch.nan)}
        self._note("eval", noted)

    def _note(self, mode: str, metrics: dict[str, Tensor]) -> None:
        """Keep values of rows, `(B,)` each, of all processes for the next log, which writes their means."""
        values = self.accelerator.gather_for_metrics(torch.stack(list(metrics.values()), dim=1))
        for name, column in zip(metrics, values.T.tolist(), strict=True):
            self._metrics[mode][name] += [value for value in column if not math.isnan(value)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the loss noted; in evaluation under the name of the data set, of which there may be several."""
        if not self.model.training:
            prefix = next((name.removesuffix("loss") for name in logs if name.endswith("_loss")), "eval_")
            noted = self._metrics["eval"]
            logs |= {f"{prefix}{name}": sum(values) / len(values) for name, values in noted.items() if values}
            noted.clear()
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss and rewards and, with `eval_num_beams`, where the constrained ranking puts the chosen item."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
            if self.items.prompt is not None and self.args.eval_num_beams != 0:
                self._note_ranks(model, PackedAnswers.from_batch(inputs))
        if prediction_loss_only:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def _note_ranks(self, model: nn.Module, batch: PackedAnswers) -> None:
        found = trie_beam_search(
            self.accelerator.unwrap_model(model),
            *batch.prompts(),
            self.csr,
            num_beams=max(self.args.eval_num_beams or 2 * _RANKED, _RANKED),
            tau=self.tau,
            scoring=self.args.scoring,
        )
        leaves, scores = found.leaves[:, :_RANKED].tolist(), found.scores[:, :_RANKED].cpu().numpy()
        places = list_bounds(leaves, scores, batch.chosen_leaves(self.csr).tolist())
        metrics = {name: torch.from_numpy(metric_values(*places, name)).float() for name in _RANKING_METRICS}
        self._note("eval", {name: values.to(found.scores.device) for name, values in metrics.items()})

    # Files

    def save_recommender_files(self, output_dir: str) -> None:
        """
        What the reference was and, where there are items, catalog, trie, prompt, tokenizer and temperature. The
        adapter of the reference, which was saved along, goes: it is the one that the run started from.
        """
        shutil.rmtree(Path(output_dir, REF_ADAPTER), ignore_errors=True)
        Path(output_dir, REFERENCE_FILE).write_text(json.dumps(self._reference) + "\n", encoding="utf-8")
        if self.items.prompt is not None:
            save_recommender(
                output_dir,
                catalog=self.items.catalog,
                prompt=self.items.prompt,
                trie=self.items.trie,
                tau=self.tau,
                scoring=self.args.scoring,
                kind="language_model",
                tokenizer=self.processing_class,
            )

    def create_model_card(self, *args, **kwargs) -> None:
        """The card of a recommender is one of its files."""
        if self.items.prompt is None:
            DPOTrainer.create_model_card(self, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)  # the one hook that every kind of resume passes through
        if checkpoint is not None:
            check_resumed_reference(checkpoint, self._reference)
