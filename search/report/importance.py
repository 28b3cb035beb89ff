"""Which settings quality depended on in a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.records import Record
from search.run import num_layers
from spaces.objectives import OBJECTIVES
from spaces.space import CUT

MIN_TRIALS = 8
_TREES, _REPEATS = 100, 10


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares that sum to 1, largest first; empty, with a sentence that says why, where there is too little to go by."""

    shares: tuple[tuple[str, float], ...]
    num_trials: int
    explained: float
    """R² on trials that a tree has not seen (out of bag); at most 1, and below 0 where the model explains nothing."""
    note: str


def importance(records: Sequence[Record], metric: str) -> Importance:
    """Permutation importance [Breiman2001] of each setting for quality, in a forest fitted to the complete trials.

    Quality, called ``metric``, enters by its score. One row a trial, at the first precision and target that it has. A
    setting that a strategy does not read stands at its median there, so that it tells nothing of the strategy.
    """
    rows = _one_a_trial(records)
    names, table = _table(rows)
    if len(rows) < MIN_TRIALS or not names:
        note = f"With {len(rows)} complete trials there is too little to go by; {MIN_TRIALS} are needed."
        return Importance(shares=(), num_trials=len(rows), explained=0.0, note=note)
    scores = [OBJECTIVES[metric].score(record.quality) for record in rows if record.quality is not None]
    drops, explained = _permute(table, np.array(scores))
    drops = np.maximum(drops, 0.0)
    total = float(drops.sum()) or 1.0
    shares = sorted(((name, float(d) / total) for name, d in zip(names, drops, strict=True)), key=lambda s: -s[1])
    return Importance(shares=tuple(shares), num_trials=len(rows), explained=explained, note=_note(explained))


def _note(explained: float) -> str:
    if explained <= 0.1:
        return "The settings hardly explain quality in these trials: read the order as a hint at most."
    return ""


def _one_a_trial(records: Sequence[Record]) -> list[Record]:
    found: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (r.trial_id, r.precision, r.target)):
        if record.status == "complete" and record.quality is not None:
            found.setdefault(record.trial_id, record)
    return list(found.values())


def _table(rows: Sequence[Record]) -> tuple[list[str], NDArray[np.float64]]:
    """Settings that vary, and rows × settings."""
    settings = [{**row.params, "strategy": row.strategy, "size": num_layers(row)} for row in rows]
    for row in settings:
        row.pop("student_layers", None)
    largest = max((row["size"] or 0 for row in settings), default=0)
    for row in settings:
        if row.get("student", CUT) != CUT:
            # Layers of another model do not compare; which model it is tells more.
            del row["size"]
        else:
            # How many layers the base has is not written in a plan; a forest only asks for the order.
            row["size"] = row["size"] or largest + 1
    names = sorted({name for row in settings for name in row})
    columns = {name: _numbers([row.get(name) for row in settings]) for name in names}
    varying = [name for name in names if np.ptp(columns[name]) > 0]
    return varying, np.array([columns[name] for name in varying]).T


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """Numbers as they are, texts by their place in the alphabet, what a strategy does not read at the median."""
    texts = sorted({value for value in values if isinstance(value, str)})
    found = np.array(
        [np.nan if v is None else texts.index(v) if isinstance(v, str) else v for v in values], dtype=float
    )
    return np.where(np.isnan(found), np.nanmedian(found), found)


def _permute(table: NDArray[np.float64], quality: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    # One second to import, and only reports of runs with enough trials need it.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    forest = RandomForestRegressor(n_estimators=_TREES, oob_score=True, random_state=0, min_samples_leaf=2)
    forest.fit(table, quality)
    found = permutation_importance(forest, table, quality, n_repeats=_REPEATS, random_state=0)
    return found.importances_mean, float(forest.oob_score_)
