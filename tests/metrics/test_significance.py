import itertools

import numpy as np
import pytest

from hf_rec.metrics import significance
from hf_rec.metrics.significance import cluster_bootstrap, holm, sign_flip_test


class TestClusterBootstrap:
    def test_interval_matches_the_enumeration_of_every_resample(self):
        users = ["a", "a", "a", "b", "c", "c", "d", "e"]
        values = np.array([1.0, 0.2, 0.7, 0.0, 0.3, 0.45, 2.0, 0.9])
        rows = [[row for row, user in enumerate(users) if user == name] for name in "abcde"]
        means = [
            np.mean([values[row] for cluster in drawn for row in rows[cluster]])
            for drawn in itertools.product(range(5), repeat=5)
        ]
        mean, low, high = cluster_bootstrap(values, users, num_samples=60_000, level=0.9)
        np.testing.assert_allclose(mean, values.mean())
        np.testing.assert_allclose([low, high], np.percentile(means, [5, 95]), atol=0.02)

    def test_one_row_a_user_is_the_plain_bootstrap_and_close_to_the_normal_interval(self):
        values = np.random.default_rng(1).normal(3.0, 1.0, size=2000)
        mean, low, high = cluster_bootstrap(values, range(2000))
        half = 1.96 * values.std() / np.sqrt(2000)
        np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.006)

    def test_copies_of_a_users_row_do_not_narrow_the_interval(self):
        values = np.random.default_rng(2).random(200)
        once = cluster_bootstrap(values, range(200))
        thrice = cluster_bootstrap(values.repeat(3), np.arange(200).repeat(3).tolist())
        np.testing.assert_allclose(once, thrice)

    def test_columns_and_blocks_change_nothing(self, monkeypatch):
        values = np.random.default_rng(3).random((50, 3))
        whole = cluster_bootstrap(values, range(50), num_samples=100)
        monkeypatch.setattr(significance, "_BLOCK", 170)
        np.testing.assert_allclose(cluster_bootstrap(values, range(50), num_samples=100), whole)
        np.testing.assert_allclose(cluster_bootstrap(values[:, 1], range(50), num_samples=100), np.array(whole)[:, 1])

    def test_seed_decides_the_draws(self):
        values = np.random.default_rng(4).random(30)
        first = cluster_bootstrap(values, range(30), num_samples=50, seed=1)
        np.testing.assert_array_equal(first, cluster_bootstrap(values, range(30), num_samples=50, seed=1))
        assert first[1] != cluster_bootstrap(values, range(30), num_samples=50, seed=2)[1]

    def test_bad_arguments_are_named(self):
        with pytest.raises(ValueError, match="`level`"):
            cluster_bootstrap([1.0], ["a"], level=95)
        with pytest.raises(ValueError, match="each of the 2 rows, got 1"):
            cluster_bootstrap([1.0, 2.0], ["a"])
        with pytest.raises(ValueError, match="finite, got 1"):
            cluster_bootstrap([1.0, np.nan], ["a", "b"])
        with pytest.raises(ValueError, match="with rows"):
            cluster_bootstrap([], [])


class TestSignFlip:
    @staticmethod
    def by_enumeration(differences, users):
        names = sorted(set(users))
        sums = np.array([sum(d for d, user in zip(differences, users, strict=True) if user == name) for name in names])
        flips = [abs(np.dot(signs, sums)) for signs in itertools.product([-1, 1], repeat=len(names))]
        return np.mean(np.array(flips) >= abs(sums.sum()) - 1e-9)

    def test_few_users_are_enumerated_exactly(self):
        generator = np.random.default_rng(0)
        for _ in range(10):
            users = generator.integers(7, size=15).tolist()
            differences = generator.integers(-2, 4, size=15) / 3
            found = sign_flip_test(differences, users)
            np.testing.assert_allclose(found, self.by_enumeration(differences, users))

    def test_random_patterns_agree_with_the_enumeration(self):
        generator = np.random.default_rng(1)
        users, differences = generator.integers(12, size=40).tolist(), generator.normal(0.25, 1.0, size=(40, 2))
        expected = [self.by_enumeration(differences[:, column], users) for column in range(2)]
        np.testing.assert_allclose(sign_flip_test(differences, users, num_samples=4000), expected, atol=0.03)

    def test_no_difference_gives_one_and_a_clear_one_the_smallest_value(self):
        assert sign_flip_test(np.zeros(100), range(100)) == 1.0
        assert sign_flip_test(np.ones(100), range(100), num_samples=999) == 1 / 1000

    def test_users_with_many_rows_count_once(self):
        # A hundred rows of two users are two independent facts: the smallest two-sided p-value is 2 of 4 patterns.
        assert sign_flip_test(np.ones(100), [row % 2 for row in range(100)]) == 0.5

    def test_false_findings_are_as_rare_as_the_level(self):
        generator = np.random.default_rng(2)
        found = [sign_flip_test(generator.normal(size=30), range(30), num_samples=200, seed=s) for s in range(300)]
        assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


class TestHolm:
    def test_by_hand(self):
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    def test_values_stay_ordered_and_at_most_one(self):
        np.testing.assert_allclose(holm([0.5, 0.9, 0.4]), [1.0, 1.0, 1.0])
        np.testing.assert_allclose(holm([0.2]), [0.2])

    def test_what_is_no_probability_is_refused(self):
        with pytest.raises(ValueError, match="`p_values`"):
            holm([0.1, np.nan])
