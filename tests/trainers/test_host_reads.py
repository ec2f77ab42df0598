"""How often a training step waits for values from its device, counted on the CPU."""

import copy

import pytest
import torch
from datasets import Dataset

from hf_rec import Catalog
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer
from tests.conftest import FILMS
from tests.host_reads import host_reads


ROWS = Dataset.from_dict(
    {HISTORY: [[1, 2], [3], [4, 5, 6], [7, 8]], TARGET: [9, 10, 2, 5], SUPERVISE_FROM: [1, 1, 1, 1]}
)


def counted(trainer):
    """Reads of one micro-batch, its backward pass with it, once what is tried out at the first one is over."""
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    count = torch.tensor(7)
    trainer.state.logging_steps = 10**6
    trainer.training_step(trainer.model, dict(batch), count)
    with host_reads() as places:
        trainer.training_step(trainer.model, dict(batch), count)
    return places


def settings(tmp_path, **kwargs):
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
    } | kwargs


class TestTrainingStepsReadLittle:
    """
    At most three reads a micro-batch. What is left: transformers looks whether `position_ids` restart, where no mask
    is given. Outside of the micro-batch Trainer looks twice whether the loss is finite (`logging_nan_inf_filter`) and
    once for the norm of the gradient; an adaptive temperature costs one read a step, and what is logged one each, at
    logging steps.
    """

    @pytest.mark.parametrize(
        "options",
        [{}, {"adaptive_tau": True}, {"loss_type": "lml"}, {"packing": True, "supervise": "all"}],
        ids=lambda options: "-".join(options) or "msl",
    )
    def test_of_msl(self, tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, options):
        args = MSLConfig(**settings(tmp_path, **options))
        trainer = MSLTrainer(tiny_lm("llama"), args, ROWS, processing_class=bpe_tokenizer, catalog=tiny_catalog)
        places = counted(trainer)
        assert places.total() <= 3, places

    def test_of_msl_with_tasks(self, tmp_path, tiny_lm, bpe_tokenizer):
        records = [{"item_id": n, "title": title, "rq": [n % 3, n]} for n, title in enumerate(FILMS)]
        tasks = {"next_item": 1, "title_to_code": 1, "code_to_title": 1}
        args = MSLConfig(**settings(tmp_path, tasks=tasks, item_path="codes:rq", adaptive_tau=True))
        tokenizer, catalog = copy.deepcopy(bpe_tokenizer), Catalog.from_records(records)
        trainer = MSLTrainer(tiny_lm("llama"), args, ROWS, processing_class=tokenizer, catalog=catalog)
        places = counted(trainer)
        assert places.total() <= 3, places

    @pytest.mark.parametrize("options", [{}, {"scoring": "full_vocab"}, {"shared_prefix": False}])
    def test_of_softmax_dpo(self, tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, options):
        args = SoftmaxDPOConfig(**settings(tmp_path, precompute_ref_log_probs=True, **options))
        trainer = SoftmaxDPOTrainer(
            tiny_lm("llama"), args=args, train_dataset=ROWS, processing_class=bpe_tokenizer, catalog=tiny_catalog
        )
        places = counted(trainer)
        assert places.total() <= 3, places


def test_the_counter_sees_reads_of_every_kind():
    values = torch.arange(4.0)
    with host_reads() as places:
        values.sum().item()
        values.tolist()
        values[values > 1]
        values.nonzero()
        float(values[0])
        bool((values > 0).any())
        values.cpu()
        torch.repeat_interleave(torch.tensor([1, 2]))
    assert places.total() == 8
    with host_reads() as places:
        values[torch.tensor([0, 1])] + values.sum()
        torch.repeat_interleave(torch.tensor([1, 2]), output_size=3)
    assert places.total() == 0
