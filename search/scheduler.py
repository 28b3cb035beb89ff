"""Which plans to stop early: those that others beat in quality at no higher cost, at the same share of training.

Successive halving with ranks by non-domination, asynchronous [Schmucker2021]. Serving costs are known, so only quality
is compared half-way. A decision is a pure function of the curves; a plan on the front of its rung always goes on, and
one that comes late is judged by the same rule as one that came early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.pareto import domination_ranks
from search.records import Curve


@dataclass(frozen=True, kw_only=True)
class ParetoHalving:
    """At each rung a plan goes on if it is on the front of its rung or among the best 1/``reduction_factor``."""

    rungs: tuple[float, ...] = (0.3, 0.6)
    """Shares of the last stage; before the first one no plan is stopped (grace period)."""
    reduction_factor: float = 2.0
    min_peers: int = 4
    """A rung decides nothing before this many plans have reached it."""

    def goes_on(self, number: int, curves: Mapping[int, Curve], costs: Mapping[int, Sequence[float]]) -> bool:
        """Whether plan ``number`` goes on after the last point of its curve.

        ``curves`` holds every plan's curve, finished or not, more is better; ``costs`` its known costs, minimised.
        """
        rung = self._just_reached(curves[number])
        if rung is None:
            return True
        at_rung = {other: value for other, curve in curves.items() if (value := _value_at(curve, rung)) is not None}
        if len(at_rung) < self.min_peers:
            return True
        return self._among_the_best(number, at_rung, costs)

    def _just_reached(self, curve: Curve) -> float | None:
        fidelity = curve[-1][0]
        before = curve[-2][0] if len(curve) > 1 else 0.0
        reached = [rung for rung in self.rungs if before < rung <= fidelity]
        return reached[-1] if reached and fidelity < 1.0 else None

    def _among_the_best(self, number: int, at_rung: Mapping[int, float], costs: Mapping[int, Sequence[float]]) -> bool:
        numbers = sorted(at_rung)
        ranks = domination_ranks(np.array([[-at_rung[n], *costs[n]] for n in numbers]))
        own = int(ranks[numbers.index(number)])
        ahead = int(np.sum(ranks < own))
        return own == 0 or ahead < len(numbers) / self.reduction_factor


@dataclass(frozen=True)
class NeverStop:
    """Lets every plan finish."""

    def goes_on(self, number: int, curves: Mapping[int, Curve], costs: Mapping[int, Sequence[float]]) -> bool:  # noqa: ARG002
        """Always."""
        return True


Scheduler = ParetoHalving | NeverStop


def _value_at(curve: Curve, rung: float) -> float | None:
    return next((quality for fidelity, quality in curve if fidelity >= rung), None)
