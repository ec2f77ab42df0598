"""What the loss of Softmax-DPO notes about its rows, and how the means of that come into the log."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_rec.evaluation.protocol import protocol_key
from hf_rec.trainers.language_trainer import LanguageTrainer
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.stored_lists import StoredLists


class NotedMetrics(LanguageTrainer):
    """The part of [`SoftmaxDPOTrainer`] that keeps values of rows until the next log."""

    _metrics: dict[str, Any]  # of TRL's trainer: mode -> name -> values
    _warm: Tensor | None
    # Sums of values and of their number, (2, metrics), on the device until they are logged
    _noted_sums: Tensor | None = None
    _noted_names: list[str]
    _list_metrics: dict[str, float]  # for the first log of training

    def note_lists(self, lists: StoredLists | None) -> None:
        """Keep what there is to say about the lists that negatives are drawn from."""
        self._list_metrics = {}
        if lists is not None:
            self._list_metrics = {"lists/target": lists.target_share, "lists/length": lists.mean_length}

    @property
    def _ranks_in_evaluation(self) -> bool:
        return self.prompt is not None and self.num_beams > 0 and not self.args.prediction_loss_only

    def _note_targets(self, losses: Tensor, nll: Tensor, batch: PackedAnswers) -> None:
        """The loss and `-log P` of the chosen answers; both of those that occur in training."""
        noted = {"loss": losses, "nll": nll}
        if self._warm is not None and self.csr is not None:
            warm = self._warm.to(nll.device)[batch.chosen_leaves(self.csr)]
            noted |= {"nll_warm": nll.masked_fill(~warm, torch.nan), "loss_warm": losses.masked_fill(~warm, torch.nan)}
        self._note("eval", noted)

    def _note(self, mode: str, metrics: dict[str, Tensor]) -> None:
        """Keep values of rows, `(B,)` each, for the next log, which writes their means over all processes."""
        values = torch.stack(list(metrics.values()))
        if mode == "eval":  # without the rows that fill up the last batch
            gathered = self.accelerator.gather_for_metrics(values.T.contiguous()).T
            for name, row in zip(metrics, gathered.tolist(), strict=True):
                self._metrics[mode][name] += [value for value in row if name == "loss" or not math.isnan(value)]
            return
        sums = torch.stack([values.nansum(1), (~values.isnan()).sum(1)])
        self._noted_sums = sums if self._noted_sums is None else self._noted_sums + sums
        self._noted_names = list(metrics)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add what the loss noted; in evaluation under the name of the data set, of which there may be several."""
        if self.model.training and self._noted_sums is not None:
            totals, counts = self.accelerator.reduce(self._noted_sums, reduction="sum").tolist()
            means = zip(self._noted_names, totals, counts, strict=True)
            self._metrics["train"] |= {name: [total / count] for name, total, count in means if count}
            self._noted_sums = None
            logs |= self._list_metrics
            self._list_metrics = {}
        if not self.model.training:
            prefix = next((name.removesuffix("loss") for name in logs if name.endswith("_loss")), "eval_")
            noted = self._metrics["eval"]
            logs |= {f"{prefix}{name}": sum(values) / len(values) for name, values in noted.items() if values}
            if self._ranks_in_evaluation:
                logs[f"{prefix}protocol"] = protocol_key(num_beams=self.num_beams, seen=self.args.seen)
            noted.clear()
        super().log(logs, start_time)
