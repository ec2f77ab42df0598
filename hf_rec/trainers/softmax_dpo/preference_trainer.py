"""DPO with any number of rejected answers, on TRL's DPOTrainer; of rows, not of items."""

import copy
import json
import math
import shutil
import textwrap
from collections.abc import Callable
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

from hf_rec.columns import ATTENTION_MASK
from hf_rec.data.preference_collator import (
    ANSWER_LENGTHS,
    CHOSEN_IDS,
    PROMPT_IDS,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_IDS,
    PreferenceCollator,
)
from hf_rec.losses.preference import softmax_dpo_loss
from hf_rec.losses.trie_softmax import chunked_cross_entropy
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.metrics import reward_metrics
from hf_rec.trainers.softmax_dpo.packed_answers import AnswerTokens, PackedAnswers, attention_mask
from hf_rec.trainers.softmax_dpo.prompt_sharing import PromptSharing, mask_dtype
from hf_rec.trainers.softmax_dpo.reference import (
    REF_ADAPTER,
    REFERENCE_FILE,
    check_reference,
    check_resumed_reference,
    describe_reference,
    freeze_reference_adapter,
    frozen_copy,
)
from hf_rec.trainers.softmax_dpo.rows import encode_text, most_rejected, row_kind, tokenised
from hf_rec.trainers.starting_point import context_length, has_adapter, load_trainable_adapter
from hf_rec.trainers.trie_logits import LabelledPositions, vocabulary_logits
from hf_rec.trie.item_trie import ItemTrie


class PreferenceTrainer(DPOTrainer):
    """
    [`~trl.DPOTrainer`] for rows with a list of rejected answers, under the loss of S-DPO
    (https://huggingface.co/papers/2406.09215). It knows text and tokens, and scores them over the vocabulary;
    [`SoftmaxDPOTrainer`] adds items, and what `args` says of them.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy to start from; a folder
            may hold an adapter.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): The reference; by default the policy as it is now: a
            frozen copy of its adapter, its base model where `peft_config` makes a new adapter, a second model
            otherwise. None is kept under `args.precompute_ref_log_probs`.
        args ([`SoftmaxDPOConfig`]): Arguments.
        data_collator ([`PreferenceCollator`], *optional*): Makes the packed rows.
        train_dataset, eval_dataset, processing_class, compute_metrics, callbacks, optimizers, quantization_config,
            peft_config (*optional*): As of [`SoftmaxDPOTrainer`].
    """

    tau = 1.0  # temperature of the softmax over tokens
    answer_trie: ItemTrie | None = None  # where every answer must be an item of it

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
        *,
        args: SoftmaxDPOConfig,
        data_collator: PreferenceCollator | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ):
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(_name_of(model), trust_remote_code=False)
        if isinstance(model, str) and has_adapter(model):
            model, quantization_config = load_trainable_adapter(model, args, quantization_config), None
            args = copy.copy(args)
            args.model_init_kwargs = None  # used up; DPOTrainer warns of what it would ignore
        if not isinstance(model, str):
            check_reference(model, ref_model)
            has_reference = is_peft_model(model) or peft_config is not None or args.precompute_ref_log_probs
            # Under ZeRO-3 each process holds a part of the weights, and DPOTrainer reads them again from their folder
            if ref_model is None and not has_reference and not is_deepspeed_zero3_enabled():
                ref_model = frozen_copy(model)
        # Most tokens of a prompt with one answer
        limits = [length for length in (args.max_length, context_length(model)) if length is not None]
        self._max_length = min(limits, default=None)
        self._shares_prompt = PromptSharing(args.shared_prefix, autocast=args.bf16 or args.fp16)
        self._collator = data_collator or PreferenceCollator(
            pad_token_id=padding_token(processing_class), in_batch=args.negatives == "in_batch"
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

    # Data

    def _prepare_dataset(self, dataset, processing_class, args: SoftmaxDPOConfig, dataset_name: str):
        kind = row_kind(dataset.column_names or list(next(iter(dataset))))
        with PartialState().main_process_first():
            dataset = tokenised(
                dataset,
                kind,
                self._encoder(kind, processing_class),
                may_lack_rejected=args.negatives == "in_batch",
                max_length=self._max_length,
                settings=(Hasher.hash(processing_class), self._max_length, *self._cache_key(args)),
                trie=self.answer_trie,
                num_proc=args.dataset_num_proc,
            )
        if isinstance(dataset, Dataset):
            self._collator.num_rejected = max(self._collator.num_rejected, most_rejected(dataset))
        return dataset

    def _encoder(self, kind: str, processing_class) -> Callable[[dict], dict]:
        """What turns a row of a kind (see [`row_kind`]) into a tokenised one."""
        return partial(encode_text, processing_class=processing_class) if kind == "text" else dict

    def _cache_key(self, args: SoftmaxDPOConfig) -> tuple:
        """What tokens and reference log-probabilities, which DPOTrainer caches, depend on beside rows and model."""
        return (self.tau,)

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
        head = CompactHead.install(self.accelerator.unwrap_model(model))
        packed = self._shares_prompt(model, head, batch, self.accelerator)
        tokens, losses = self._token_losses(model, head, batch, packed)
        shape = batch.answer_lengths.shape
        sums = torch.zeros(shape[0] * shape[1], device=losses.device)
        return sums.index_add(0, tokens.rows * shape[1] + tokens.slots, -losses).view(shape)

    def _token_losses(self, model, head, batch: PackedAnswers, packed: bool) -> tuple[AnswerTokens, Tensor]:
        """The tokens of all answers and `-log P` of each, nats, over the vocabulary."""
        tokens = batch.tokens()
        model_inputs, labelled = self._model_inputs(model, batch, tokens, packed)
        logits = vocabulary_logits(model, head, model_inputs, labelled.flat)
        return tokens, chunked_cross_entropy(logits, labelled.targets, self.tau) / self.tau

    def _model_inputs(
        self, model, batch: PackedAnswers, tokens: AnswerTokens, packed: bool
    ) -> tuple[dict[str, Tensor], LabelledPositions]:
        """What the model is called with, and where in its output the tokens are predicted."""
        inputs, labelled = batch.select(tokens, packed)
        if packed:
            unwrapped = self.accelerator.unwrap_model(model)
            kind = unwrapped.config._attn_implementation
            inputs[ATTENTION_MASK] = attention_mask(batch.answers, kind, mask_dtype(unwrapped))
        return inputs, labelled

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
        """Mean `-log P` of the chosen answers."""
        self._note("eval", {"nll": nll})

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

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and the rewards `(B, 1 + K)` with the chosen answer as their label, 0."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    # Files

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """
        Note beside the weights what the reference was. Its adapter, which is saved along, goes: it is the one that the
        run started from.
        """
        super()._save(output_dir, state_dict)
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        shutil.rmtree(folder / REF_ADAPTER, ignore_errors=True)
        (folder / REFERENCE_FILE).write_text(json.dumps(self._reference) + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)  # the one hook that every kind of resume passes through
        if checkpoint is not None:
            check_resumed_reference(checkpoint, self._reference)


def padding_token(processing_class) -> int:
    """Id of a token to fill masked places with."""
    tokens = (processing_class.pad_token_id, processing_class.eos_token_id, 0)
    return next(token for token in tokens if token is not None)


def _name_of(model: str | PreTrainedModel) -> str:
    return model if isinstance(model, str) else model.config.name_or_path
