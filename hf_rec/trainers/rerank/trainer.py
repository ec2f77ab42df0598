"""Fine-tune a causal LM to judge candidates with one token: TALLRec, LlamaRec and the like."""

import os
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalPrediction

from hf_rec.columns import CANDIDATES, DISLIKED, HISTORY, IGNORE_INDEX, INPUT_IDS, LABELS, NO_CHILD, ROW
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.evaluation.validation import validation_metrics
from hf_rec.hub import save_recommender
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.metrics.preference import auc, mean_user_auc
from hf_rec.metrics.ranking import NOT_LISTED, rank_bounds
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.models.language.item_tokens import ItemTokens, train_projector
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.causal_lm import add_adapter, with_revision
from hf_rec.trainers.collaborative import freeze_language_model, sequence_knowledge
from hf_rec.trainers.rerank.candidates import RerankRows
from hf_rec.trainers.rerank.config import RerankConfig
from hf_rec.trainers.rerank.rows import (
    NO_CHOICE,
    NUM_CHOICES,
    USER,
    RerankCollator,
    collate_for_judging,
    unpadded,
)
from hf_rec.trainers.rerank.start import RerankStart
from hf_rec.trainers.selection_metric import RANKING_METRICS, check_selection_metric
from hf_rec.trainers.starting_point import model_name, padding_token


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch begins, before its first batch is made."""

    def __init__(self, collator: RerankCollator):
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = int(state.epoch or 0)


class RerankTrainer(RecommenderTrainer):
    """
    Trainer of language models that judge candidates by one token.

    The loss of a row is the cross-entropy of its answer among the answers that compete: yes and no, or the letters of
    its candidates. No other token of the vocabulary takes part.

    Args:
        model (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal LM. A folder
            or Hub id may hold an adapter, which is trained further, a re-ranker, which brings its prompt along, or a
            language model of hf_rec. Loaded in float32 unless `args.model_init_kwargs` says otherwise.
        args ([`RerankConfig`], *optional*): Arguments; the output folder is `<model name>-rerank` without them.
        train_dataset (`datasets.Dataset`, *optional*): In catalog rows. `form="letters"`: `{history, target}`, and
            `candidates` where no `retriever` is given. `form="yes_no"`: `{history, target, liked}`, and `disliked`.
        eval_dataset (a data set, or a `dict` of them, *optional*): Same rows; with `user_id` for the AUC by user.
        processing_class (tokenizer, *optional*): Loaded from the model's folder where it is not given.
        catalog ([`Catalog`], *optional*): The items; those of the model's folder where they are not given.
        prompt ([`RerankPrompt`], *optional*): That of the model's folder, or made from `args`.
        retriever (`str`, `os.PathLike` or [`~hf_rec.recommenders.contract.Recommender`], *optional*): Lists the
            candidates, for `form="letters"`: any recommender, or its folder. The lists for the rows are made once;
            those of a folder are kept in the output folder.
        peft_config ([`~peft.PeftConfig`], *optional*): Wraps the model in a fresh adapter.
        callbacks (`list`, *optional*), compute_metrics (*optional*), optimizers (*optional*): As in
            [`~transformers.Trainer`]. `compute_metrics` sees `predictions`, the scores `[U, C]` of the candidates, and
            `label_ids [U]`: the place of the target among them (-1 where it is missing), or 0 for yes and 1 for no.
            What it returns is merged with ours.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of a model given by name.
        sequence_model (`str`, `os.PathLike` or [`~hf_rec.models.sequence.base.SequencePreTrainedModel`], *optional*):
            For `args.collaborative`: a trained sequence model over the same catalog, or its folder. It is copied,
            stays frozen, and is saved too.

    Example:

    ```python
    from datasets import Dataset

    from hf_rec import Catalog, RerankConfig, RerankTrainer

    catalog = Catalog.from_records([{"item_id": "a1", "title": "Alien"}, {"item_id": "s1", "title": "Solaris"}])
    rows = Dataset.from_dict({"history": [catalog.rows(["a1"])], "target": [catalog.row("s1")], "liked": [1]})
    args = RerankConfig("runs/tallrec", form="yes_no")
    trainer = RerankTrainer("Qwen/Qwen2.5-0.5B", args, train_dataset=rows, catalog=catalog)
    trainer.train()
    print(trainer.reranker().score([["a1"]], ["s1"]))  # log of the odds of yes
    ```
    """

    _fills_with_blanks = True
    _length_columns = (HISTORY, DISLIKED, CANDIDATES)

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: RerankConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: RerankPrompt | None = None,
        retriever: str | os.PathLike | Recommender | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        compute_metrics: Any = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        sequence_model: str | os.PathLike | PreTrainedModel | None = None,
    ):
        args = args if args is not None else RerankConfig(f"{model_name(model)}-rerank")
        set_seed(args.seed)  # a new adapter is drawn below, and Trainer sets the seed after that
        ranked = RANKING_METRICS if args.form == "letters" else ("auc", "user_auc")
        if compute_metrics is None:
            check_selection_metric(args, ("loss", "nll"), ranked, eval_dataset)
        start = RerankStart.of(
            model,
            args,
            processing_class=processing_class,
            catalog=catalog,
            prompt=prompt,
            quantization_config=quantization_config,
            knowledge=sequence_knowledge(sequence_model, args.collaborative, args.user_token, catalog, train_dataset),
        )
        self.catalog, self.prompt = start.catalog, start.prompt
        model = start.model
        if peft_config is not None:
            config = with_revision(peft_config, args.loading_options.get("revision"))
            if ItemTokens.of(model) is not None:
                config = train_projector(config, model)
            model = add_adapter(model, config, args)
        if args.freeze_language_model:
            if ItemTokens.of(model) is None:
                raise ValueError(
                    "`freeze_language_model` leaves nothing to train without collaborative tokens. Set "
                    "`collaborative`, and give a `sequence_model`."
                )
            freeze_language_model(model)
        self._rerank_rows = RerankRows(args, self.catalog, self.prompt.num_candidates, retriever)
        self._user_metrics = compute_metrics
        shuffles = args.form == "letters" and args.candidate_order == "shuffled"
        collator = RerankCollator(self.prompt, padding_token(start.tokenizer), args.seed, shuffles)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=self._rerank_rows.for_training(train_dataset),
            eval_dataset=self._rerank_rows.for_evaluation(eval_dataset, "eval"),
            processing_class=start.tokenizer,
            callbacks=[*(callbacks or []), _EpochCallback(collator)],
            compute_metrics=self._metrics,
            optimizers=optimizers,
        )
        self.head = CompactHead.install(self.accelerator.unwrap_model(self.model))
        self._answers = torch.tensor(self.prompt.verbalizer_ids, device=self.args.device)

    @property
    def retriever(self) -> Recommender | None:
        """What lists the candidates."""
        return self._rerank_rows.retriever

    @property
    def retrieved_share(self) -> float | None:
        """Share of the training rows whose target is among the candidates of the retriever."""
        return self._rerank_rows.retrieved_share

    def reranker(self) -> Reranker:
        """The model as it is now, which scores candidates; sharded, within `whole_weights()`."""
        return Reranker(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.catalog,
            self.prompt,
            shared_prefix=self.args.shared_prefix,
            batch_size=self.args.per_device_eval_batch_size,
            **self._order_settings(),
        )

    def recommender(self) -> RerankedRecommender:
        """The retriever with its first candidates, one for each letter, in the order of the model as it is now."""
        if self.retriever is None:
            raise ValueError("`retriever` was not given: a re-ranker alone has no lists to put in order.")
        return RerankedRecommender(self.retriever, self.reranker(), self.prompt.num_candidates)

    def _order_settings(self) -> dict[str, Any]:
        args = self.args
        return {"permutations": args.permutations, "candidate_order": args.candidate_order, "seed": args.seed}

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [ROW, USER, HISTORY, DISLIKED, CANDIDATES, LABELS]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self.collating_with(collate_for_judging):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self.collating_with(collate_for_judging):
            return super().get_test_dataloader(self._rerank_rows.for_evaluation(test_dataset))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        As [`~transformers.Trainer.evaluate`]. With letters it adds `retrieved` (share of the rows whose target is
        among its candidates), the `nll` of these, and ranks over all rows; with yes and no `nll`, `auc` and
        `user_auc`.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._rerank_rows.for_evaluation(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Sum of the cross-entropies of the answers, divided by the rows of the whole batch."""
        labels, choices = inputs[LABELS], inputs[NUM_CHOICES]
        row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        positions = row * labels.shape[1] + column - 1  # position t predicts token t + 1
        model_inputs = {INPUT_IDS: inputs[INPUT_IDS]}  # padding is on the right, where causal attention does not look
        if self.head is None:
            logits = model(**model_inputs, use_cache=False).logits.flatten(0, 1)[positions][:, self._answers]
        else:
            with self.head.select(positions, self._answers):
                logits = model(**model_inputs, use_cache=False).logits[0]
        places = torch.arange(len(self._answers), device=logits.device)
        competing = torch.where(places < choices[row, None], places, NO_CHILD)
        targets = (labels[row, column][:, None] == self._answers).long().argmax(dim=1)
        losses = masked_softmax_loss(logits, targets, competing)
        loss = self.scale_loss(losses.sum(), len(losses), num_items_in_batch)
        return (loss, {"losses": losses}) if return_outputs else loss

    # Evaluation

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple:
        """Mean `-log P` of the answers, and the scores of the candidates, as serving gives them."""
        inputs = self._prepare_inputs(inputs)
        histories, disliked, candidates = (unpadded(inputs[name]) for name in (HISTORY, DISLIKED, CANDIDATES))
        with self.compute_loss_context_manager():
            found = self.reranker().judge(histories, candidates, disliked)
        scores = np.full((len(found), self.prompt.num_candidates), -np.inf, dtype=np.float32)
        for row, values in enumerate(found):
            scores[row, : len(values)] = values
        labels = inputs[LABELS]
        nll = torch.from_numpy(self._nll(scores, labels.cpu().numpy())).to(labels.device)
        loss = nll[~nll.isnan()].mean() if not nll.isnan().all() else nll.new_zeros(())
        if prediction_loss_only:
            return loss, None, None
        return loss, (torch.from_numpy(scores).to(labels.device), nll, inputs[USER]), labels

    def _nll(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """`-log P` of each answer, float32; NaN where the target is not among the candidates."""
        if self.args.form == "yes_no":
            return np.logaddexp(0, np.where(labels == 0, -scores[:, 0], scores[:, 0])).astype(np.float32)
        values = -np.take_along_axis(scores, labels.clip(min=0)[:, None], axis=1)[:, 0]
        return np.where(labels == NO_CHOICE, np.nan, values).astype(np.float32)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        scores, nll, users = prediction.predictions
        labels, known = prediction.label_ids, ~np.isnan(nll)
        metrics: dict[str, Any] = {"nll": float(nll[known].mean()) if known.any() else float("nan")}
        if self.args.form == "yes_no":
            liked = labels == 0
            metrics |= {"auc": auc(scores[:, 0], liked), "user_auc": mean_user_auc(scores[:, 0], liked, users)}
        else:
            better, tied = rank_bounds(scores, labels.clip(min=0))
            missing = labels == NO_CHOICE
            ranks = np.where(missing, NOT_LISTED, better), np.where(missing, 0, tied)
            metrics = validation_metrics(nll[known], ranks, seen=self.args.seen) | metrics
            metrics["retrieved"] = float(known.mean())
        if self._user_metrics is not None:
            metrics |= self._user_metrics(
                EvalPrediction(
                    predictions=scores, label_ids=labels, inputs=prediction.inputs, losses=prediction.losses
                )
            )
        return metrics

    # Files

    def save_recommender_files(self, output_dir: str) -> None:
        """Catalog, prompt, tokenizer, and how candidates are put in order."""
        save_recommender(
            output_dir,
            catalog=self.catalog,
            prompt=self.prompt,
            scoring=self.args.form,
            kind=Reranker.kind,
            tokenizer=self.processing_class,
            trained=self.accelerator.unwrap_model(self.model),
            extra=self._order_settings(),
        )
