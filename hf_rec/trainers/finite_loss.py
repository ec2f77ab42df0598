"""Training that stops at the first loss or weight that is not finite, and keeps the last whole checkpoint."""

from typing import Any

import torch
from torch import Tensor

from hf_rec.trainers.checkpoints import WholeCheckpoints


_NONE = torch.iinfo(torch.long).max  # no step


class FiniteLoss(WholeCheckpoints):
    """
    Trainer that stops all processes where the loss of one is not finite.

    The device keeps the first such step. It is read before a log, an evaluation or a checkpoint and at the end, so
    that no micro-batch waits for the device.
    """

    _first_bad_step: Tensor | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in [`WholeCheckpoints`]."""
        self._first_bad_step = None
        result = super().train(*args, **kwargs)
        self._check_weights()  # the last step may have made them NaN without a checkpoint after it
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in [`~transformers.Trainer`]; a loss that is not finite is noted, without a wait for the device."""
        loss = super().training_step(*args, **kwargs)
        step = torch.where(loss.isfinite(), _NONE, self.state.global_step + 1)
        self._first_bad_step = step if self._first_bad_step is None else torch.minimum(self._first_bad_step, step)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._check_loss()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _check_loss(self) -> None:
        """Stop all processes where the loss of one was not finite in a step since the last check."""
        if self._first_bad_step is None:
            return
        step = int(self.accelerator.gather(self._first_bad_step.view(1)).min())
        if step != _NONE:
            self._stop(f"The loss is not finite at optimizer step {step}.")

    def _stop(self, what: str) -> None:
        raise FloatingPointError(
            f"{what} {self.last_checkpoint()} Lower `learning_rate`, or set `max_grad_norm`; if the first step is not "
            "finite, look at the weights that training starts from."
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Weights that are not finite are not saved, and push out no checkpoint."""
        self._check_weights()
        super()._save_checkpoint(model, trial)

    def _check_weights(self) -> None:
        """A step can make weights NaN without its own loss being so."""
        named = [(name, weight.detach()) for name, weight in self.model.named_parameters() if weight.requires_grad]
        parts = [getattr(weight, "_local_tensor", weight) for _, weight in named]  # of a weight that FSDP shards
        finite = torch.stack([part.isfinite().all() for part in parts]).view(1, -1)
        finite = self.accelerator.gather(finite).all(dim=0).tolist()
        if not all(finite):
            name = named[finite.index(False)][0]
            self._stop(f"The weight {name} is not finite after optimizer step {self.state.global_step}: not saved.")
