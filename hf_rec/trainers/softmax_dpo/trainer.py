"""Rank the next item above K others, relative to a reference: S-DPO for recommendation, on TRL's DPOTrainer."""

import copy
import json
import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from hf_rec.data.catalog import Catalog
from hf_rec.data.preference_collator import (
    ANSWER_LENGTHS,
    CHOSEN_IDS,
    PROMPT_IDS,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_IDS,
    WEIGHT,
)
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.losses.preference import softmax_dpo_loss
from hf_rec.metrics.ranking import list_bounds, metric_values
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.models.language.path_tokens import save_path_tokens_alone
from hf_rec.search.model_inputs import base_model, is_encoder_decoder
from hf_rec.trainers.seen_leaves import SEEN_LEAVES, WithSeenLeaves
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric
from hf_rec.trainers.softmax_dpo.answer_scorer import AnswerScorer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.metrics import REWARD_METRICS, reward_metrics
from hf_rec.trainers.softmax_dpo.noted_metrics import NotedMetrics
from hf_rec.trainers.softmax_dpo.own_lists import own_lists_of
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.softmax_dpo.preference_rows import PreferenceRows
from hf_rec.trainers.softmax_dpo.prompt_sharing import PromptSharing
from hf_rec.trainers.softmax_dpo.reference import (
    REF_ADAPTER,
    REFERENCE_FILE,
    check_reference,
    check_resumed_reference,
    copy_token_rows,
    describe_reference,
    freeze_reference_adapter,
    second_model,
)
from hf_rec.trainers.starting_point import StartingPoint, model_name
from hf_rec.trie.item_trie import ItemTrie


class SoftmaxDPOTrainer(PreferenceRows, NotedMetrics, DPOTrainer):
    """
    Trainer for Softmax-DPO: DPO with any number of rejected answers (S-DPO, https://huggingface.co/papers/2406.09215).
    It is not TRL's `SDPOTrainer`, which is another method.

    Args:
        model (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy to start
            from; a folder or Hub id may hold an adapter, and is loaded in float32 unless `args.model_init_kwargs` says
            otherwise. A folder that a trainer of hf_rec wrote brings tokenizer, catalog, prompt, trie and temperature
            along.
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
        callbacks, optimizers, quantization_config, peft_config (*optional*): As in [`~trl.DPOTrainer`]. An adapter may
            be on `lm_head` too.

    Example:

    ```python
    from datasets import Dataset

    from hf_rec import SoftmaxDPOConfig, SoftmaxDPOTrainer

    rows = Dataset.from_dict({"history": [[0, 2], [1]], "target": [1, 2]})  # rows of the catalog in runs/msl
    trainer = SoftmaxDPOTrainer("runs/msl", args=SoftmaxDPOConfig("runs/sdpo", num_negatives=3), train_dataset=rows)
    trainer.train()
    ```
    """

    _length_columns = (PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS)
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
        model: str | os.PathLike | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
    ):
        args = args if args is not None else SoftmaxDPOConfig(f"{model_name(model)}-S-DPO")
        set_seed(args.seed)
        if compute_metrics is None:
            check_selection_metric(args, _METRICS, RANKING_METRICS, eval_dataset)
        start = StartingPoint.of(
            model,
            args,
            processing_class=processing_class,
            catalog=catalog,
            prompt=prompt,
            trie=trie,
            quantization_config=quantization_config,
        )
        _check_start(start, args)
        self.take_items(start, args)
        self._tau = start.tau
        check_reference(start.model, ref_model)
        if ref_model is None and not is_peft_model(start.model) and peft_config is None:
            ref_model = None if args.precompute_ref_log_probs else second_model(model, start, args)
        if peft_config is not None:
            peft_config = start.adapter_config(peft_config, args.loading_options.get("revision"))
        # Before the engines wrap and share out the weights, so that each of them finds the same
        self._reference = describe_reference(start.model, ref_model, has_new_adapter=peft_config is not None)
        self._own_lists = own_lists_of(start, args, train_dataset) if args.negatives == "own_lists" else None
        self.note_lists(self._own_lists)
        self.take_row_settings(start, args)
        self._score_answers = AnswerScorer(
            PromptSharing(args.shared_prefix, autocast=args.bf16 or args.fp16),
            start.tau,
            self.csr if args.scoring == "valid" else None,
        )
        collator: Any = self._collator
        if args.seen == "mask" and self.csr is not None and self.catalog is not None:
            collator = WithSeenLeaves(collator, self.csr, len(self.catalog))
        model_init_kwargs, args = args.model_init_kwargs, copy.copy(args)
        args.model_init_kwargs = None  # used up; DPOTrainer warns of what it would ignore
        self._before_rows = ExitStack()
        with self._before_rows:
            self._before_rows.enter_context(_without_head_adapter(start.model))
            self._before_rows.callback(copy_token_rows, start.model)
            item_tokens = ItemTokens.of(start.model)
            if item_tokens is not None and peft_config is not None:
                item_tokens.unwrap(start.model)  # the adapter may put a layer of its own in the place of the embedding
                self._before_rows.callback(item_tokens.wrap, start.model)
            super().__init__(
                model=start.model,
                ref_model=ref_model,
                args=args,
                data_collator=collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=start.tokenizer,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self.args.model_init_kwargs = model_init_kwargs
        freeze_reference_adapter(self.model)
        save_path_tokens_alone(self.model)
        self.check_search()

    @property
    def tau(self) -> float:
        return self._tau

    # Loss

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
            log_probs = self._score_answers(model, PackedAnswers.from_batch(inputs), self.accelerator)
        return log_probs[:, 0], log_probs[:, 1:]

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        if self.precompute_ref_logps:
            ref_chosen, ref_rejected = inputs[REF_CHOSEN], inputs[REF_REJECTED]
        else:  # first, so that its activations are gone before the policy's come
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        batch = PackedAnswers.from_batch(inputs)
        log_probs = self._score_answers(model, batch, self.accelerator)
        absent = inputs[ANSWER_LENGTHS][:, 1:] == 0
        chosen = log_probs[:, 0] - ref_chosen
        rejected = (log_probs[:, 1:] - ref_rejected).masked_fill(absent, -torch.inf)
        losses = softmax_dpo_loss(chosen, rejected, self.beta)
        rewards = self.beta * torch.cat([chosen[:, None], rejected], dim=1).detach()
        noted = reward_metrics(rewards, log_probs.detach())
        if mode == "eval":
            loss = losses.mean()
            self._note_targets(losses.detach(), -log_probs[:, 0], batch)
        else:
            weights = inputs.get(WEIGHT, torch.ones_like(losses))
            loss = self._weighted_mean(losses, weights)
            noted = {name: values.masked_fill(weights == 0, torch.nan) for name, values in noted.items()}
        self._note(mode, noted)
        return (loss, rewards) if return_outputs else loss

    def _weighted_mean(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Mean over the rows of all processes, times their number: gradients are averaged over processes."""
        if self.accelerator.num_processes == 1:
            return losses.mean()
        total = self.accelerator.reduce(weights.sum(), reduction="mean")
        return (losses * weights).sum() / total

    # Evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple:
        """
        Loss, and the rewards `(B, 1 + K)` with the chosen answer as their label, 0. With `eval_num_beams` it is noted
        where the constrained ranking puts the chosen item.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if self._ranks_in_evaluation:
                self._note_ranks(model, PackedAnswers.from_batch(inputs), inputs.get(SEEN_LEAVES))
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def _note_ranks(self, model: nn.Module, batch: PackedAnswers, seen_leaves: Tensor | None) -> None:
        assert self.csr is not None  # a ranking needs items
        leaves, scores = self.rank_prompts(model, *batch.prompts(), seen_leaves)
        targets = batch.chosen_leaves(self.csr).tolist()
        places = list_bounds(leaves.tolist(), scores.cpu().numpy(), targets)
        metrics = {name: torch.from_numpy(metric_values(*places, name)).float() for name in RANKING_METRICS}
        self._note("eval", {name: values.to(scores.device) for name, values in metrics.items()})

    # Files

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of a recommender is one of its files; without items it is TRL's."""
        if self.catalog is None:
            DPOTrainer.create_model_card(self, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """
        Note beside the weights what the reference was. Its adapter, which is saved along, goes: it is the one that the
        run started from.
        """
        super()._save(output_dir, state_dict)  # Trainer calls this on every process
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        shutil.rmtree(folder / REF_ADAPTER, ignore_errors=True)
        (folder / REFERENCE_FILE).write_text(json.dumps(self._reference) + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # the one hook that every kind of resume passes through
        if checkpoint is not None:
            check_resumed_reference(checkpoint, self._reference)


_METRICS = ("loss", "loss_warm", "nll", "nll_warm", *REWARD_METRICS)


def _check_start(start: StartingPoint, args: SoftmaxDPOConfig) -> None:
    if is_encoder_decoder(start.model):
        raise ValueError(
            f"`model` is a {type(base_model(start.model)).__name__}, which has an encoder; Softmax-DPO trains "
            "decoders alone. Use MSLTrainer, or a causal LM."
        )
    if start.trie is None and args.scoring == "valid":
        raise ValueError(
            "`scoring='valid'` needs `catalog` (or `trie`), or a `model` folder that a trainer of hf_rec wrote. "
            "For text rows without items use `scoring='full_vocab'`."
        )


@contextmanager
def _without_head_adapter(model: nn.Module) -> Iterator[None]:
    """
    Show DPOTrainer the output layer without its adapter: it refuses one, as its own loss reads the layer's weight. The
    loss here calls the layer.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    layer = base.get_output_embeddings()
    plain = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    base.get_output_embeddings = lambda: plain
    try:
        yield
    finally:
        del base.get_output_embeddings
