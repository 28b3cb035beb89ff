"""How the plans of a search stand at one moment: what a scheduler decides from. A pure function of records and reports.

Qualities are scores, on a scale where more is better and equal steps matter alike (``Objective.score``). Of costs less
is better.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from search.clerk import Standing
from search.goals import CostTable, Goals
from search.memory_ledger import Proposal
from search.records import Curve, Record

_STANDARD_ERRORS = 1.96
"""From a measured quality to the end of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a plan's training would yield at one precision, on one target."""

    target: str
    costs: tuple[float, ...]
    """Those that are known before training."""


@dataclass(frozen=True, kw_only=True)
class Growing:
    """A cost that rises as a plan is trained, as far as it has come."""

    before: float = 0.0
    """Of the stages before the last one."""
    curve: Curve
    """(fidelity, cost) of the last stage."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A complete variant that breaks no constraint."""

    target: str
    quality: float
    """One standard error below what was measured: what a rival must be thought to miss before it is given up."""
    costs: tuple[float, ...]
    """The known ones and the learned ones."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """All plans that have reported, and what came of those that are complete."""

    curves: Mapping[int, Curve]
    """By proposal number, finished or not."""
    variants: Mapping[int, Sequence[Variant]]
    """Of each plan with a curve."""
    strategies: Mapping[int, str] = field(default_factory=dict)
    """Their names, of each plan with a curve. Left out: all are of one."""
    learned: Mapping[int, Sequence[Growing | None]] = field(default_factory=dict)
    """Learned costs of each plan with a curve; None for one that shows at the end alone. Left out: there are none."""
    ends: Mapping[int, float] = field(default_factory=dict)
    """Quality of each complete plan, at its best precision."""
    points: Sequence[Point] = ()
    """Variants of all complete plans."""
    floor: float = -math.inf
    """Quality below which the constraints forbid a plan."""

    def places(self, fidelity: float) -> dict[int, tuple[float, ...]]:
        """The place of each plan that has been at ``fidelity``, but for qualities that are no number."""
        return {
            number: self.place(number, fidelity)
            for number, curve in self.curves.items()
            if (quality := value_at(curve, fidelity)) is not None and math.isfinite(quality)
        }

    def place(self, number: int, fidelity: float) -> tuple[float, ...]:
        """A plan as it was at ``fidelity``: quality, known costs on each target, learned costs so far.

        Known costs are those of its first variant there; precisions rank plans alike.
        """
        quality = value_at(self.curves[number], fidelity)
        assert quality is not None, "it has been there"
        return (quality, *self._known(number), *self._so_far(number, fidelity))

    def is_reached(self, target: str, *, quality: float, costs: Sequence[float]) -> bool:
        """Whether a complete variant on the target is as good as ``quality`` at no higher cost."""
        if target not in self._points:
            return False
        found = self._points[target]
        return bool(((found[:, 0] >= quality) & (found[:, 1:] <= costs).all(axis=1)).any())

    def least_learned(self, index: int) -> float:
        """The least that a learned cost has come to in any complete variant; -inf where there is none."""
        num_learned = len(next(iter(self.learned.values())))
        return min((point.costs[index - num_learned] for point in self.points), default=-math.inf)

    @cached_property
    def _points(self) -> dict[str, NDArray[np.float64]]:
        rows = defaultdict(list)
        for point in self.points:
            rows[point.target].append((point.quality, *point.costs))
        return {target: np.array(found) for target, found in rows.items()}

    def _known(self, number: int) -> list[float]:
        variants = self.variants[number]
        first = {variant.target: variant.costs for variant in reversed(variants)}
        nowhere = (math.inf,) * len(variants[0].costs)
        return [cost for target in self._targets for cost in first.get(target, nowhere)]

    @cached_property
    def _targets(self) -> list[str]:
        return sorted({variant.target for variants in self.variants.values() for variant in variants})

    def _so_far(self, number: int, fidelity: float) -> list[float]:
        growing = [cost for cost in self.learned.get(number, ()) if cost is not None]
        return [cost.before + (value_at(cost.curve, fidelity) or 0.0) for cost in growing]


def value_at(curve: Curve, fidelity: float) -> float | None:
    """The value at ``fidelity``, between reports on the line through them; None before the first, after the last."""
    if not curve or not curve[0][0] <= fidelity <= curve[-1][0]:
        return None
    index = bisect_left(curve, fidelity, key=itemgetter(0))
    after, value = curve[index]
    if after == fidelity:
        return value
    before, start = curve[index - 1]
    return start + (value - start) * (fidelity - before) / (after - before)


class Standings:
    """The race of a search, kept up to date as plans report and end."""

    def __init__(self, goals: Goals, costs: CostTable) -> None:
        self._teller = _Teller(goals=goals, costs=costs)
        self._told: dict[int, tuple[Curve, list[Growing | None]]] = {}
        self._variants: dict[int, list[Variant]] = {}
        self._strategies: dict[int, str] = {}
        self._ends: dict[int, float] = {}
        self._points: dict[int, list[Point]] = {}
        self._floor = -math.inf

    @property
    def race(self) -> Race:
        """As it is now."""
        return Race(
            curves={number: curve for number, (curve, _) in self._told.items()},
            learned={number: learned for number, (_, learned) in self._told.items()},
            variants=self._variants,
            strategies=self._strategies,
            ends=self._ends,
            points=[point for points in self._points.values() for point in points],
            floor=self._floor,
        )

    def hear(self, proposal: Proposal, standing: Standing) -> None:
        """A plan under way has reported this much so far."""
        self._tell(proposal, self._teller.of_standing(standing) if standing.curve else None)

    def forget(self, number: int) -> None:
        """A plan is under way no more."""
        self._told.pop(number, None)

    def settle(self, proposal: Proposal, records: Sequence[Record], *, baseline: float | None) -> None:
        """A plan has all of its records. Once more, when the baseline has come to be known."""
        number, teller = proposal.number, self._teller
        complete = [record for record in records if record.status == "complete"]
        self._tell(proposal, teller.of_record(records[0]) if records[0].curve else None)
        if complete:
            self._ends[number] = max(map(teller.quality, complete))
        feasible = (record for record in complete if teller.goals.feasible(record, baseline=baseline))
        self._points[number] = [point for record in feasible if (point := teller.point(record)) is not None]
        self._floor = teller.floor(baseline)

    def _tell(self, proposal: Proposal, told: tuple[Curve, list[Growing | None]] | None) -> None:
        number = proposal.number
        if told is None:
            self._told.pop(number, None)
            return
        self._told[number] = told
        if number not in self._variants:
            self._variants[number] = self._teller.variants(proposal)
            self._strategies[number] = proposal.draw.strategy


@dataclass(frozen=True, kw_only=True)
class _Teller:
    """Tells of proposals, records and reports in the race's words."""

    goals: Goals
    costs: CostTable

    def variants(self, proposal: Proposal) -> list[Variant]:
        shape = proposal.draw.plan.shape
        return [
            Variant(target=target, costs=self._known(self.costs[(shape, precision, target)].get, target))
            for precision, target in proposal.variants
        ]

    def of_record(self, record: Record) -> tuple[Curve, list[Growing | None]]:
        """Curve and learned costs of a plan that has come to an end."""
        total = record.train_seconds or 0.0
        seconds = record.curve_seconds or [fidelity * total for fidelity, _ in record.curve]
        return self._told(record.curve, seconds, total=total)

    def of_standing(self, standing: Standing) -> tuple[Curve, list[Growing | None]]:
        """Curve and learned costs of a plan under way. Stages that it found done count as nothing."""
        return self._told(standing.curve, standing.curve_seconds, total=standing.spent)

    def quality(self, record: Record) -> float:
        return self._score(math.nan if record.quality is None else record.quality)

    def point(self, record: Record) -> Point | None:
        """The variant of a complete record; None where a learned cost of it is not known."""
        learned = [record.value(name, self.goals.metric) for name in self._learned]
        if any(cost is None or not math.isfinite(cost) for cost in learned):
            return None
        known = self._known(lambda name: record.value(name, self.goals.metric), record.target)
        costs = (*known, *(float(cost) for cost in learned if cost is not None))
        return Point(target=record.target, quality=self._at_least(record), costs=costs)

    def floor(self, baseline: float | None) -> float:
        """The strictest of the constraints on quality."""
        better = ">" if self._score(2.0) > self._score(1.0) else "<"
        limits = [
            constraint.limit(baseline)
            for constraint in self.goals.constraints
            if constraint.name == self.goals.metric and constraint.op.startswith(better)
        ]
        return max((self._score(limit) for limit in limits if limit is not None), default=-math.inf)

    def _told(self, curve: Curve, seconds: Sequence[float], *, total: float) -> tuple[Curve, list[Growing | None]]:
        told = [(fidelity, self._score(value)) for fidelity, value in curve]
        grown = [(fidelity, spent) for (fidelity, _), spent in zip(curve, seconds, strict=True)]
        growing = Growing(before=max(0.0, total - seconds[-1]), curve=grown)
        return told, [growing if self.goals.columns[name].grows else None for name in self._learned]

    def _at_least(self, record: Record) -> float:
        quality = self.quality(record)
        ends = [self._score(end) for end in (record.quality_low, record.quality_high) if end is not None]
        return quality - max(0.0, quality - min(ends, default=quality)) / _STANDARD_ERRORS

    def _known(self, value: Callable[[str], float | None], target: str) -> tuple[float, ...]:
        """A cost that nothing tells is the same for all."""
        names = (name for name, of in self.goals.axes if of == target)
        return tuple(float(value(name) or 0.0) for name in names)

    @cached_property
    def _learned(self) -> list[str]:
        return [name for name, target in self.goals.axes if target is None and name != self.goals.metric]

    def _score(self, value: float) -> float:
        return self.goals.columns[self.goals.metric].score(value)
