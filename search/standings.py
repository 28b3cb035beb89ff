"""The race as records and live reports tell it. The same records and reports, the same race."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from search.clerk import Standing
from search.entries import Entry, Growing, Variant
from search.goals import CostTable, Goals
from search.memory_ledger import Proposal
from search.race import Point, Race
from search.records import Curve, Record
from search.tracks import Tracks

_STANDARD_ERRORS = 1.96
"""From a measured quality to the end of its 95 % interval."""


class Standings:
    """The race of a search, kept up to date as plans report and end."""

    def __init__(self, goals: Goals, costs: CostTable) -> None:
        self._teller = _Teller(goals=goals, costs=costs)
        self._entries: dict[int, Entry] = {}
        self._tracks = Tracks()
        self.measure_by(None)

    @property
    def race(self) -> Race:
        """As it is now; it changes with the next report."""
        return Race(entries=self._entries, points=self._front, floor=self._floor, tracks=self._tracks)

    def measure_by(self, baseline: float | None) -> None:
        """Constraints are relative to this from now on. Plans that were settled are to be settled once more."""
        self._baseline, self._floor = baseline, self._teller.floor(baseline)
        self._front: list[Point] = []

    def hear(self, proposal: Proposal, standing: Standing) -> None:
        """A plan under way has reported this much so far."""
        if not standing.curve:
            self.forget(proposal.number)
            return
        self._entries[proposal.number] = entry = self._teller.of_standing(proposal, standing)
        self._tracks.extend(proposal.number, entry)

    def forget(self, number: int) -> None:
        """A plan is under way no more."""
        self._entries.pop(number, None)
        self._tracks.remove(number)

    def settle(self, proposal: Proposal, records: Sequence[Record]) -> None:
        """A plan has all of its records."""
        if records[0].curve:
            self._entries[proposal.number] = entry = self._teller.of_records(proposal, records)
            self._tracks.put(proposal.number, entry)
        for record in records:
            is_there = record.status == "complete" and self._teller.goals.feasible(record, baseline=self._baseline)
            if is_there and (point := self._teller.point(record)) is not None:
                self._join(point)

    def _join(self, point: Point) -> None:
        if not any(other.beats(point) for other in self._front):
            self._front = [other for other in self._front if not point.beats(other)] + [point]


@dataclass(frozen=True, kw_only=True)
class _Teller:
    """Tells of proposals, records and reports in the race's words."""

    goals: Goals
    costs: CostTable

    def of_records(self, proposal: Proposal, records: Sequence[Record]) -> Entry:
        """A plan that has come to an end."""
        first, complete = records[0], [record for record in records if record.status == "complete"]
        total = first.train_seconds or 0.0
        seconds = first.curve_seconds or [fidelity * total for fidelity, _ in first.curve]
        end = max(map(self.quality, complete), default=math.nan)
        return self._entry(proposal, first.curve, seconds, total=total, end=end)

    def of_standing(self, proposal: Proposal, standing: Standing) -> Entry:
        """A plan under way. Stages that it found done count as nothing."""
        return self._entry(proposal, standing.curve, standing.curve_seconds, total=standing.trained_s, end=math.nan)

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

    def _entry(self, proposal: Proposal, curve: Curve, seconds: Sequence[float], *, total: float, end: float) -> Entry:
        grown = [(fidelity, spent) for (fidelity, _), spent in zip(curve, seconds, strict=True)]
        growing = Growing(before=max(0.0, total - seconds[-1]), curve=grown)
        variants = self._variants(proposal)
        first = {variant.target: variant.costs for variant in reversed(variants)}
        nowhere = (math.inf,) * len(variants[0].costs)
        return Entry(
            curve=[(fidelity, self._score(value)) for fidelity, value in curve],
            strategy=proposal.draw.strategy,
            variants=variants,
            known=tuple(cost for target in self.goals.targets for cost in first.get(target, nowhere)),
            learned=[growing if self.goals.columns[name].grows else None for name in self._learned],
            end=end,
        )

    def _variants(self, proposal: Proposal) -> list[Variant]:
        shape = proposal.draw.plan.shape
        return [
            Variant(target=target, costs=self._known(self.costs[(shape, precision, target)].get, target))
            for precision, target in proposal.variants
        ]

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
