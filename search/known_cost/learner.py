"""Surrogates with hyperparameters that are fitted now and then, and always to the same outcomes.

A fit takes most of a proposal's time, and a few outcomes more hardly change it. It is made of the outcomes that
finished first, as many as the last step of a geometric series tells, so it is the same whenever it is asked for.
"""

from collections.abc import Callable, Sequence

from search.history import Outcome
from search.known_cost.observations import Observer, Rows
from search.known_cost.surrogate import Fitted, Surrogate

_GROWTH = 1.2

RowsOf = Callable[[Sequence[Outcome]], Rows]


class Learner:
    """Learns from outcomes, in the order in which they finished."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._fits: dict[tuple[str, tuple[tuple[int, str], ...]], Fitted] = {}

    def learn(self, name: str, outcomes: Sequence[Outcome], rows_of: RowsOf) -> tuple[Surrogate, Rows]:
        """A surrogate of what ``rows_of`` tells of the outcomes, and that; ``name`` tells such quantities apart."""
        first = outcomes[: _step(len(outcomes))]
        key = (name, tuple((outcome.number, outcome.precision) for outcome in first))
        if key not in self._fits:
            seen = rows_of(first)
            self._fits[key] = Fitted.to(seen.design, seen.values)
        rows = rows_of(outcomes)
        return Surrogate(rows.design, rows.values, self._fits[key]), rows


def _step(count: int) -> int:
    """The largest step of the series that is at most ``count``."""
    step = min(count, 4)
    while (larger := int(step * _GROWTH) + 1) <= count:
        step = larger
    return step
