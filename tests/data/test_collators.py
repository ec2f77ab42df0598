"""PromptCollator against a walk in Python over each row."""

import numpy as np
import pytest
import torch

from hf_rec.data.collators import PromptCollator, place
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.trie_targets import TrieTargets
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


def segments_of(batch, layout):
    """Where each row lies in the batch: row and first column, in the order of the rows."""
    if layout == "padded":
        return [(row, 0) for row in range(len(batch["input_ids"]))]
    count = int(batch["segments"].max())
    return [tuple((batch["segments"] == number + 1).nonzero()[0].tolist()) for number in range(count)]


@pytest.mark.parametrize("layout", ["padded", "packed", "one_row"])
@pytest.mark.parametrize("drop_forced", [True, False])
def test_batch_equals_a_walk_over_each_row(rows, trie, drop_forced, layout):
    csr = trie.csr()
    batch = PromptCollator(PAD, csr, drop_forced, layout=layout)(rows)
    width = batch["input_ids"].shape[1]
    found = dict(zip(batch["target_positions"].tolist(), zip(*tokens_and_nodes(batch), strict=True), strict=True))
    total = 0
    for row, (at, start) in zip(rows, segments_of(batch, layout), strict=True):
        labels, prefixes = walk(row, trie, drop_forced)
        length = max(place + 1 for place, label in enumerate(labels) if label != -100)
        here = slice(start, start + length)
        assert batch["input_ids"][at, here].tolist() == row["input_ids"][:length]
        assert batch["labels"][at, here].tolist() == labels[:length]
        if layout == "padded":
            assert batch["attention_mask"][at].tolist() == [1] * length + [0] * (width - length)
            assert batch["input_ids"][at, length:].tolist() == [PAD] * (width - length)
        else:
            assert batch["position_ids"][at, here].tolist() == list(range(length))
        for column, (label, prefix) in enumerate(zip(labels, prefixes, strict=True)):
            if label != -100:
                assert found[at * width + start + column - 1] == (label, node_of(csr, prefix))
                total += 1
    assert total == len(found) == int((batch["labels"][:, 1:] != -100).sum())


def tokens_and_nodes(batch):
    return batch["target_tokens"].tolist(), batch["target_nodes"].tolist()


def test_a_row_is_cut_after_its_last_branching_token():
    trie = ItemTrie.build([[5, 6, 8, 9], [5, 7, 8, 9]]).csr()
    rows = [{"input_ids": [1, 2, 5, 6, 8, 9], "labels": [-100, -100, 5, 6, 8, 9]}]
    cut = PromptCollator(0, trie, drop_forced=True)(rows)
    assert cut["input_ids"].tolist() == [[1, 2, 5, 6]]
    assert cut["labels"].tolist() == [[-100, -100, -100, 6]]
    assert PromptCollator(0, trie, drop_forced=False)(rows)["input_ids"].tolist() == [[1, 2, 5, 6, 8, 9]]


def test_rows_are_packed_into_as_few_as_their_lengths_need():
    rows, starts, shape = place(np.array([5, 2, 4, 3]), "packed")
    assert (rows.tolist(), starts.tolist(), shape) == ([0, 2, 1, 2], [0, 3, 0, 0], (3, 5))
    rows, starts, shape = place(np.array([5, 2, 4, 3]), "one_row")
    assert shape == (1, 14) and sorted(starts.tolist()) == [0, 5, 9, 12]


def test_the_columns_of_a_target_are_the_children_of_its_node(rows, trie):
    csr = trie.csr()
    batch = PromptCollator(PAD, csr, drop_forced=True)(rows)
    targets = TrieTargets.from_batch(batch)
    num_root, num_columns = len(targets.root_columns), len(targets.columns)
    assert (targets.nodes[:num_root] == csr.root).all() and (targets.nodes[num_root:] != csr.root).all()
    root_tokens = csr.children_flat(torch.tensor([csr.root]))[0]
    assert torch.equal(root_tokens[targets.root_columns], targets.tokens[:num_root])
    for number, node in enumerate(targets.nodes[num_root:]):
        edges = targets.edges[targets.offsets[number] : targets.offsets[number + 1]]
        assert (edges // num_columns == number).all()
        assert torch.equal(targets.columns[edges % num_columns], csr.children_flat(node[None])[0])
        target = targets.columns[targets.edges[targets.target_edges[number]] % num_columns]
        assert target == targets.tokens[num_root + number]


def test_kept_labels_are_children_of_their_node_with_siblings(rows, trie):
    csr = trie.csr()
    batch = PromptCollator(PAD, csr, drop_forced=True)(rows)
    assert (csr.step(batch["target_nodes"], batch["target_tokens"]) != -1).all()
    assert (csr.num_children[batch["target_nodes"]] > 1).all()


def test_row_whose_every_label_is_forced_keeps_none():
    collator = PromptCollator(0, ItemTrie.build([[5, 6, 9]]).csr(), drop_forced=True)
    batch = collator([{"input_ids": [1, 5, 6, 9], "labels": [-100, 5, 6, 9]}])
    assert (batch["labels"] == -100).all() and len(batch["target_tokens"]) == 0
    assert batch["input_ids"].tolist() == [[1]]


def test_rows_without_labels_are_allowed(trie):
    batch = PromptCollator(0, trie.csr(), drop_forced=False)([{"input_ids": [1, 2], "labels": [-100, -100]}] * 2)
    assert len(batch["target_tokens"]) == 0


def test_a_label_that_nothing_comes_before_is_not_predicted(trie):
    path = trie_path(trie)
    row = {"input_ids": path, "labels": path}
    for layout in ("padded", "packed", "one_row"):
        batch = PromptCollator(0, trie.csr(), drop_forced=False, layout=layout)([row, row])
        assert batch["target_tokens"].tolist() == 2 * path[1:]
        assert int((batch["labels"][:, 1:] != -100).sum()) == 2 * len(path[1:])


def trie_path(trie):
    path = ()
    while not trie.items(path):
        path = (*path, trie.valid_tokens(path)[0])
    return list(path)


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
def test_labels_that_are_no_item_name_row_and_tokens(labels, message):
    collator = PromptCollator(0, ItemTrie.build([[5, 6, 9], [7, 9]]).csr(), False)
    good = {"input_ids": [1, 7, 9], "labels": [-100, 7, 9]}
    with pytest.raises(ValueError, match=message):
        collator([good, {"input_ids": [1] * 7, "labels": labels}])


def test_bad_arguments_and_rows_are_named(trie):
    with pytest.raises(ValueError, match="`pad_token_id` is None"):
        PromptCollator(None, trie.csr(), True)
    with pytest.raises(ValueError, match="Row 0 of the batch has 2 `input_ids` but 1 `labels`"):
        PromptCollator(0, trie.csr(), True)([{"input_ids": [1, 2], "labels": [-100]}])
