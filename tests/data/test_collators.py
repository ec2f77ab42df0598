"""PromptCollator against a walk in Python over each row."""

import numpy as np
import pytest
import torch

from hf_rec.data.collators import PromptCollator
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.trie import ItemTrie


PAD = 777


@pytest.fixture(scope="module")
def prompt(bpe_tokenizer, tiny_catalog):
    return Prompt(bpe_tokenizer, tiny_catalog)


@pytest.fixture(scope="module")
def trie(prompt):
    return ItemTrie.build(prompt.encode_items())


@pytest.fixture(scope="module")
def rows(prompt):
    rng = np.random.default_rng(0)
    examples = []
    for supervise in ("last", "all"):
        for length in (0, 1, 3, 6):
            history = rng.integers(0, 12, length).tolist()
            examples.append(prompt.encode_example(history, int(rng.integers(12)), supervise=supervise))
    return examples


def walk(row, trie, drop_forced):
    """Labels and the prefix (as a tuple) from which each is chosen, `None` where there is none."""
    labels, prefixes, prefix = [], [], ()
    for label in row["labels"]:
        if label == -100:
            labels.append(-100), prefixes.append(None)
            continue
        choices = trie.valid_tokens(prefix)
        assert label in choices
        forced = drop_forced and len(choices) == 1
        labels.append(-100 if forced else label), prefixes.append(None if forced else prefix)
        prefix = (*prefix, label)
        if trie.items(prefix):
            prefix = ()
    return labels, prefixes


def node_of(csr, prefix):
    node = torch.tensor([csr.root])
    for token in prefix or ():
        node = csr.step(node, torch.tensor([token]))
    return -1 if prefix is None else int(node)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("drop_forced", [True, False])
@pytest.mark.parametrize("multiple", [None, 16])
def test_batch_equals_a_walk_over_each_row(rows, trie, padding_side, drop_forced, multiple):
    csr = trie.csr()
    batch = PromptCollator(PAD, csr, drop_forced, padding_side=padding_side, pad_to_multiple_of=multiple)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    width = longest if multiple is None else -(-longest // multiple) * multiple
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} == dict.fromkeys(
        ["input_ids", "attention_mask", "labels", "trie_nodes"], ((len(rows), width), torch.long)
    )
    for number, row in enumerate(rows):
        labels, prefixes = walk(row, trie, drop_forced)
        nodes = [node_of(csr, prefix) for prefix in prefixes]
        padding = width - len(labels)
        columns = {
            "input_ids": (row["input_ids"], PAD),
            "attention_mask": ([1] * len(labels), 0),
            "labels": (labels, -100),
            "trie_nodes": (nodes, -1),
        }
        for name, (values, filler) in columns.items():
            fill = [filler] * padding
            expected = fill + values if padding_side == "left" else values + fill
            assert batch[name][number].tolist() == expected, name


def test_kept_labels_are_children_of_their_node_with_siblings(rows, trie):
    csr = trie.csr()
    batch = PromptCollator(PAD, csr, drop_forced=True)(rows)
    kept = batch["labels"] != -100
    assert torch.equal(kept, batch["trie_nodes"] != -1)
    assert (csr.step(batch["trie_nodes"][kept], batch["labels"][kept]) != -1).all()
    assert (csr.num_children[batch["trie_nodes"][kept]] > 1).all()


def test_row_whose_every_label_is_forced_keeps_none():
    collator = PromptCollator(0, ItemTrie.build([[5, 6, 9]]).csr(), drop_forced=True)
    batch = collator([{"input_ids": [1, 5, 6, 9], "labels": [-100, 5, 6, 9]}])
    assert (batch["labels"] == -100).all() and (batch["trie_nodes"] == -1).all()


def test_rows_without_labels_are_allowed(trie):
    batch = PromptCollator(0, trie.csr(), drop_forced=False)([{"input_ids": [1, 2], "labels": [-100, -100]}] * 2)
    assert (batch["trie_nodes"] == -1).all()


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-100, 5, 6, 9, 5, 7, 9], r"Row 1 of the batch: the labels \[5, 7\] are no item of the trie"),
        ([-100, 5, 6, -100, -100, -100, -100], r"Row 1 of the batch: the labels \[5, 6\] end before the item does"),
        ([-100, -100, -100, 5, 6, 9, 5], r"Row 1 of the batch: the labels \[5\] end before the item does"),
        ([-100, -100, -100, -100, -100, -100, -7], r"Row 1 of the batch: the labels \[-7\] are no item"),
        ([10**6, -100, -100, -100, -100, -100, -100], r"Row 1 of the batch: the labels \[1000000\] are no item"),
    ],
)
def test_labels_that_are_no_item_name_row_and_tokens(labels, message, padding_side):
    collator = PromptCollator(0, ItemTrie.build([[5, 6, 9], [7, 9]]).csr(), False, padding_side=padding_side)
    good = {"input_ids": [1, 7, 9], "labels": [-100, 7, 9]}
    with pytest.raises(ValueError, match=message):
        collator([good, {"input_ids": [1] * 7, "labels": labels}])


def test_bad_arguments_and_rows_are_named(trie):
    with pytest.raises(ValueError, match="`padding_side` must be"):
        PromptCollator(0, trie.csr(), True, padding_side="top")
    with pytest.raises(ValueError, match="`pad_token_id` is None"):
        PromptCollator(None, trie.csr(), True)
    with pytest.raises(ValueError, match="Row 0 of the batch has 2 `input_ids` but 1 `labels`"):
        PromptCollator(0, trie.csr(), True)([{"input_ids": [1, 2], "labels": [-100]}])
