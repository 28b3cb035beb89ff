"""Samplers and schedulers compared: every pair on the same table, with each number of workers, from every seed."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product

from search.budget import Limits
from search.scheduler import Scheduler
from search.simulation.problem import Problem
from search.simulation.simulate import Maker, simulate
from search.simulation.table import Table, read_table
from search.simulation.trace import Trace, Yardstick, trace

SINGLE = ":single"
"""Behind a sampler's name: the fan-out is one more parameter, and each variant is trained for itself."""


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """A sampler with a scheduler."""

    sampler: str
    scheduler: str

    @property
    def name(self) -> str:
        """In words."""
        return self.sampler if self.scheduler == "none" else f"{self.sampler} + {self.scheduler}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and for how long."""

    problem: Problem
    samplers: Mapping[str, Maker]
    """By name, which may end in ``SINGLE``; functions of a module, because processes look them up."""
    schedulers: Mapping[str, Callable[[], Scheduler]]
    """By name; made anew for each search, since a benchmark's may remember what it was asked."""
    workers: Sequence[int]
    num_seeds: int
    limits: Limits
    """Of every search; a device hour is 3,600 of the table's unit of cost."""

    @property
    def competitors(self) -> list[Competitor]:
        """Every pair."""
        return [Competitor(sampler=sampler, scheduler=of) for sampler, of in product(self.samplers, self.schedulers)]

    @property
    def num_searches(self) -> int:
        """How many there are to run."""
        return len(self.competitors) * len(self.workers) * self.num_seeds

    @property
    def _cells(self) -> list["Cell"]:
        return [
            Cell(competitor=competitor, workers=workers, seed=seed)
            for seed, workers, competitor in product(range(self.num_seeds), self.workers, self.competitors)
        ]

    def run(self, *, jobs: int = 1) -> Iterator[tuple["Cell", Trace]]:
        """Every search with what came of it, as they end; ``jobs`` of them at a time, each in a process of its own."""
        if jobs == 1:
            bench = _Bench(self)
            yield from ((cell, bench.search(cell)) for cell in self._cells)
            return
        # Not forked: a process that has read a table may have threads.
        pool = ProcessPoolExecutor(
            jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(self,)
        )
        try:
            cells = {pool.submit(_search, cell): cell for cell in self._cells}
            yield from ((cells[done], done.result()) for done in as_completed(cells))
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One search of a study."""

    competitor: Competitor
    workers: int
    seed: int


class _Bench:
    """Carries searches of one study out."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._table = read_table(study.problem)
        self._yardstick = Yardstick(self._table)
        self._unfolded: Table | None = None

    def search(self, cell: Cell) -> Trace:
        """One of them, measured."""
        competitor = cell.competitor
        simulated = simulate(
            self._table_for(competitor.sampler),
            sampler=self._study.samplers[competitor.sampler],
            seed=cell.seed,
            scheduler=self._study.schedulers[competitor.scheduler](),
            workers=cell.workers,
            limits=self._study.limits,
        )
        return trace(simulated, self._yardstick)

    def _table_for(self, sampler: str) -> Table:
        if not sampler.endswith(SINGLE):
            return self._table
        self._unfolded = self._unfolded or self._table.unfolded()
        return self._unfolded


_BENCHES: list[_Bench] = []
"""Of this process: the one that it was set up with."""


def _set_up(study: Study) -> None:
    _BENCHES[:] = [_Bench(study)]


def _search(cell: Cell) -> Trace:
    return _BENCHES[0].search(cell)


def read_yardstick(problem: Problem) -> Yardstick:
    """What searches of ``problem`` are measured by.

    Raises:
        SpecError: the table does not hold what the problem says, or nothing of it is within the reference.
    """
    yardstick = Yardstick(read_table(problem))
    assert yardstick.whole > 0
    return yardstick
