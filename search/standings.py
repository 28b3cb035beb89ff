"""The race as records and live reports tell it. The same records and reports, the same race."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from search.clerk import Standing
from search.goals import CostTable, Goals
from search.memory_ledger import Proposal
from search.race import Growing, Point, Race, Variant
from search.records import Curve, Record

_STANDARD_ERRORS = 1.96
"""From a measured quality to the end of its 95 % interval."""


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
