"""
The generated data set of `hf-rec demo`: films whose titles misbehave as real ones do, users for whom order matters.

What a user watches next depends on the last two films, so the most popular film and the neighbour of the last film are
beaten by whoever reads the sequence:

- within a series, users go on in the direction they are going: after parts 2, 3 comes 4, after parts 3, 2 comes 1;
- whoever enters a series from a nostalgic genre works backwards;
- the next genre is that of the film before last; two films of one genre in a row bring up another one;
- among the films of that genre, recent and popular ones and four "fans of the last film" favourites are preferred;
- and a part of the choices is noise.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_rec.columns import ITEM_ID, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog


if TYPE_CHECKING:
    from datasets import Dataset

GENRES = ("science fiction", "romance", "thriller", "comedy", "family", "documentary")
NOSTALGIC = (1, 4)  # rows of GENRES
NUM_FILMS = 300
OPENING, DAYS = 1546300800, 730  # seconds since 1970 at the start of 2019; length of the log in days
DAY = 86_400

# (genre, stem, how parts are named, number of parts, subtitles)
SERIES = (
    (0, "Star Harbour", "number", 6, ("The Long Tide", "Salt Moon", "Ghost Fleet", "Homecoming", "Zero Anchorage")),
    (0, "Iron Orchard", "roman", 5, ()),
    (0, "The Glass Meridian", "number", 4, ("Refraction", "Vanishing Point", "Noon")),
    (0, "Signal", "roman", 4, ()),
    (1, "Letters from Lisbon", "number", 4, ("The Reply", "Poste Restante", "No Return Address")),
    (1, "Before the Rain", "roman", 3, ()),
    (1, "One Summer", "words", 5, ("One Autumn", "One Winter", "One Spring", "One More Summer")),
    (2, "The Locksmith", "number", 5, ("Skeleton Key", "Broken Tumbler", "Deadbolt", "Master Key")),
    (2, "Night Ferry", "roman", 5, ()),
    (2, "Cold Ledger", "number", 4, ("Paid in Full", "Second Set of Books", "Bad Debt")),
    (2, "Witness", "roman", 3, ()),
    (3, "My Uncle's Goat", "number", 5, ("The Wedding", "The Election", "In Space", "Grandkids")),
    (3, "Two Left Feet", "roman", 4, ()),
    (3, "The Understudy", "number", 3, ("Curtain Call", "Matinee")),
    (4, "Pip & Badger", "number", 6, ("Lost Mitten", "The Big Snow", "Sea Picnic", "School Play", "Goodnight")),
    (4, "The Lantern Keeper", "roman", 5, ()),
    (4, "Dragon Next Door", "number", 4, ("Moving Day", "Sleepover", "Hiccups")),
    (5, "Deep Rivers", "words", 4, ("Deep Rivers: Amazon", "Deep Rivers: Mekong", "Deep Rivers: Volga")),
    (5, "How We Built It", "number", 4, ("Bridges", "Tunnels", "Dams")),
    (5, "The Last Archive", "roman", 3, ()),
)
REMAKES = (  # (genre, title): two films of one title, decades apart
    (0, "The Visitor"),
    (0, "Solaris Road"),
    (1, "An Affair in Vienna"),
    (2, "The Tenant Upstairs"),
    (2, "Rope Trick"),
    (3, "Some Like It Loud"),
    (4, "The Snow Prince"),
    (4, "Thumbling"),
    (5, "Man with a Camera"),
)
AWKWARD = (  # (genre, title): what real catalogs hold
    (0, "<|endoftext|>: A Hacker's Tale"),
    (0, "銀河の果てへ"),
    (0, "Contact (Director's Cut) [4K]"),
    (0, "Станция «Полюс»"),
    (1, "Caf&eacute; Midnight"),
    (1, "爱在雨后"),
    (1, "Tom &amp; Clara"),
    (1, "حب في القاهرة"),
    (2, '"Quiet," She Said'),
    (2, "Seven, Eight, Lay Them Straight"),
    (2, "Молчание"),
    (2, "Wanted: Dead, Alive, or &quot;Other&quot;"),
    (3, "What?!"),
    (3, "The  Spaces   Between\tUs"),
    (3, "L&#39;Ascenseur"),
    (3, "옆집 사람들"),
    (4, "となりのくじら"),
    (4, "🐸 Prince"),
    (4, "The Very, Very, Very, Very Long Way Home from Grandmother's House by the Sea"),
    (4, "Ένα μικρό καράβι"),
    (5, ""),
    (5, "50% Water"),
    (5, "<b>Bold</b> Strokes"),
    (5, "1984"),
)
OPENERS = ("The", "A", "Last", "First", "Our", "Beyond the", "Under the", "Return to the", "No", "Every")
ADJECTIVES = ("Silent", "Crooked", "Golden", "Distant", "Hollow", "Paper", "Northern", "Borrowed", "Quiet", "Second")
NOUNS = (
    ("Orbit", "Nebula", "Android", "Colony", "Comet", "Airlock", "Gravity"),
    ("Kiss", "Bride", "Waltz", "Promise", "Heart", "Valentine", "Proposal"),
    ("Alibi", "Ransom", "Informant", "Verdict", "Hostage", "Getaway", "Suspect"),
    ("Landlord", "Honeymoon", "Roommate", "Karaoke", "Barbecue", "Hangover", "Interview"),
    ("Puppy", "Treehouse", "Wizard", "Teddy", "Playground", "Unicorn", "Snowman"),
    ("Glacier", "Orchestra", "Migration", "Workshop", "Harvest", "Railway", "Reef"),
)


@dataclass(frozen=True)
class _Films:
    """Parallel arrays over catalog rows; `series` is -1 and `part` 0 for a film that stands alone."""

    titles: list[str]
    years: list[int]
    genre: np.ndarray
    series: np.ndarray
    part: np.ndarray
    release: np.ndarray  # days after OPENING, negative for films that were there before


def load_demo(num_users: int = 3000, seed: int = 0) -> tuple["Dataset", Catalog]:
    """
    Generate the demo data set; the same arguments give the same data.

    Args:
        num_users (`int`, *optional*, defaults to `3000`): Users, each with 6 to 18 films.
        seed (`int`, *optional*, defaults to `0`): Seed of the films' release dates and of the users.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: The interactions, with the raw columns `user_id`, `item_id` and `timestamp`
        (seconds), and the catalog of 300 films with title, year and genre, those of a series with its number and
        `part` too.
    """
    from datasets import Dataset

    if num_users < 1:
        raise ValueError(f"`num_users` must be at least 1, got {num_users}.")
    rng = np.random.default_rng(seed)
    films = _make_films(rng)
    ids = [f"tt{1_000_000 + 37 * row}" for row in range(NUM_FILMS)]
    catalog = Catalog.from_records(
        {ITEM_ID: ids[row], TITLE: films.titles[row], "year": films.years[row], "genre": GENRES[films.genre[row]]}
        | ({"series": int(films.series[row]), "part": int(films.part[row])} if films.part[row] else {})
        for row in range(NUM_FILMS)
    )

    popularity = rng.permutation(1.0 / np.arange(3, NUM_FILMS + 3))
    favourites = np.stack([rng.choice(NUM_FILMS, size=24, replace=False) for _ in range(NUM_FILMS)])
    columns: dict[str, list] = {USER_ID: [], ITEM_ID: [], TIMESTAMP: []}
    for user in range(num_users):
        rows, days = _watch(films, popularity, favourites, rng)
        columns[USER_ID] += [f"user{user:05d}"] * len(rows)
        columns[ITEM_ID] += [ids[row] for row in rows]
        columns[TIMESTAMP] += [OPENING + int(day * DAY) for day in days]
    return Dataset.from_dict(columns), catalog


def _part_titles(stem: str, naming: str, count: int, subtitles: tuple[str, ...]) -> list[str]:
    if naming == "roman":
        return [stem] + [f"{stem} {numeral}" for numeral in ("II", "III", "IV", "V", "VI")[: count - 1]]
    if naming == "words":
        return [stem, *subtitles]
    return [stem] + [f"{stem} {part}: {subtitle}" for part, subtitle in enumerate(subtitles, start=2)]


def _make_films(rng: np.random.Generator) -> _Films:
    titles: list[str] = []
    genre: list[int] = []
    years: list[int] = []
    series: list[int] = []
    part: list[int] = []

    def add(title: str, film_genre: int, year: int, film_series: int = -1, film_part: int = 0) -> None:
        titles.append(title)
        genre.append(film_genre)
        years.append(year)
        series.append(film_series)
        part.append(film_part)

    for row, (film_genre, stem, naming, count, subtitles) in enumerate(SERIES):
        first = int(rng.integers(1995, 2019 - count))
        for index, title in enumerate(_part_titles(stem, naming, count, subtitles)):
            add(title, film_genre, first + index, row, index + 1)
    for film_genre, title in REMAKES:
        add(title, film_genre, int(rng.integers(1950, 1985)))
        add(title, film_genre, int(rng.integers(2005, 2021)))
    for film_genre, title in AWKWARD:
        add(title, film_genre, int(rng.integers(1970, 2021)))
    while len(titles) < NUM_FILMS:
        film_genre = len(titles) % len(GENRES)
        words = (str(rng.choice(words)) for words in (OPENERS, ADJECTIVES, NOUNS[film_genre]))
        title = " ".join(words)
        if title not in titles:
            add(title, film_genre, int(rng.integers(1970, 2021)))

    years_array = np.array(years)
    release = np.where(years_array < 2019, -1.0, (years_array - 2019) * 365 + rng.uniform(0, 364, size=NUM_FILMS))
    order = rng.permutation(NUM_FILMS)  # so that a catalog row gives nothing away
    return _Films(
        titles=[titles[row] for row in order],
        years=[years[row] for row in order],
        genre=np.array(genre)[order],
        series=np.array(series)[order],
        part=np.array(part)[order],
        release=release[order],
    )


def _watch(
    films: _Films, popularity: np.ndarray, favourites: np.ndarray, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """One user's films, oldest first, and the day of each."""
    day = rng.uniform(0, DAYS - 60)
    rows: list[int] = []
    days: list[float] = []
    for _ in range(int(rng.integers(6, 19))):
        rows.append(_next_film(films, popularity, favourites, rows, day, rng))
        days.append(day)
        day += 0.0 if rng.random() < 0.1 else rng.exponential(3.0)  # a double feature has one timestamp
    return rows, days


def _next_film(
    films: _Films,
    popularity: np.ndarray,
    favourites: np.ndarray,
    rows: list[int],
    day: float,
    rng: np.random.Generator,
) -> int:
    age = day - films.release
    weights = popularity * (0.5 + 1.5 * np.exp(-np.maximum(age, 0) / 120)) * (age >= 0)
    weights[rows] = 0.0
    if len(rows) >= 2 and rng.random() > 0.1:
        before, last = rows[-2], rows[-1]
        sequel = _sequel(films, before, last)
        if sequel >= 0 and weights[sequel] > 0 and rng.random() < 0.8:
            return sequel
        same = films.genre[before] == films.genre[last]
        mood = (films.genre[before] + same) % len(GENRES)
        weights *= np.where(films.genre == mood, 1.0, 0.02)
        weights[favourites[last]] *= 12.0
    return int(rng.choice(NUM_FILMS, p=weights / weights.sum()))


def _sequel(films: _Films, before: int, last: int) -> int:
    """Row of the part that follows `last` in the direction the user is going, -1 where there is none."""
    if films.series[last] < 0:
        return -1
    if films.series[before] == films.series[last]:
        step = np.sign(films.part[last] - films.part[before])
    else:
        step = -1 if films.genre[before] in NOSTALGIC else 1
    found = np.flatnonzero((films.series == films.series[last]) & (films.part == films.part[last] + step))
    return int(found[0]) if len(found) else -1
