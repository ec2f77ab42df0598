"""The generated data set: deterministic, awkward where real catalogs are, and a place where order matters."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from hf_rec.data.sources.demo import NUM_FILMS, load_demo


@pytest.fixture(scope="module")
def demo():
    return load_demo(num_users=1500, seed=0)


@pytest.fixture(scope="module")
def sequences(demo):
    interactions, catalog = demo
    histories = defaultdict(list)
    for user, item in zip(interactions["user_id"], interactions["item_id"], strict=True):
        histories[user].append(catalog.row(item))
    return list(histories.values())


def hit_rate(sequences, rank, k=10) -> float:
    """Share of users whose last film is among the first `k` that `rank(history)` names and the user has not seen."""
    hits = 0
    for *history, target in sequences:
        unseen = [row for row in rank(history) if row not in set(history)]
        hits += target in unseen[:k]
    return hits / len(sequences)


def test_the_same_seed_gives_the_same_data(demo):
    interactions, catalog = load_demo(num_users=5, seed=3)
    again, catalog_again = load_demo(num_users=5, seed=3)
    assert interactions.to_dict() == again.to_dict()
    assert catalog.sha256 == catalog_again.sha256
    assert interactions.to_dict() != load_demo(num_users=5, seed=4)[0].to_dict()


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="`num_users`"):
        load_demo(num_users=0)


def test_the_log_is_ordered_and_has_no_repeats(demo, sequences):
    interactions, _ = demo
    assert len(sequences) == 1500
    assert all(6 <= len(rows) <= 18 and len(set(rows)) == len(rows) for rows in sequences)
    times = defaultdict(list)
    for user, time in zip(interactions["user_id"], interactions["timestamp"], strict=True):
        times[user].append(time)
    assert all(values == sorted(values) for values in times.values())
    assert any(len(set(values)) < len(values) for values in times.values()), "ties belong to the data"


def test_titles_misbehave_as_real_ones_do(demo):
    _, catalog = demo
    titles = catalog.titles
    counts = Counter(titles)
    assert len(catalog) == NUM_FILMS
    assert sum(count == 2 for count in counts.values()) == 9, "remakes share a title"
    assert titles.count("") == 1
    assert any(other != title and other.startswith(title) for title in titles if title for other in titles)
    text = "\n".join(titles)
    for piece in ('"Quiet," She Said', "Café Midnight", "<|endoftext|>", "となりのくじら", "حب", "🐸", "Bold Strokes"):
        assert piece in text
    assert "&amp;" not in text


def test_a_film_is_not_watched_before_its_release(demo):
    interactions, catalog = demo
    year = {item_id: attributes["year"] for item_id, attributes in zip(catalog.ids, catalog.attributes, strict=True)}
    first = defaultdict(lambda: np.inf)
    for item, time in zip(interactions["item_id"], interactions["timestamp"], strict=True):
        first[item] = min(first[item], time)
    start_of_2020 = 1577836800
    assert all(time >= start_of_2020 for item, time in first.items() if year[item] == 2020)


def test_order_matters_more_than_the_last_film_and_that_more_than_popularity(sequences):
    train = [rows[:-1] for rows in sequences]
    popular = [row for row, _ in Counter(row for rows in train for row in rows).most_common()]
    after_one, after_two = defaultdict(Counter), defaultdict(Counter)
    for rows in train:
        for last, following in zip(rows, rows[1:], strict=False):
            after_one[last][following] += 1
        for before, last, following in zip(rows, rows[1:], rows[2:], strict=False):
            after_two[before, last][following] += 1

    def neighbours(history):
        return [row for row, _ in after_one[history[-1]].most_common()] + popular

    def pairs(history):
        return [row for row, _ in after_two[tuple(history[-2:])].most_common()] + neighbours(history)

    assert hit_rate(sequences, lambda history: popular) < hit_rate(sequences, neighbours) - 0.1
    # Where the last two films were seen together often enough to count what follows them
    known = [rows for rows in sequences if after_two[tuple(rows[-3:-1])].total() >= 5]
    assert len(known) > 200
    assert hit_rate(known, neighbours, k=1) < hit_rate(known, pairs, k=1) - 0.02


def test_within_a_series_the_direction_decides(sequences, demo):
    _, catalog = demo
    row = {title: number for number, title in enumerate(catalog.titles)}
    parts = [row["Star Harbour 2: The Long Tide"], row["Star Harbour 3: Salt Moon"]]
    following, preceding = row["Star Harbour 4: Ghost Fleet"], row["Star Harbour"]
    upward, downward = Counter(), Counter()
    for rows in sequences:
        for before, last, then in zip(rows, rows[1:], rows[2:], strict=False):
            upward[then] += [before, last] == parts
            downward[then] += [before, last] == parts[::-1]
    assert upward.most_common(1)[0][0] == following
    assert downward.most_common(1)[0][0] == preceding
