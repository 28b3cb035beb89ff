"""How good a search's front was at each second, and how much sooner one search was where another one ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.pareto import StreamingFront

_SAME = 1e-9
"""Hypervolumes that differ by less are those of the same front, added up in another order."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A deployed model that a search had found."""

    seconds: float
    """Wall time from the start of the search."""
    quality: float
    """Share of right answers."""
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """What hypervolumes are shares of: 1 is always right at once, 0 is no better than guessing, or no faster than the
    slowest. Errors count linearly, latencies by factors.
    """

    guessing: float
    """Share of right answers of one who guesses."""
    quickest_ms: float
    slowest_ms: float

    def place(self, found: Found) -> tuple[float, float]:
        """Error and latency, both minimised; below 1 inside of the box."""
        error = (1 - found.quality) / (1 - self.guessing)
        span = math.log(self.slowest_ms / self.quickest_ms)
        return error, math.log(found.latency_ms / self.quickest_ms) / span


@dataclass(frozen=True, kw_only=True)
class Step:
    """A moment at which the hypervolume grew."""

    seconds: float
    hypervolume: float


def over_time(found: Sequence[Found], box: Box, *, until_s: float) -> list[Step]:
    """The hypervolume from each moment on at which it grew, up to ``until_s``; in whatever order ``found`` is."""
    front, steps = StreamingFront((1.0, 1.0)), list[Step]()
    for one in sorted(found, key=lambda one: one.seconds):
        if one.seconds <= until_s and front.add(box.place(one)) > _SAME:
            steps.append(Step(seconds=one.seconds, hypervolume=front.hypervolume))
    return steps


def final(steps: Sequence[Step]) -> float:
    """The hypervolume at the end."""
    return steps[-1].hypervolume if steps else 0.0


def time_to(steps: Sequence[Step], level: float) -> float:
    """Seconds until the hypervolume was ``level``; inf where it never was."""
    return next((step.seconds for step in steps if step.hypervolume >= level - _SAME), math.inf)


def times_sooner(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """Their time to the hypervolume that they have at their end, over ours to the same; 0 where ours never gets there.

    Theirs is the moment of their last gain, not the end of their budget. NaN where they found nothing.
    """
    if not theirs:
        return math.nan
    return theirs[-1].seconds / time_to(ours, final(theirs))
