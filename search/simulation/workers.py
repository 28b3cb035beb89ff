"""Virtual workers: they carry a plan out by reading what was recorded of it, or what is foreseen."""

import math
from collections.abc import Callable, Iterator, Mapping

from search.conductor import Conductor, Setup
from search.memory_ledger import MemoryLedger, Proposal
from search.sampler import Propose
from search.scheduler import Scheduler
from search.simulation.clock import Clock, Nobody, Work, Workers
from search.simulation.course import Course
from spaces.draw import Draw
from trainers.progress import Progress
from trainers.results import Measured, Result

CourseOf = Callable[[Draw], Course]
"""How the training of a draw's plan goes; the same whenever it is asked."""


class Recordings:
    """Carries plans out, and knows which shared beginnings are there already."""

    def __init__(self, course_of: CourseOf) -> None:
        self._course_of = course_of
        self._there: set[str] = set()
        self._checkpoints: dict[str, int] = {}
        """Steps that were trained, by fingerprint of the plan."""

    def missing(self, draw: Draw) -> set[str]:
        """Parts of a draw's plan that still have to be trained: its own end among them."""
        return {*self._beginnings(self._course_of(draw)), draw.fingerprint}

    def share_left(self, draw: Draw) -> float:
        """The share of a training's whole cost that is still to be spent; 1 for one that costs nothing."""
        course = self._course_of(draw)
        there = sum(cost for part, cost in course.parts.items() if part in self._there)
        return 1 - there / course.cost if course.cost else 1.0

    def carry_out(self, proposal: Proposal) -> Work:
        """One plan on a worker: its beginnings that are not there yet, then itself, with a report at each step."""
        course = self._course_of(proposal.draw)
        beginnings, done = self._beginnings(course), self._checkpoints.pop(proposal.draw.fingerprint, 0)
        for pause, progress in _reports(course, beginnings, done=done):
            goes_on = yield pause, progress
            if goes_on is None and progress.final:
                self._checkpoints[proposal.draw.fingerprint] = progress.epoch
            if not goes_on:
                return None
            if not progress.final:
                self._there.add(progress.kind)
        self._there.add(proposal.draw.fingerprint)
        return _result(course, spent=course.costs[-1] + sum(beginnings.values()))

    def release(self, draw: Draw) -> None:
        """The checkpoint of a draw's plan is not kept any more."""
        self._checkpoints.pop(draw.fingerprint, None)

    def _beginnings(self, course: Course) -> Mapping[str, float]:
        """Those that are not there, with what each costs."""
        return {part: cost for part, cost in course.parts.items() if part not in self._there}


def _reports(course: Course, beginnings: Mapping[str, float], *, done: int) -> Iterator[tuple[float, Progress]]:
    """(seconds since the report before, report); a beginning's name is the kind of its stage. The steps that are
    ``done`` are in a checkpoint.
    """
    count, beside = len(beginnings) + 1, course.overhead
    for stage, (part, cost) in enumerate(beginnings.items()):
        yield beside + cost, _progress(stage, count, kind=part, epoch=1, epochs=1, seconds=cost)
        beside = 0.0
    before = 0.0
    for step, quality, cost in zip(course.steps, course.qualities, course.costs, strict=True):
        told = {"epoch": step, "epochs": course.steps[-1], "final": True, "restored": step <= done, "seconds": cost}
        seen = quality if math.isfinite(quality) else None
        spent = 0.0 if step <= done else cost - before
        yield beside + spent, _progress(count - 1, count, quality=seen, **told)
        before, beside = cost, 0.0


def _progress(stage: int, num_stages: int, **told: object) -> Progress:
    defaults = {"kind": "training", "final": False, "quality": None, "train_loss": math.nan}
    return Progress(stage=stage, num_stages=num_stages, **(defaults | told))  # type: ignore[arg-type]


def _result(course: Course, *, spent: float) -> Result:
    variants = (
        Measured(precision=name, value=found.quality, low=found.quality, high=found.quality, predictions=())
        for name, found in course.variants.items()
    )
    return Result(
        variants=tuple(variants),
        curve=course.curve,
        curve_seconds=course.curve_costs,
        train_seconds=course.cost,
        spent_seconds=spent,
        train_memory_mb=math.nan,
        overfit=math.nan,
        forgetting=None,
        overhead_seconds=course.overhead,
        host="virtual",
        notes=course.learned,
    )


def search_through(
    setup: Setup, recordings: Recordings, *, sampler: Propose, scheduler: Scheduler, ledger: MemoryLedger, clock: Clock
) -> None:
    """Carry a whole search out in virtual time, with a worker for each of its seats."""
    conductor = Conductor(
        setup,
        ledger=ledger,
        sampler=sampler,
        scheduler=scheduler,
        missing=recordings.missing,
        release=recordings.release,
        listener=Nobody(),
        clock=clock,
    )
    Workers(conductor, clock, setup.max_seats, recordings.carry_out).drive()
