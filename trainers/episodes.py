"""Episodes of in-context tuning: which rows stand as demonstrations before which row, by numbers alone.

Demonstrations never have the prompt of the row that they stand before. Prompts and responses are numbers here, equal
where the texts are. N = rows, L = labels.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_ROWS_PER_LABEL = 4
"""On average, from which on responses are taken for labels: fewer rows of each give no choice of demonstrations."""
_FEWEST_LABELS = 4
"""Two to learn by, and two to be asked about."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Rows, and the rows that stand before each of them, first to last."""

    rows: np.ndarray
    """int64"""
    before: list[np.ndarray]
    """int64"""


class NoEpisodes(Exception):
    """The rows give no such episodes; says what there is and what would be needed."""


def numbered(texts: Sequence[str]) -> np.ndarray:
    """The number of each text among the distinct ones, in their order as text, int64."""
    return np.unique(np.array(texts, dtype=object), return_inverse=True)[1].astype(np.int64)


def any_rows(prompts_N: np.ndarray, *, num_demonstrations: int, num_episodes: int, rng: np.random.Generator) -> Shown:
    """``num_episodes`` of every row, its demonstrations drawn from all others.

    Raises:
        NoEpisodes: there are not as many rows with other prompts.
    """
    twins_N = np.bincount(prompts_N)[prompts_N]
    if (spare := len(prompts_N) - int(twins_N.max())) < num_demonstrations:
        raise NoEpisodes(f"{num_demonstrations} demonstrations need as many rows with other prompts, but got {spare}")
    rows = np.tile(np.arange(len(prompts_N)), num_episodes)

    def drawn(row: int) -> np.ndarray:
        found = rng.choice(len(prompts_N), num_demonstrations + int(twins_N[row]), replace=False)
        return found[prompts_N[found] != prompts_N[row]][:num_demonstrations]

    return Shown(rows, [drawn(row) for row in rows.tolist()])


def why_no_labels(labels_N: np.ndarray) -> str | None:
    """Why responses cannot serve as labels of which some are kept unseen; None where they can."""
    count, rows = len(np.unique(labels_N)), len(labels_N)
    if _ROWS_PER_LABEL * count > rows:
        return f"{count} of {rows} responses are distinct; a label has {_ROWS_PER_LABEL} rows or more, on average"
    if count < _FEWEST_LABELS:
        return f"there are {count} distinct responses; tasks of a few of them need {_FEWEST_LABELS} or more"
    return None


def split_labels(labels_N: np.ndarray, *, unseen: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(seen, unseen): the labels that episodes are made of, and the share that is kept from them. Either has two or
    more; only where the share is 0, none is kept.

    Raises:
        NoEpisodes: responses are no labels, or too few.
    """
    if (problem := why_no_labels(labels_N)) is not None:
        raise NoEpisodes(problem)
    mixed = rng.permutation(np.unique(labels_N))
    count = min(max(2, round(unseen * len(mixed))), len(mixed) - 2) if unseen > 0 else 0
    return np.sort(mixed[count:]), np.sort(mixed[:count])


def few_labels(
    prompts_N: np.ndarray,
    labels_N: np.ndarray,
    among: np.ndarray,
    *,
    num_labels: tuple[int, int],
    num_demonstrations: int,
    num_episodes: int,
    rng: np.random.Generator,
) -> Shown:
    """``num_episodes`` of every row with a label of ``among``, each a task of its own: that label and others of
    ``among``, ``num_labels`` (least and most) in all, of which the demonstrations are rows.

    Each label is shown once before one is shown again; where there are more labels than demonstrations, some of them,
    the row's as well, are not shown. There are fewer demonstrations only where the labels have too few rows.
    """
    rows_of = {label: np.flatnonzero(labels_N == label) for label in among.tolist()}
    rows = np.tile(np.flatnonzero(np.isin(labels_N, among)), num_episodes)

    def drawn(row: int) -> np.ndarray:
        others = among[among != labels_N[row]]
        count = int(rng.integers(num_labels[0], num_labels[1] + 1))
        task = rng.permutation([labels_N[row], *rng.choice(others, count - 1, replace=False)])
        others_of = (pile[prompts_N[pile] != prompts_N[row]] for pile in map(rows_of.__getitem__, task.tolist()))
        # Piles of more labels than there are demonstrations would not come to their turn.
        piles = itertools.islice((rng.permutation(pile) for pile in others_of if len(pile)), num_demonstrations)
        return np.fromiter(itertools.islice(_in_turn(list(piles)), num_demonstrations), dtype=np.int64)

    return Shown(rows, [drawn(row) for row in rows.tolist()])


def varied_rows(labels_N: np.ndarray, *, num_demonstrations: int, rng: np.random.Generator) -> np.ndarray:
    """Rows to stand before any prompt: of as many labels as there can be."""
    mixed = rng.permutation(len(labels_N))
    piles = [mixed[labels_N[mixed] == label] for label in rng.permutation(np.unique(labels_N))]
    return np.fromiter(itertools.islice(_in_turn(piles), num_demonstrations), dtype=np.int64)


def _in_turn(piles: Sequence[np.ndarray]) -> Iterator[int]:
    """One of each pile, then a second one of each that has more, and so on."""
    turns = itertools.zip_longest(*(pile.tolist() for pile in piles))
    return (row for turn in turns for row in turn if row is not None)
