"""Packed preference rows, written out token by token."""

import pytest
import torch

from hf_rec.data.preference_collator import PreferenceCollator
from hf_rec.trie.item_trie import ItemTrie


ROWS = [
    {"prompt_ids": [1, 2], "chosen_ids": [5, 9], "rejected_ids": [[5, 6, 9], [7, 9]]},
    {"prompt_ids": [3], "chosen_ids": [7, 9], "rejected_ids": [[5, 9]]},
]


def test_prompt_and_answers_stand_end_to_end_and_positions_start_again():
    batch = PreferenceCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 5, 9, 5, 6, 9, 7, 9], [3, 7, 9, 5, 9, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 2, 3], [0, 1, 2, 1, 2, 0, 0, 0, 0]]
    assert batch["answers"].tolist() == [[0, 0, 1, 1, 2, 2, 2, 3, 3], [0, 1, 1, 2, 2, -1, -1, -1, -1]]
    assert batch["answer_lengths"].tolist() == [[2, 3, 2], [2, 2, 0]]
    assert batch["target_tokens"].tolist() == [5, 9, 5, 6, 9, 7, 9, 7, 9, 5, 9]
    assert batch["target_positions"].tolist() == [1, 2, 1, 4, 5, 1, 7, 9, 10, 9, 12]
    assert batch["target_groups"].tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_with_a_trie_answers_end_where_it_leaves_no_choice():
    trie = ItemTrie.build([[5, 9], [5, 6, 9], [7, 8, 8, 9]]).csr()
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [5, 6, 9], "rejected_ids": [[7, 8, 8, 9], [5, 9]]}]
    batch = PreferenceCollator(pad_token_id=0, trie=trie)(rows)
    # After 7 everything is forced; after 5 there are 6 and 9, behind which everything is
    assert batch["input_ids"].tolist() == [[1, 2, 5, 6, 7, 5, 9]]
    assert batch["answer_lengths"].tolist() == [[2, 1, 2]]
    after_5 = int(trie.step(torch.tensor(trie.root), torch.tensor(5)))
    # Targets at the root first; each answer's first token follows the last one of the prompt
    assert batch["target_tokens"].tolist() == [5, 7, 5, 6, 9]
    assert batch["target_nodes"].tolist() == [0, 0, 0, after_5, after_5]
    assert batch["target_groups"].tolist() == [0, 1, 2, 0, 2]
    assert batch["target_positions"].tolist() == [1, 1, 1, 2, 5]
    assert batch["plain_positions"].tolist() == [1, 5, 9, 2, 10]  # rows [1 2 5 6], [1 2 7], [1 2 5 9]


def test_an_answer_that_the_trie_forces_from_its_first_token_keeps_that_one():
    trie = ItemTrie.build([[4, 5, 9], [4, 5, 8]]).csr()
    lone = ItemTrie.build([[4, 5, 9]]).csr()
    row = {"prompt_ids": [1], "chosen_ids": [4, 5, 9], "rejected_ids": [[4, 5, 8]]}
    assert PreferenceCollator(0, trie=trie)([row])["answer_lengths"].tolist() == [[3, 3]]
    row = row | {"rejected_ids": [[4, 5, 9]]}
    assert PreferenceCollator(0, trie=lone)([row])["answer_lengths"].tolist() == [[1, 1]]


def test_all_batches_of_a_data_set_can_have_as_many_slots():
    batch = PreferenceCollator(pad_token_id=0, num_rejected=4)(ROWS[1:])
    assert batch["answer_lengths"].tolist() == [[2, 2, 0, 0, 0]]


def test_reference_log_probabilities_come_along():
    rows = [row | {"ref_chosen_logps": -1.0, "ref_rejected_logps": [-2.0, -3.0]} for row in ROWS]
    batch = PreferenceCollator(pad_token_id=0)(rows)
    assert batch["ref_chosen_logps"].tolist() == [-1, -1]
    assert batch["ref_rejected_logps"].tolist() == [[-2, -3], [-2, -3]]


def test_in_batch_negatives_are_the_other_chosen_answers_each_once():
    rows = [{"prompt_ids": [1], "chosen_ids": [token, 9], "rejected_ids": []} for token in (5, 6, 5, 7)]
    batch = PreferenceCollator(pad_token_id=0, in_batch=True)([*rows, ROWS[1]])
    assert batch["input_ids"][0].tolist() == [1, 5, 9, 6, 9, 7, 9]
    assert batch["input_ids"][2].tolist() == [1, 5, 9, 6, 9, 7, 9]
    assert batch["input_ids"][4].tolist()[:5] == [3, 7, 9, 5, 9]  # has negatives of its own
    alone = PreferenceCollator(pad_token_id=0, in_batch=True)([rows[0], rows[2]])
    assert alone["answer_lengths"].tolist() == [[2], [2]]


def test_a_row_without_rejected_answers_is_refused():
    with pytest.raises(ValueError, match="Row 1 of the batch has no rejected answer"):
        PreferenceCollator(pad_token_id=0)([ROWS[0], ROWS[1] | {"rejected_ids": []}])


@pytest.mark.parametrize("wrong", [[5, 8], [5], [5, 9, 7, 9], [8, 9]])
def test_an_answer_that_is_no_item_of_the_trie_is_refused(wrong):
    trie = ItemTrie.build([[5, 9], [5, 6, 9], [7, 9]]).csr()
    with pytest.raises(ValueError, match="no item of the trie|more than one item"):
        PreferenceCollator(pad_token_id=0, trie=trie)([ROWS[0] | {"rejected_ids": [[7, 9], wrong]}])
