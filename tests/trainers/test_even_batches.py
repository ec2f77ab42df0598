"""Several processes have equally many batches; what fills them up weighs nothing, in any model and loss."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler

from hf_rec import (
    BERT4RecConfig,
    BERT4RecModel,
    CaserConfig,
    CaserModel,
    ESASRecConfig,
    ESASRecModel,
    FMLPRecConfig,
    FMLPRecModel,
    GRU4RecConfig,
    GRU4RecModel,
    LRURecConfig,
    LRURecModel,
    MFConfig,
    MFModel,
    MSLConfig,
    MSLTrainer,
    SASRecConfig,
    SASRecModel,
    SequentialConfig,
    SequentialTrainer,
)
from hf_rec.columns import HISTORY, IGNORE_INDEX, INPUT_IDS, LABELS, SUPERVISE_FROM, TARGET
from hf_rec.data.item_batches import ItemRows, TrainingBatches
from hf_rec.data.preference_collator import WEIGHT, PreferenceCollator
from hf_rec.trainers.even_batches import BLANK, FilledBatches, WholeStream, WithBlanks, without_labels


ROWS = Dataset.from_dict({HISTORY: [[1, 2, 7], [3], [4, 5, 6, 8, 1]], TARGET: [9, 10, 2], SUPERVISE_FROM: [1, 1, 2]})


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 11, 13, 24])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_batches_of_all_processes_together_are_the_rows_in_their_order_and_then_blanks(rows, processes):
    filled = FilledBatches(BatchSampler(range(rows), 4, drop_last=False), processes)
    parts = [list(BatchSamplerShard(filled, processes, process)) for process in range(processes)]
    assert len({len(part) for part in parts}) == 1
    together = [index for step in zip(*parts, strict=True) for batch in step for index in batch]
    assert together == list(range(rows)) + [BLANK] * (-rows % (4 * processes))


def test_a_blank_is_a_row_of_the_data_set_without_its_labels():
    tokens = Dataset.from_dict({INPUT_IDS: [[5, 6], [7]], LABELS: [[IGNORE_INDEX, 6], [7]]})
    found = WithBlanks(tokens).__getitems__([1, BLANK])
    assert found == [tokens[1], {INPUT_IDS: [5, 6], LABELS: [IGNORE_INDEX] * 2}]
    assert WithBlanks(tokens)[BLANK] == found[1] and len(WithBlanks(tokens)) == 2


def test_a_blank_among_answers_has_no_weight():
    answers = Dataset.from_dict(
        {"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5]], "rejected_ids": [[[6]], [[7]]]}
    )
    collate = PreferenceCollator(pad_token_id=0)
    assert collate(WithBlanks(answers).__getitems__([1, BLANK]))[WEIGHT].tolist() == [1.0, 0.0]
    assert WEIGHT not in collate(list(answers))


@pytest.mark.parametrize("layout", ["sequences", "prefixes", "masked"])
def test_a_blank_among_arrays_of_items_leaves_the_other_rows_and_the_data_set_as_they_are(layout):
    batches = TrainingBatches(ItemRows.from_dataset(ROWS), 6, layout)
    found = WithBlanks(batches).__getitems__([1, BLANK, 0])
    expected = batches.__getitems__([1, 0, 0])
    assert (found[LABELS][1] == IGNORE_INDEX).all() and (expected[LABELS][1] != IGNORE_INDEX).any()
    np.testing.assert_array_equal(found[LABELS][[0, 2]], expected[LABELS][[0, 2]])
    np.testing.assert_array_equal(found[INPUT_IDS], expected[INPUT_IDS])


def test_a_stream_is_read_as_a_whole_however_many_parts_it_has_and_filled_up():
    stream = ROWS.to_iterable_dataset(num_shards=3)
    found = list(WholeStream(stream, multiple=4))
    assert found[:3] == list(ROWS)
    assert found[3] == ROWS[2] | {SUPERVISE_FROM: 6}
    assert list(WholeStream(stream, multiple=1)) == list(WholeStream(stream, multiple=3)) == list(ROWS)


def gradients(trainer, rows):
    """Loss of a micro-batch in a step of seven labels, and the gradient of each parameter that gets one."""
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(7))
    loss.backward()
    grads = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    return loss, grads


def check_blanks(trainer, rows):
    """A micro-batch of blanks has loss 0 and gradients 0, of all parameters that other processes wait for."""
    loss, grads = gradients(trainer, rows)
    blank_loss, blank_grads = gradients(trainer, [without_labels(row) for row in rows])
    assert loss > 0 and blank_loss == 0
    assert set(blank_grads) == set(grads)
    assert not any(grad.to_dense().any() for grad in blank_grads.values())


@pytest.fixture
def sequential(tmp_path):
    def build(model=None, **settings):
        torch.manual_seed(0)
        model = model or SASRecModel(SASRecConfig(num_items=12, hidden_size=8, max_length=6, dropout=0.0))
        args = SequentialConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
        return SequentialTrainer(model, args, ROWS)

    return build


@pytest.mark.parametrize(
    "model",
    [
        partial(BERT4RecModel, BERT4RecConfig(num_items=12, hidden_size=8, max_length=6)),
        partial(CaserModel, CaserConfig(num_items=12, hidden_size=8)),
        partial(ESASRecModel, ESASRecConfig(num_items=12, hidden_size=8, max_length=6)),
        partial(FMLPRecModel, FMLPRecConfig(num_items=12, hidden_size=8, max_length=6)),
        partial(GRU4RecModel, GRU4RecConfig(num_items=12, hidden_size=8)),
        partial(LRURecModel, LRURecConfig(num_items=12, hidden_size=8)),
        partial(MFModel, MFConfig(num_items=12, hidden_size=8)),
        partial(SASRecModel, SASRecConfig(num_items=12, hidden_size=8, max_length=6)),
    ],
    ids=lambda model: model.func.__name__,
)
def test_a_micro_batch_of_blanks_runs_through_every_sequence_model(sequential, model):
    trainer = sequential(model(), loss_type="ce", mask_ratio=1.0)
    if trainer.layout == "masked":
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: trainer._masked(collate(rows))
    check_blanks(trainer, list(ROWS))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "ce_tight"},
        {"loss_type": "sce"},
        {"loss_type": "ssm", "num_negative_sets": 2},
        {"loss_type": "bce", "share_negatives": False, "negative_pool": "unseen"},
        {"loss_type": "bpr", "share_negatives": False, "samples": "prefixes"},
    ],
    ids=str,
)
def test_a_micro_batch_of_blanks_runs_through_every_kind_of_loss(sequential, settings):
    negatives = {} if settings["loss_type"] == "ce_tight" else {"num_negatives": 3}
    check_blanks(sequential(**negatives, **settings), list(ROWS))


@pytest.mark.parametrize(("loss_type", "packing"), [("msl", False), ("msl", True), ("lml", False), ("lml", True)])
def test_a_micro_batch_of_blanks_runs_through_a_language_model(
    tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, loss_type, packing
):
    args = MSLConfig(str(tmp_path), loss_type=loss_type, packing=packing, use_cpu=True, report_to="none")
    trainer = MSLTrainer(tiny_lm("llama"), args, ROWS, processing_class=bpe_tokenizer, catalog=tiny_catalog)
    check_blanks(trainer, list(trainer.train_dataset))


def test_one_process_has_no_blanks(sequential):
    trainer = sequential(num_negatives=3, per_device_train_batch_size=2)
    loader = trainer.get_train_dataloader()
    assert loader.dataset is trainer.train_dataset
    assert [len(batch[LABELS]) for batch in loader] == [2, 1]


def test_evaluation_reads_the_last_rows_where_training_drops_them(sequential):
    trainer = sequential(num_negatives=3, per_device_eval_batch_size=2, dataloader_drop_last=True)
    assert len(trainer.predict(ROWS).label_ids) == 3
    assert trainer.args.dataloader_drop_last
