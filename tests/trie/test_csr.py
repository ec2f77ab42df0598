"""TrieCSR against a Python dictionary of prefixes."""

import numpy as np
import pytest
import torch

from hf_rec.trie import ItemTrie


def random_paths(seed, count=300):
    rng = np.random.default_rng(seed)
    return [[*rng.choice([1, 2, 3, 4], size=rng.integers(0, 6)).tolist(), 9] for _ in range(count)]


@pytest.fixture(scope="module", params=range(3))
def oracle(request):
    """A trie and, by walking it, the node of every prefix."""
    paths = random_paths(request.param)
    rows = {path: [row for row, other in enumerate(paths) if tuple(other) == path] for path in map(tuple, paths)}
    csr = ItemTrie.build(paths).csr()
    nodes = {(): csr.root}
    for path in sorted(map(tuple, paths)):
        for length in range(len(path)):
            node = csr.step(torch.tensor([nodes[path[:length]]]), torch.tensor([path[length]]))
            nodes[path[: length + 1]] = int(node)
    return csr, nodes, rows


def following(nodes, prefix):
    return sorted(path[-1] for path in nodes if path[:-1] == prefix and path)


def test_nodes_are_numbered_breadth_first_without_gaps(oracle):
    csr, nodes, _ = oracle
    assert sorted(nodes.values()) == list(range(len(csr.depth)))
    by_number = sorted(nodes, key=nodes.get)
    assert by_number == sorted(nodes, key=lambda prefix: (len(prefix), prefix))
    assert csr.depth.tolist() == [len(prefix) for prefix in by_number]
    assert csr.max_depth == max(map(len, nodes))


def test_children_are_the_tokens_that_may_follow(oracle):
    csr, nodes, _ = oracle
    prefixes = list(nodes)
    queried = torch.tensor([nodes[prefix] for prefix in prefixes] + [-1])
    children, (tokens, offsets) = csr.children(queried), csr.children_flat(queried)
    assert children.shape == (len(queried), csr.max_children)
    for i, prefix in enumerate([*prefixes, None]):
        expected = following(nodes, prefix) if prefix is not None else []
        assert children[i].tolist() == expected + [-1] * (csr.max_children - len(expected))
        assert tokens[offsets[i] : offsets[i + 1]].tolist() == expected
        assert prefix is None or csr.num_children[nodes[prefix]] == len(expected)


def test_leaves_below_a_node_are_one_range_in_sorted_path_order(oracle):
    csr, nodes, rows = oracle
    paths = sorted(rows)
    assert len(csr) == len(paths)
    for prefix, node in nodes.items():
        below = [leaf for leaf, path in enumerate(paths) if path[: len(prefix)] == prefix]
        assert list(range(csr.first_leaf[node], csr.first_leaf[node] + csr.num_leaves[node])) == below
    assert [csr.items(leaf) for leaf in range(len(csr))] == [rows[path] for path in paths]


def test_leaf_is_minus_one_where_no_path_ends(oracle):
    csr, nodes, rows = oracle
    paths = sorted(rows)
    expected = [paths.index(prefix) if prefix in rows else -1 for prefix in nodes] + [-1]
    assert csr.leaf(torch.tensor([*nodes.values(), -1])).tolist() == expected


def test_row_leaf_inverts_items(oracle):
    csr, _, rows = oracle
    count = sum(map(len, rows.values()))
    leaves = csr.row_leaf(count + 2).tolist()
    assert leaves[count:] == [-1, -1]
    assert all(row in csr.items(leaves[row]) for row in range(count))
    with pytest.raises(ValueError, match="`num_rows` must be greater"):
        csr.row_leaf(count - 1)


def test_step_off_the_trie_is_dead_and_stays_dead(oracle):
    csr, nodes, rows = oracle
    path = next(iter(rows))
    starts = torch.tensor([0, 0, 0, -1, nodes[path], 1])
    tokens = torch.tensor([10_000, -1, -(10**12), path[0], 9, csr.vocab_size])
    dead = csr.step(starts, tokens)
    assert dead.tolist() == [-1] * 6
    assert csr.step(dead, torch.full((6,), 9)).tolist() == [-1] * 6
    assert (csr.children(dead) == -1).all()
    assert csr.children_flat(dead)[1].tolist() == [0] * 7


def test_step_never_takes_an_edge_of_a_neighbour(oracle):
    csr, nodes, _ = oracle
    tokens = torch.arange(-3, csr.vocab_size + 3)
    for prefix, node in nodes.items():
        reached = csr.step(torch.full_like(tokens, node), tokens)
        assert tokens[reached >= 0].tolist() == following(nodes, prefix)


def test_step_and_leaf_take_any_shape(oracle):
    csr, nodes, _ = oracle
    grid = torch.tensor(list(nodes.values())[:6]).view(2, 3)
    assert csr.step(grid, torch.full((2, 3), 9)).shape == csr.leaf(grid).shape == (2, 3)


def test_empty_query_has_empty_answers(oracle):
    csr, none = oracle[0], torch.empty(0, dtype=torch.long)
    assert csr.step(none, none).shape == csr.leaf(none).shape == (0,)
    assert csr.children(none).shape == (0, 1)
    assert csr.children_flat(none)[1].tolist() == [0]


def test_moving_keeps_every_tensor(oracle):
    csr = oracle[0]
    assert csr.to("cpu") is csr
    moved = csr.to("meta")
    assert moved.device.type == "meta"
    assert moved.ptr.shape == csr.ptr.shape and moved.leaf_rows.device.type == "meta"
    assert (moved.vocab_size, moved.max_depth, len(moved)) == (csr.vocab_size, csr.max_depth, len(csr))


def test_items_outside_the_leaves_is_an_error(oracle):
    with pytest.raises(ValueError, match="`leaf` must be between 0"):
        oracle[0].items(-1)


def test_tensors_take_four_bytes_a_number_and_results_are_long():
    csr = ItemTrie.build([[1, 2, 3], [1, 2, 4], [5, 6]]).csr()
    tensors = [value for value in vars(csr).values() if isinstance(value, torch.Tensor)]
    assert tensors and all(tensor.dtype == torch.int32 for tensor in tensors)
    nodes = torch.tensor([0, 1, -1])
    results = (csr.children(nodes), *csr.children_flat(nodes), csr.step(nodes, nodes + 1), csr.leaf(nodes))
    assert all(result.dtype == torch.int64 for result in (*results, csr.row_leaf(3), csr.edge_keys))


def test_the_end_of_a_chain_is_the_next_choice_or_the_last_item():
    csr = ItemTrie.build([[4, 1, 2, 3, 7], [4, 1, 2, 3, 8, 9, 10], [4, 1, 2, 3, 8, 9, 11], [4, 1, 5, 6, 7]]).csr()

    def walk(*tokens):
        node = torch.tensor([csr.root])
        for token in tokens:
            node = csr.step(node, torch.tensor([token]))
        return int(node)

    assert csr.start == (walk(4, 1), 2) and csr.start_depth == 2
    expected = {(4,): (4, 1), (4, 1, 2): (4, 1, 2, 3), (4, 1, 2, 3, 8): (4, 1, 2, 3, 8, 9), (4, 1, 5): (4, 1, 5)}
    for path, end in expected.items():
        assert int(csr.chain_end[walk(*path)]) == walk(*end)
    one = ItemTrie.build([[3, 9]]).csr()
    assert one.start == (0, 1) and one.start_depth == 0
