"""ItemTrie against a Python dictionary of prefixes, and what its files do when they are damaged."""

import json

import numpy as np
import pytest
import torch

from hf_rec.trie import ItemTrie


SEPARATOR = 9
# Tokens that a character key could not hold as they are: NUL, both ends of the surrogates, and the largest id.
HARD_TOKENS = [0, 1, 55295, 55296, 56319, 57342, 57343, 57344, 65535, 65536, 127999, 1114111, 2**31 - 1]


def random_paths(seed, count=300, tokens=(1, 2, 3, 4), longest=6):
    rng = np.random.default_rng(seed)
    return [[*rng.choice(tokens, size=rng.integers(0, longest)).tolist(), SEPARATOR] for _ in range(count)]


def rows_by_path(paths, rows):
    expected = {}
    for path, row in sorted(zip(map(tuple, paths), rows, strict=True)):
        expected.setdefault(path, []).append(row)
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_items_and_valid_tokens_equal_brute_force(seed):
    paths = random_paths(seed)
    rows = np.random.default_rng(seed).permutation(1000)[: len(paths)].tolist()
    trie = ItemTrie.build(paths, rows)
    expected = rows_by_path(paths, rows)
    assert len(trie) == len(expected)
    assert {path: trie.items(path) for path in expected} == expected
    prefixes = {path[:length] for path in expected for length in range(len(path) + 1)}
    for prefix in prefixes:
        following = {path[len(prefix)] for path in expected if path[: len(prefix)] == prefix and path != prefix}
        assert trie.valid_tokens(prefix) == sorted(following)
    assert trie.valid_tokens([SEPARATOR, 1]) == trie.valid_tokens([7]) == trie.items([7]) == trie.items([]) == []
    trie.verify()


def test_hard_token_ids_survive_saving(tmp_path):
    paths = [[a, b, 3] for a in HARD_TOKENS for b in HARD_TOKENS]
    ItemTrie.build(paths).save(tmp_path)
    trie = ItemTrie.load(tmp_path)
    trie.verify()
    assert [trie.items(path) for path in paths] == [[row] for row in range(len(paths))]
    assert trie.valid_tokens([]) == trie.valid_tokens([0]) == HARD_TOKENS
    assert trie.items([-1, 0, 3]) == trie.items([2**40, 0, 3]) == []
    csr = trie.csr()
    nodes = csr.step(csr.step(torch.tensor([0, 0]), torch.tensor([2**31 - 1, 0])), torch.tensor([55296, 2**31 - 1]))
    assert csr.items(int(csr.leaf(csr.step(nodes, torch.tensor([3, 3])))[0])) == trie.items([2**31 - 1, 55296, 3])


def test_verify_notices_a_leaf_that_the_two_structures_number_differently():
    trie = ItemTrie.build([[1, 9], [2, 9]])
    trie._arrays["key_leaf"] = trie._arrays["key_leaf"][::-1]
    with pytest.raises(ValueError, match="is leaf 0 of the arrays, but not of trie.marisa"):
        trie.verify()


def test_items_that_share_a_path_share_a_leaf():
    trie = ItemTrie.build([[1, 9], [2, 9], [1, 9]], [30, 20, 10])
    assert len(trie) == 2
    assert trie.items([1, 9]) == [10, 30]


def test_one_very_long_path_costs_no_padding():
    trie = ItemTrie.build([[1, 2, 9]] * 1000 + [[1] * 5000 + [9]])
    assert trie.items([1] * 5000 + [9]) == [1000]
    assert trie.csr().max_depth == 5001


@pytest.mark.parametrize(
    ("paths", "rows", "message"),
    [
        ([], None, "`token_paths` is empty"),
        ([[1, 9], []], [4, 7], "item row 7 is empty"),
        ([[1, 9], [2, -1]], [4, 7], "item row 7 .* got -1"),
        ([[1, 9], [2**31, 9]], [4, 7], f"item row 7 .* got {2**31}"),
        ([[1, 9], [2**80, 9]], [4, 7], f"item row 7 .* got {2**80}"),
        ([[1, 2, 9], [1]], [4, 7], "item row 7 is the beginning of that of item row 4"),
        ([[1, 9], [2, 9]], [4], "got 1 for 2 paths"),
        ([[1, 9], [2, 9]], [4, 4], "row 4 twice"),
        ([[1, 9]], [-4], "got -4"),
    ],
)
def test_bad_paths_are_refused_by_item_row(paths, rows, message):
    with pytest.raises(ValueError, match=message):
        ItemTrie.build(paths, rows)


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        ItemTrie.build(random_paths(0)).save(tmp_path)
        return tmp_path

    def test_loaded_trie_equals_the_saved_one(self, folder):
        trie, loaded = ItemTrie.build(random_paths(0)), ItemTrie.load(folder)
        assert loaded.sha256 == trie.sha256 == json.loads((folder / "trie.json").read_text())["sha256"]
        assert [loaded.items(path) for path in random_paths(0)] == [trie.items(path) for path in random_paths(0)]
        assert sorted(path.name for path in folder.iterdir()) == ["trie.json", "trie.marisa", "trie.safetensors"]
        loaded.verify()

    def test_hash_follows_paths_and_rows_but_not_their_order(self):
        paths = random_paths(1, count=50)
        order = np.random.default_rng(0).permutation(50)
        same = ItemTrie.build([paths[i] for i in order], order.tolist())
        assert same.sha256 == ItemTrie.build(paths).sha256
        assert same.sha256 != ItemTrie.build(paths, range(1, 51)).sha256

    @pytest.mark.parametrize("name", ["trie.marisa", "trie.safetensors", "trie.json"])
    def test_truncated_file_is_named(self, folder, name):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name} is truncated.*rebuild"):
            ItemTrie.load(folder)

    @pytest.mark.parametrize("name", ["trie.marisa", "trie.safetensors"])
    def test_changed_byte_is_noticed(self, folder, name):
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is truncated, corrupted"):
            ItemTrie.load(folder)

    def test_file_of_another_trie_is_noticed(self, folder, tmp_path_factory):
        other = tmp_path_factory.mktemp("other")
        ItemTrie.build(random_paths(1)).save(other)
        (folder / "trie.marisa").write_bytes((other / "trie.marisa").read_bytes())
        with pytest.raises(ValueError, match="trie.marisa .* from another trie"):
            ItemTrie.load(folder)

    @pytest.mark.parametrize("change", [{"leaves": 1}, {"sha256": "0"}, {"files": []}, {"format": 99}])
    def test_wrong_index_is_noticed(self, folder, change):
        index = json.loads((folder / "trie.json").read_text())
        (folder / "trie.json").write_text(json.dumps(index | change))
        with pytest.raises(ValueError, match="trie.json"):
            ItemTrie.load(folder)

    def test_saving_over_a_loaded_trie_leaves_it_usable(self, folder):
        loaded = ItemTrie.load(folder)
        ItemTrie.build([[1, 9]]).save(folder)
        loaded.verify()
        assert len(ItemTrie.load(folder)) == 1


def test_paths_end_to_end_give_the_trie_of_their_lists():
    paths = [[*path, 9] for path in random_paths(3)]
    offsets = np.cumsum([0, *map(len, paths)])
    flat = np.array([token for path in paths for token in path], dtype=np.int32)
    assert ItemTrie.from_flat(flat, offsets).sha256 == ItemTrie.build(paths).sha256
    with pytest.raises(ValueError, match="`token_paths` of item row 1 is empty"):
        ItemTrie.from_flat(flat[:2], np.array([0, 2, 2]))
