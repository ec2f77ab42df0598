"""The thin base of the trainers: what is refused and logged, and the recommender files beside every weight file."""

from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from hf_rec.trainers.base_config import RecommenderConfig


class RecommenderTrainer(Trainer):
    """
    [`~transformers.Trainer`] whose loss is a sum over labels divided by the labels of the whole accumulated,
    distributed batch, so that 8 x 1, 1 x 8 and two processes take the same steps.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole accumulated batch

    def __init__(self, model=None, args: RecommenderConfig | None = None, **kwargs):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"`compute_loss_func` must be None: {type(self).__name__} has a loss of its own and would ignore it."
            )
        super().__init__(model=model, args=args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would run torch's DataParallel, which cannot select logits. "
                "Start with `accelerate launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels, for wrapped models too
        self._logged = defaultdict(list)

    def scale_loss(self, total, num_labels, num_items_in_batch):
        """
        Divide a sum over labels by the labels of the whole batch.

        Args:
            total (`torch.Tensor`): Sum of the losses of this micro-batch, scalar.
            num_labels (`int`): Labels of this micro-batch; the divisor where Trainer did not count.
            num_items_in_batch (`torch.Tensor` or `None`): Labels of all micro-batches and processes of the step.
        """
        if num_items_in_batch is None:
            return total / max(num_labels, 1)
        # DDP averages gradients over processes
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / num_items_in_batch.clamp(min=1)

    @contextmanager
    def whole_weights(self):
        """
        Gather the weights that ZeRO-3 shards on every process. A search takes as many passes as its users need, other
        ones on each process, so that layers gathered one by one would wait for each other forever.
        """
        if not self.is_deepspeed_enabled:
            yield
            return
        from trl.models import unwrap_model_for_generation

        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            yield

    def evaluation_loop(self, *args, **kwargs):
        """As in [`~transformers.Trainer`], with whole weights on every process under ZeRO-3."""
        with self.whole_weights():
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what the loss noted since the last training log, and hand on to Trainer."""
        if "loss" in logs:
            logs |= {name: float(sum(values) / len(values)) for name, values in self._logged.items()}
            self._logged.clear()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, and beside them what makes them a recommender."""
        output_dir = self.args.output_dir if output_dir is None else output_dir
        push = self.args.push_to_hub and not _internal_call
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            self.save_recommender_files(output_dir)
            Path(output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
            Path(output_dir, "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")
        if push:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # What Trainer pushes during training is `output_dir` with the weights of the checkpoint copied into it
        if self.is_world_process_zero():
            self.save_recommender_files(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def save_recommender_files(self, output_dir: str) -> None:
        """Write what the method needs beside its weights; called on the process that saves."""
        raise TypeError(f"{type(self).__name__} must define save_recommender_files.")

    def create_model_card(self, *args, **kwargs) -> None:
        """The card is one of the recommender files, written with every save."""
