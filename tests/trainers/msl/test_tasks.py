"""Rows of several tasks in one run: shares, the loss of a mixed batch, and what is counted and logged."""

import json

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from hf_rec import Catalog, MSLConfig, MSLTrainer
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET, TASK
from hf_rec.data.prompts.item_tasks import CODE_TO_TITLE, NEXT_ITEM, TITLE_TO_CODE
from hf_rec.losses.trie_softmax import masked_softmax_loss


TITLES = ["Alien", "Aliens", "Alien 3", "Solaris", "The Fly", "Amélie", "Stalker", "Heat"]
CODES = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]
ROWS = Dataset.from_dict(
    {
        HISTORY: [[1, 2, 7], [3], [4, 5, 6], [7, 0], [], [2, 2]],
        TARGET: [6, 0, 2, 5, 3, 1],
        SUPERVISE_FROM: [1, 1, 2, 1, 0, 1],
    }
)
TASKS = {"next_item": 1, "title_to_code": 0.5, "code_to_title": 0.34}


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer):
    records = [{"item_id": n, "title": TITLES[n], "rq": codes} for n, codes in enumerate(CODES)]

    def build(kind="gpt2", model=None, train=ROWS, tasks=TASKS, item_path="codes:rq", **kwargs):
        defaults = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        args = MSLConfig(str(tmp_path), tasks=tasks, item_path=item_path, **defaults | kwargs)
        # Another tokenizer for each trainer, which adds tokens to it
        tokenizer = type(bpe_tokenizer)(
            tokenizer_object=bpe_tokenizer.backend_tokenizer, **bpe_tokenizer.special_tokens_map
        )
        model = tiny_lm(kind) if model is None else model
        return MSLTrainer(model, args, train, processing_class=tokenizer, catalog=Catalog.from_records(records))

    return build


def of_task(trainer, task):
    return [row for row in trainer.train_dataset if row[TASK] == task]


def by_hand(trainer, row, tau):
    """The loss of every label that counts, one position at a time."""
    csr, losses, node = trainer.csr, [], trainer.csr.root
    logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
    for place, label in enumerate(row["labels"]):
        if label == -100:
            node = csr.root
            continue
        before, target = logits[place - 1][None], torch.tensor([label])
        if trainer.args.loss_type == "lml" or row[TASK] == CODE_TO_TITLE:
            losses.append(F.cross_entropy(before.float(), target))
            continue
        children = csr.children(torch.tensor([node]))
        if int(csr.num_children[node]) > 1:
            losses.append(masked_softmax_loss(before, target, children, tau)[0])
        node = int(csr.step(torch.tensor([node]), target))
        node = csr.root if int(csr.num_children[node]) == 0 else node
    return losses


class TestRows:
    def test_shares_are_rows_for_every_row_of_the_next_item(self, make_trainer):
        trainer = make_trainer()
        assert [len(of_task(trainer, task)) for task in (NEXT_ITEM, TITLE_TO_CODE, CODE_TO_TITLE)] == [6, 3, 2]
        doubled = make_trainer(tasks={name: 2 * share for name, share in TASKS.items()})
        assert list(doubled.train_dataset) == list(trainer.train_dataset)
        plain = make_trainer(tasks=None)
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in of_task(trainer, NEXT_ITEM)]
        assert rows == list(plain.train_dataset)
        assert trainer.distinct_labels == plain.distinct_labels

    def test_tasks_are_spread_over_the_data_set(self, make_trainer):
        tasks = list(make_trainer(tasks={"next_item": 1, "title_to_code": 1}).train_dataset[TASK])
        assert tasks == [NEXT_ITEM, TITLE_TO_CODE] * 6

    def test_every_item_is_asked_about_before_any_is_asked_about_again(self, make_trainer):
        trainer = make_trainer(tasks={"next_item": 1, "code_to_title": 3})  # 18 rows of 8 items
        asked = [tuple(row["input_ids"]) for row in of_task(trainer, CODE_TO_TITLE)]
        assert sorted(asked.count(row) for row in set(asked)) == [2] * 6 + [3] * 2

    def test_a_seed_decides_which_items_are_asked_about(self, make_trainer):
        one, same, other = (of_task(make_trainer(seed=seed), TITLE_TO_CODE) for seed in (0, 0, 1))
        assert one == same != other

    def test_a_share_of_0_gives_no_rows(self, make_trainer):
        trainer = make_trainer(tasks={"next_item": 1, "title_to_code": 0})
        assert len(of_task(trainer, NEXT_ITEM)) == len(trainer.train_dataset) == 6

    def test_shares_can_come_as_json(self, make_trainer):
        assert len(make_trainer(tasks=json.dumps(TASKS)).train_dataset) == 11


class TestLoss:
    @pytest.mark.parametrize(
        ("kind", "loss_type", "supervise", "packing"),
        [("gpt2", "msl", "last", False), ("llama", "msl", "all", True), ("llama", "lml", "last", True)],
    )
    def test_a_mixed_batch_has_the_loss_of_its_labels_by_hand(self, make_trainer, kind, loss_type, supervise, packing):
        tau = 1.7 if loss_type == "msl" else 1.0
        trainer = make_trainer(kind, loss_type=loss_type, supervise=supervise, packing=packing, tau=tau)
        trainer.model.eval()
        rows = list(trainer.train_dataset)
        batch = trainer.data_collator(rows)
        with torch.no_grad():
            loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            expected = {row: by_hand(trainer, rows[row], tau) for row in range(len(rows))}
        flat = torch.stack([value for losses in expected.values() for value in losses])
        assert len(outputs["losses"]) == len(flat) == int((batch["labels"] != -100).sum())
        torch.testing.assert_close(outputs["losses"].sum(), flat.sum(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss, flat.mean(), rtol=1e-5, atol=1e-6)
        for row, losses in expected.items():
            found = outputs["losses"][batch["target_groups"] == row].sum()
            torch.testing.assert_close(found, sum(losses, torch.tensor(0.0)), rtol=1e-5, atol=1e-5)

    def test_every_token_of_a_title_is_a_label_and_of_a_code_where_the_trie_branches(self, make_trainer):
        trainer = make_trainer(tasks={"next_item": 1, "title_to_code": 0.5, "code_to_title": 1.34})  # every title
        titles, codes = of_task(trainer, CODE_TO_TITLE), of_task(trainer, TITLE_TO_CODE)
        batch = trainer.data_collator(titles + codes)
        lengths = [sum(label != -100 for label in row["labels"]) for row in titles]
        assert (batch["labels"] != -100).sum(dim=1).tolist() == lengths + [2, 2, 2]
        assert sum(lengths) > 2 * len(titles)

    def test_text_sends_gradient_to_tokens_that_no_item_has(self, make_trainer):
        trainer = make_trainer("llama")
        batch = trainer.data_collator(of_task(trainer, CODE_TO_TITLE))
        trainer.compute_loss(trainer.model, batch).backward()
        outside = sorted(set(range(trainer.csr.vocab_size)) - set(batch["input_ids"].flatten().tolist()))
        assert trainer.model.lm_head.weight.grad[outside].abs().max(dim=1).values.min() > 0

    def test_the_temperature_follows_the_next_item_alone(self, make_trainer):
        mixed, plain = make_trainer(adaptive_tau=True), make_trainer(adaptive_tau=True, tasks=None)
        for trainer in (mixed, plain):
            trainer.model.train()
            torch.manual_seed(0)
            trainer.model.apply(lambda module: setattr(module, "p", 0.0) if hasattr(module, "p") else None)
            trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
            trainer.temperature.update(trainer.accelerator)
        assert mixed.tau == pytest.approx(plain.tau, rel=1e-6)
        assert mixed.tau != 1.5


def test_a_run_logs_the_loss_of_each_task_and_their_labels_make_up_the_whole(make_trainer):
    trainer = make_trainer(max_steps=2, per_device_train_batch_size=11, logging_steps=1, learning_rate=1e-3)
    batch = trainer.data_collator(list(trainer.train_dataset))
    tasks = batch["task"][batch["target_groups"]]
    trainer.train()
    for entry in [entry for entry in trainer.state.log_history if "loss" in entry]:
        parts = [entry[f"loss/{name}"] for name in TASKS]
        total = sum(loss * int((tasks == task).sum()) for task, loss in enumerate(parts)) / len(tasks)
        assert entry["loss"] == pytest.approx(total, rel=1e-4)
        assert entry["invalid_loss"] >= 0  # the diagnosis leaves text out


class TestBadInput:
    def test_tasks_are_checked_with_the_other_arguments(self, tmp_path):
        with pytest.raises(ValueError, match="`tasks` names 'next', but there are"):
            MSLConfig(str(tmp_path), tasks={"next": 1})
        with pytest.raises(ValueError, match="`tasks` must name shares.* got '0.2'"):
            MSLConfig(str(tmp_path), tasks="0.2")

    def test_items_without_codes_are_refused(self, make_trainer):
        with pytest.raises(ValueError, match="`tasks` asks for title_to_code, but items have no codes"):
            make_trainer(item_path="title")

    def test_a_stream_is_refused(self, make_trainer):
        with pytest.raises(ValueError, match="must be a `datasets.Dataset` whose rows can be counted"):
            make_trainer(train=ROWS.to_iterable_dataset())

    def test_an_encoder_decoder_model_is_refused(self, make_trainer, bpe_tokenizer):
        config = T5Config(vocab_size=len(bpe_tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        config.decoder_start_token_id = 0
        with pytest.raises(ValueError, match="`tasks` must be None for T5ForConditionalGeneration"):
            make_trainer(model=T5ForConditionalGeneration(config))

    def test_rows_that_are_too_long_are_refused(self, make_trainer):
        with pytest.raises(ValueError, match="`max_length` is 12, too few for code_to_title, which has a row of"):
            make_trainer(tasks={"next_item": 1, "code_to_title": 5}, max_length=12)
