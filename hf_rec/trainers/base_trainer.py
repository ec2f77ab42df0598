"""The thin base of the trainers: what is refused and logged, and the recommender files beside every weight file."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_rec.files import replacing
from hf_rec.hub.files import RECOMMENDER_FILE, check_folder, read_index, remove_other_weights, weight_files
from hf_rec.hub.push import commit_operations
from hf_rec.trainers.base_config import RecommenderConfig
from hf_rec.trainers.changed_settings import ROWS_SHA256, rows_sha256
from hf_rec.trainers.even_batches import EvenBatches
from hf_rec.trainers.finite_loss import FiniteLoss
from hf_rec.trainers.length_grouping import GroupsByLength
from hf_rec.trainers.training_run import StopEarly


class RecommenderTrainer(FiniteLoss, EvenBatches, GroupsByLength):
    """
    [`~transformers.Trainer`] whose loss is a sum over labels divided by the labels of the whole accumulated,
    distributed batch, so that 8 x 1, 1 x 8 and two processes take the same steps. Where a method says so, also those
    of a last batch that is not full.
    """

    data_collator: Any
    push_in_progress: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the whole accumulated batch

    def __init__(self, model: Any = None, args: RecommenderConfig | None = None, **kwargs: Any):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"`compute_loss_func` must be None: {type(self).__name__} has a loss of its own and would ignore it."
            )
        if args is not None and args.early_stopping_patience is not None:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), StopEarly(args.early_stopping_patience)]
            args.restore_callback_states_from_checkpoint = True
        super().__init__(model=model, args=args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would run torch's DataParallel, which cannot select logits. "
                "Start with `accelerate launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        _check_output_is_not_base(self.accelerator.unwrap_model(self.model), self.args.output_dir)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels, for wrapped models too
        self._logged: dict[str, list[float]] = defaultdict(list)

    def scale_loss(self, total: Tensor, num_labels: int, num_items_in_batch: Tensor | None) -> Tensor:
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
    def whole_weights(self) -> Iterator[None]:
        """
        All weights on every process, where ZeRO-3 shards them. ZeRO-3 gathers layer by layer; processes that search
        for different numbers of steps would deadlock.
        """
        if not self.is_deepspeed_enabled:
            yield
            return
        from trl.models import unwrap_model_for_generation

        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            yield

    @contextmanager
    def collating_with(self, collator: Any) -> Iterator[None]:
        """Data loaders made inside the block use this collator, e.g. that of evaluation."""
        before, self.data_collator = self.data_collator, collator
        try:
            yield
        finally:
            self.data_collator = before

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """
        As in [`~transformers.Trainer`], with whole weights on every process under ZeRO-3. Where the metrics have
        `nll`, it is the loss: a mean over rows, and not over batches that may hold repeated ones.
        """
        with self.whole_weights():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if (nll := output.metrics.get(f"{metric_key_prefix}_nll")) is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = nll
        return output

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
            # Of an earlier model in this folder, which would be loaded in place of the new one or beside it
            remove_other_weights(output_dir, self._weights_format())
            self.save_recommender_files(output_dir)
            Path(output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
            with replacing(Path(output_dir, "training_args.json")) as partial:
                settings = json.loads(self.args.to_json_string())
                settings[ROWS_SHA256] = rows_sha256(self.train_dataset)
                partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        if push:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if (best / RECOMMENDER_FILE).is_file():
            check_folder(best, read_index(best))  # weights that were damaged since are not taken for the best
        super()._load_best_model()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Save the model in `args.output_dir`, and upload what [`~hf_rec.hub.push_recommender`] would. Arguments are
        those of [`~transformers.Trainer.push_to_hub`].
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        self._finish_current_push()
        return self._upload(commit_message or "End of training", not blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writing is not None:
            return  # it is pushed when it is whole
        # What is pushed during training is `output_dir` with the weights of the checkpoint copied into it
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, output_dir = Path(checkpoint_folder), Path(self.args.output_dir)
        for name in weight_files(checkpoint, self._weights_format()):
            with replacing(output_dir / name) as copy:
                shutil.copyfile(checkpoint / name, copy)
        remove_other_weights(output_dir, self._weights_format())
        self.save_recommender_files(str(output_dir))
        upload = self._upload(f"Training in progress, step {self.state.global_step}", in_background=True)
        self.push_in_progress = PushInProgress([upload])

    def _upload(
        self, message: str, in_background: bool, token: str | None = None, revision: str | None = None
    ) -> CommitInfo | Future[CommitInfo]:
        api, revision = HfApi(token=token or self.args.hub_token), revision or self.args.hub_revision
        return api.create_commit(
            self.hub_model_id,
            commit_operations(api, self.args.output_dir, self.hub_model_id, revision),
            commit_message=message,
            revision=revision,
            run_as_future=in_background,
        )

    def _weights_format(self) -> str:
        return "adapter" if is_peft_model(self.accelerator.unwrap_model(self.model)) else "full"

    def save_recommender_files(self, output_dir: str) -> None:
        """Write what the method needs beside its weights; called on the process that saves."""
        raise NotImplementedError(f"{type(self).__name__} must define save_recommender_files.")

    def create_model_card(self, model_name: str | None = None) -> None:
        """The card is one of the recommender files, written with every save: edit `README.md` after it."""


def _check_output_is_not_base(model: nn.Module, output_dir: str) -> None:
    if not is_peft_model(model):
        return
    name = model.peft_config[model.active_adapter].base_model_name_or_path
    if name and Path(output_dir).resolve() == Path(name).resolve():
        raise ValueError(
            f"`output_dir` {output_dir} is the folder of the base model: the adapter would take the place of what it "
            "needs. Choose another one."
        )
