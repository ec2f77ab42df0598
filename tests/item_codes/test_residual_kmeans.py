"""Codes against arithmetic: brute force distances, toys whose clusters are known, ties and too few vectors."""

import numpy as np
import pytest

from hf_rec.item_codes.bounded_clusters import bounded_assignment
from hf_rec.item_codes.clusters import nearest
from hf_rec.item_codes.residual_kmeans import residual_kmeans, with_digit


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def test_each_code_is_the_nearest_centroid_of_what_is_left(vectors):
    made = residual_kmeans(vectors, levels=3, num_codes=8, seed=1)
    left = vectors.astype(np.float64)
    assert made.errors[0] == pytest.approx((left**2).sum(1).mean(), rel=1e-6)
    for level, table in enumerate(made.centroids):
        distances = ((left[:, None] - table[None]) ** 2).sum(axis=2)
        chosen = distances[np.arange(len(left)), made.codes[:, level]]
        # float32 distances of vectors of length about 3 are good to 1e-6
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
        left = left - table[made.codes[:, level]]
        assert made.errors[level + 1] == pytest.approx((left**2).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_error_falls_with_each_level_and_a_seed_gives_its_codes_again(vectors, balanced):
    made = residual_kmeans(vectors, levels=4, num_codes=8, balanced=balanced, seed=3)
    assert all(after < before for before, after in zip(made.errors, made.errors[1:], strict=False))
    again = residual_kmeans(vectors, levels=4, num_codes=8, balanced=balanced, seed=3)
    np.testing.assert_array_equal(made.codes, again.codes)
    assert (made.codes != residual_kmeans(vectors, levels=4, num_codes=8, balanced=balanced, seed=4).codes).any()


def test_two_clusters_of_two_clusters_are_found_exactly():
    # around (0, 0) and (100, 0), and in each of them two heaps one above the other
    x, y = np.array([0, 0, 0, 0, 100, 100, 100, 100.0]), np.array([-1, -1, 1, 1, -1, -1, 1, 1.0])
    made = residual_kmeans(np.stack([x, y], axis=1), levels=2, num_codes=2)
    first, second = made.codes.T
    assert len(set(first[:4])) == len(set(first[4:])) == 1 and first[0] != first[4]
    assert (second[y < 0] == second[0]).all() and (second[y > 0] == second[2]).all() and second[0] != second[2]
    np.testing.assert_allclose(sorted(made.centroids[0].tolist()), [[0, 0], [100, 0]], atol=1e-5)
    assert made.errors == pytest.approx([5001, 1, 0], abs=1e-6)


@pytest.mark.parametrize("num_items", [1, 2, 5])
@pytest.mark.parametrize("balanced", [False, True])
def test_fewer_distinct_vectors_than_codes_are_the_centroids(num_items, balanced):
    vectors = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])[:num_items]
    made = residual_kmeans(vectors, levels=2, num_codes=4, balanced=balanced)
    assert made.codes.shape == (num_items, 2) and made.errors[-1] == pytest.approx(0, abs=1e-6)
    if not balanced:
        assert made.errors[1] == 0
        assert len(np.unique(made.codes[:, 0])) == min(num_items, 2)


def test_of_centroids_as_near_the_first_counts():
    assert nearest(np.float32([[0], [3]]), np.float32([[-1], [1]])).tolist() == [0, 1]
    assert nearest(np.float32([[3]]), np.float32([[-1], [2], [2]])).tolist() == [1]


def test_no_code_of_a_balanced_level_stands_for_more_than_its_share(vectors):
    heap = np.concatenate([vectors, np.zeros((100, 6), dtype=np.float32)])  # a hundred in one place
    free, bounded = (residual_kmeans(heap, levels=3, num_codes=16, balanced=balanced) for balanced in (False, True))
    assert np.bincount(free.codes[:, 0]).max() >= 100
    for level in range(3):
        assert np.bincount(bounded.codes[:, level], minlength=16).max() == 25


def test_a_full_centroid_keeps_those_that_would_lose_most():
    # all three are nearest to 0; going to 10 costs 10^2 - 0^2 = 100, 9^2 - 1^2 = 80 and 8^2 - 2^2 = 60
    codes = bounded_assignment(np.float32([[2], [0], [1]]), np.float32([[0], [10]]), capacity=2)
    assert codes.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="`capacity` 1 times 2"):
        bounded_assignment(np.float32([[2], [0], [1]]), np.float32([[0], [10]]), capacity=1)


def test_a_bounded_assignment_that_has_room_is_the_nearest_one(vectors):
    table = vectors[:7]
    np.testing.assert_array_equal(bounded_assignment(vectors, table, len(vectors)), nearest(vectors, table))


def test_a_digit_counts_the_items_of_a_path_in_the_order_of_their_numbers():
    codes = np.array([[1, 2], [0, 2], [1, 2], [1, 2], [0, 3]])
    found = with_digit(codes, np.array([3, 4, 0, 2, 1]))
    assert found[:, 2].tolist() == [2, 0, 0, 1, 0]
    assert len(np.unique(found, axis=0)) == 5


def test_faiss_finds_the_toy_too():
    pytest.importorskip("faiss", reason="faiss is an extra: pip install hf_rec[faiss]")
    made = residual_kmeans(np.repeat(np.eye(4), 50, axis=0), levels=1, num_codes=3, library="faiss")
    assert len(np.unique(made.codes)) == 3


@pytest.mark.parametrize("arguments", [{"levels": 0}, {"num_codes": 0}])
def test_no_levels_and_no_codes_are_refused(vectors, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be at least 1, got 0"):
        residual_kmeans(vectors, **arguments)
