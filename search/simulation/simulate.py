"""One search in virtual time: the conductor, sampler, scheduler and ledger of a real one, answered by a table."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from search.budget import Limits
from search.conductor import Setup
from search.goals import CostTable, Goals
from search.history import Outcome
from search.memory_ledger import MemoryLedger
from search.records import Record
from search.sampler import Propose
from search.scheduler import Scheduler
from search.simulation.clock import Clock
from search.simulation.table import Answers, Table
from search.simulation.workers import Recordings, search_through
from spaces.draw import Draw
from spaces.objectives import Objective

TARGET = "table"
"""Where the variants of a table serve: it knows one place."""


def goals_of(table: Table) -> Goals:
    """What a search of ``table`` is after."""
    problem, lowest = table.problem, table.objectives.min(axis=0, initial=math.inf)
    columns = {
        name: Objective(
            name=name,
            direction=problem.quality.direction if name == problem.quality.column else "min",
            unit="",
            known=name in problem.known_costs,
            summary="a column of the table",
            by_factor=bool(least > 0),
            grows=name == problem.train_cost,
        )
        for name, least in zip(problem.objectives, lowest, strict=True)
    }
    return Goals(metric=problem.quality.column, objectives=problem.objectives, targets=(TARGET,), columns=columns)


def costs_of(table: Table) -> CostTable:
    """What ``table`` says of each training before it is trained, under the training's number."""
    return {
        (number, name, TARGET): variant.known
        for number, training in enumerate(table.trainings)
        for name, variant in training.variants.items()
    }


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a sampler is made with."""

    table: Table
    answers: Answers
    """Its trainings that are still to be had."""
    recordings: Recordings
    """Its shared beginnings that are there."""
    goals: Goals
    costs: CostTable
    seed: int
    workers: int


Maker = Callable[[Given], Propose]


@dataclass
class AnsweredSampler:
    """A sampler whose proposals become the trainings that answer them."""

    sampler: Propose
    answers: Answers
    seconds: list[float] = field(default_factory=list)
    """What each proposal took, of our time."""

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The training that answers proposal ``number``; None when the sampler or the table has no more."""
        if not self.answers.num_left:
            return None
        # Not the processor's time: asking for that gives the processor away, on a busy machine for milliseconds.
        began = time.perf_counter()
        found = self.sampler(outcomes, running, number)
        self.seconds.append(time.perf_counter() - began)
        return None if found is None else self.answers.take(found)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of one search."""

    records: Sequence[Record]
    num_trials: int
    proposal_s: Sequence[float]
    """What each proposal took, of our time."""
    driver_s: float
    """What all of it took, of our processor's time."""


def simulate(
    table: Table,
    *,
    sampler: Maker,
    seed: int,
    scheduler: Scheduler,
    workers: int,
    limits: Limits,
) -> Simulated:
    """Search ``table`` with so many virtual workers until ``limits`` or its last training.

    A device hour is 3,600 of the table's unit of cost.
    """
    began, clock, ledger, recordings = time.process_time(), Clock(), MemoryLedger(), Recordings(table.course)
    goals, costs, answers = goals_of(table), costs_of(table), Answers(table)
    given = Given(
        table=table, answers=answers, recordings=recordings, goals=goals, costs=costs, seed=seed, workers=workers
    )
    answered = AnsweredSampler(sampler(given), answers)
    setup = _setup(given, workers=workers, limits=limits)
    search_through(setup, recordings, sampler=answered, scheduler=scheduler, ledger=ledger, clock=clock)
    return Simulated(
        records=ledger.records,
        num_trials=ledger.num_trials,
        proposal_s=answered.seconds,
        driver_s=time.process_time() - began,
    )


def _setup(given: Given, *, workers: int, limits: Limits) -> Setup:
    return Setup(
        goals=given.goals,
        costs=given.costs,
        estimated=frozenset(),
        opening=(),
        baseline="",
        precisions=given.table.variants,
        limits=limits,
        max_seats=workers,
    )
