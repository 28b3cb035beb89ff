"""Which plans to stop early. A decision is a pure function of the race, and one rule judges who comes early and late.

Serving costs are known before training, so that what is asked half-way is of quality alone: can it still become what
no complete variant beats, at one of the costs that the plan will have?
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from search.entries import Entry, Growing, Numbers, Places, value_at
from search.pareto import domination_ranks
from search.race import Race
from search.records import Curve


class Scheduler(Protocol):
    """Judges plans by their reports."""

    @property
    def reason(self) -> str:
        """What is said of a plan that it ends."""

    def is_due(self, curve: Curve) -> bool:
        """Whether a plan is to be judged after the last point of its curve."""

    def goes_on(self, number: int, race: Race) -> bool:
        """Whether plan ``number`` goes on after the last point of its curve."""

    def reach(self, number: int, race: Race) -> float | None:
        """How far beyond the front plan ``number`` may come, if it goes on; None: nothing tells."""


@dataclass(frozen=True, kw_only=True)
class ReachesFront:
    """At each rung a plan goes on if it may end on the front of the complete variants, or is among the best so far.

    It may end on the front if none of the complete variants is as good, at no higher cost, as the best that can be
    hoped for it: quality U at the known costs of one of its variants. With the k complete plans of its strategy, or
    where those are too few of all, whose quality was nearest to its own at this share, and their gains g from there on,

        U = its quality + max(0, largest g + standard deviation of g / √k).

    A plan that is like these peers gains more than the largest of k gains with probability 1 / (k + 1) [Vovk2005]; the
    last term is for few peers, and for noise. A learned cost that grows with training is hoped for alike: what it has
    come to, times the smallest factor that it grew by with these peers, less the same term; one that shows at the end
    alone is hoped to be the smallest of all. Stops what is not expected to get on, as [Domhan2015] do for one
    objective, with peers' curves in the place of a model of curves.

    Among the best so far are the front of all that have been at this share, finished or not, by quality now, known
    costs and learned costs so far; and the best tenth of the plans that are nearest in costs.
    """

    reason: ClassVar[str] = "at its costs it is not expected to reach the front"
    rungs: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the last stage; before the first one no plan is stopped (grace period)."""
    num_peers: int = 8
    """k."""
    min_peers: int = 4
    """Nothing is decided before so many complete plans have been at the rung."""
    stratum: float = 0.25
    """Share of the plans that count as near in costs."""
    best: float = 0.1
    """Share of the stratum that goes on."""

    def is_due(self, curve: Curve) -> bool:
        """Whether a plan is to be judged after the last point of its curve."""
        return _rung_reached(curve, self.rungs) is not None

    def goes_on(self, number: int, race: Race) -> bool:
        """Whether plan ``number`` goes on after the last point of its curve."""
        entry = race.entries[number]
        if not self.is_due(entry.curve):
            return True
        fidelity, quality = entry.curve[-1]
        if not math.isfinite(quality):
            return False
        places = race.places(fidelity)
        peers = self._peers_of(entry, places)
        if len(peers) < self.min_peers:
            return True
        return self._lead(entry, race, places, peers) > 0 or self._is_among_the_best(number, places)

    def reach(self, number: int, race: Race) -> float | None:
        """By how much the best that can be hoped for plan ``number`` is better than what is complete at no higher cost,
        on the scale of ``Objective.score``, at the variant where that is most; zero or less: it is not expected to
        reach the front. None: nothing tells.
        """
        entry = race.entries.get(number)
        if entry is None or not math.isfinite(entry.curve[-1][1]):
            return None
        places = race.places(entry.curve[-1][0])
        peers = self._peers_of(entry, places)
        return None if len(peers) < self.min_peers else self._lead(entry, race, places, peers)

    def _peers_of(self, entry: Entry, places: Places) -> NDArray[np.int64]:
        """Indices of the complete plans that are most like it, and of all that are as near as the last of them."""
        complete = np.flatnonzero(np.isfinite(places.ends))
        if len(complete) < self.min_peers:
            return complete
        apart = np.abs(places.qualities[complete] - entry.curve[-1][1])
        other = places.strategies[complete] != entry.strategy
        order = np.lexsort((apart, other))
        last = order[min(self.num_peers, len(order)) - 1]
        return complete[(other < other[last]) | ((other == other[last]) & (apart <= apart[last]))]

    def _lead(self, entry: Entry, race: Race, places: Places, peers: NDArray[np.int64]) -> float:
        """See ``reach``; below the floor at most by what it lacks to that."""
        fidelity, quality = entry.curve[-1]
        best = quality + max(0.0, _largest(places.ends[peers] - places.qualities[peers]))
        costs = _least_learned(entry, race, places.numbers[peers], fidelity=fidelity)
        lead = max(
            race.lead(variant.target, quality=best, costs=(*variant.costs, *costs)) for variant in entry.variants
        )
        return lead if best >= race.floor else min(lead, best - race.floor)

    def _is_among_the_best(self, number: int, places: Places) -> bool:
        quality, costs = places.qualities, places.costs
        own = int(np.flatnonzero(places.numbers == number)[0])
        better = quality > quality[own]
        ahead = (better | (quality == quality[own])) & (costs <= costs[own]).all(axis=1)
        if not (ahead & (better | (costs < costs[own]).any(axis=1))).any():
            return True
        near = self._stratum_of(own, costs)
        return bool(better[near].sum() < self.best * near.sum())

    def _stratum_of(self, own: int, costs: Numbers) -> NDArray[np.bool_]:
        """The plans whose ranks by each cost are nearest to its own, and all that are as near as the last of them."""
        apart = np.zeros(len(costs))
        for column in costs.T:
            ranks = _ranks(column)
            apart = np.maximum(apart, np.abs(ranks - ranks[own]))
        size = max(self.min_peers, int(self.stratum * len(costs)))
        return np.asarray(apart <= np.partition(apart, size - 1)[size - 1])


@dataclass(frozen=True, kw_only=True)
class ParetoHalving:
    """At each rung a plan goes on if it is on the front of its rung or among the best 1/``reduction_factor``.

    Asynchronous successive halving with ranks by non-domination [Schmucker2021] of quality and costs.
    """

    reason: ClassVar[str] = "others are better at this share of training for no higher cost"
    rungs: tuple[float, ...] = (0.3, 0.6)
    """Shares of the last stage; before the first one no plan is stopped (grace period)."""
    reduction_factor: float = 2.0
    min_peers: int = 4
    """A rung decides nothing before this many plans have reached it."""

    def is_due(self, curve: Curve) -> bool:
        """Whether a plan is to be judged after the last point of its curve."""
        return _rung_reached(curve, self.rungs) is not None

    def goes_on(self, number: int, race: Race) -> bool:
        """Whether plan ``number`` goes on after the last point of its curve."""
        rung = _rung_reached(race.entries[number].curve, self.rungs)
        if rung is None:
            return True
        reached = {other: _first(entry.curve, rung) for other, entry in race.entries.items()}
        if sum(at is not None for at in reached.values()) < self.min_peers:
            return True
        places = {
            other: place
            for other, at in reached.items()
            if at is not None and (place := race.entries[other].at(at)) is not None
        }
        if number not in places:
            return False
        numbers = sorted(places)
        ranks = domination_ranks(np.array([[-places[other][0], *places[other][1:]] for other in numbers]))
        own = int(ranks[numbers.index(number)])
        ahead = int(np.sum(ranks < own))
        return own == 0 or ahead < len(numbers) / self.reduction_factor

    def reach(self, number: int, race: Race) -> None:
        """Ranks tell nothing of ends."""


@dataclass(frozen=True)
class NeverStop:
    """Lets every plan finish."""

    reason: ClassVar[str] = ""

    def is_due(self, curve: Curve) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def goes_on(self, number: int, race: Race) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def reach(self, number: int, race: Race) -> None:
        """Nothing is asked of plans, so nothing is told."""


SCHEDULERS: dict[str, type[Scheduler]] = {
    "known_cost": ReachesFront,
    "pareto_halving": ParetoHalving,
    "none": NeverStop,
}


def make_scheduler(name: str) -> Scheduler:
    """The scheduler called ``name``, one of ``SCHEDULERS``."""
    return SCHEDULERS[name]()


def _rung_reached(curve: Curve, rungs: Sequence[float]) -> float | None:
    """The last of the rungs that the last report has reached and the one before had not."""
    fidelity = curve[-1][0]
    before = curve[-2][0] if len(curve) > 1 else 0.0
    reached = [rung for rung in rungs if before < rung <= fidelity]
    return reached[-1] if reached and fidelity < 1.0 else None


def _first(curve: Curve, rung: float) -> float | None:
    """Where a curve first is at the rung or past it."""
    return next((fidelity for fidelity, _ in curve if fidelity >= rung), None)


def _ranks(values: Numbers) -> NDArray[np.int64]:
    """Twice the mean rank of each value."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.int64] = (2 * np.cumsum(counts) - counts)[index]
    return ranks


def _largest(values: Numbers) -> float:
    """What a further value like these hardly exceeds."""
    ordered = np.sort(values)
    spread = float(np.std(ordered, ddof=1)) if len(ordered) > 1 else 0.0
    return float(ordered[-1]) + spread / math.sqrt(len(ordered))


def _least_learned(entry: Entry, race: Race, peers: Iterable[int], *, fidelity: float) -> list[float]:
    """The least that each learned cost of a plan is thought to come to."""
    found = []
    for index, cost in enumerate(entry.learned):
        if cost is None:
            found.append(race.least(index - len(entry.learned)))
            continue
        growth = (_growth(race.entries[peer].learned[index], fidelity) for peer in peers)
        factors = np.array([factor for factor in growth if factor is not None])
        factor = -_largest(-factors) if len(factors) else 1.0
        found.append(cost.before + cost.curve[-1][1] * max(1.0, factor))
    return found


def _growth(cost: Growing | None, fidelity: float) -> float | None:
    """The factor by which the cost of the last stage grew from there to its end."""
    if cost is None or not (there := value_at(cost.curve, fidelity)):
        return None
    return cost.curve[-1][1] / there
