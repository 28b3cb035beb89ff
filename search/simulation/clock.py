"""Virtual time: a conductor with any number of workers whose work takes no time of ours."""

import contextlib
import heapq
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from search.conductor import DONE, Conductor
from search.memory_ledger import Proposal
from search.records import Record
from trainers.progress import Progress
from trainers.results import Result

Work = Generator[tuple[float, Progress], bool | None, Result | str | None]
"""A plan as its worker sees it: yields (seconds until it speaks, report), takes whether it goes on (None: not now),
returns its result, its error, or None where it was ended."""


@dataclass
class Clock:
    """Seconds since the start; ``drive`` moves it."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass
class Workers:
    """What is under way, the earliest report first; of reports at one time, that of the earliest plan."""

    conductor: Conductor
    clock: Clock
    count: int
    carry_out: Callable[[Proposal], Work]
    _reports: list[tuple[float, int, Progress, Work]] = field(default_factory=list)

    def drive(self) -> None:
        """Until the conductor is done and everything has come to its end."""
        asks = True
        while self._reports or asks:
            asks = asks and self._hand_out()
            if self._reports:
                self._take_report()

    def _hand_out(self) -> bool:
        """A plan to each worker that is free; whether there may be more later."""
        while len(self._reports) < self.count:
            proposal = self.conductor.next()
            if isinstance(proposal, str):
                assert proposal == DONE or self._reports, "nothing runs and nothing is handed out"
                return proposal != DONE
            self._go_on(proposal.number, self.carry_out(proposal), answer=None)
        return True

    def _take_report(self) -> None:
        at, number, progress, work = heapq.heappop(self._reports)
        self.clock.now = max(self.clock.now, at)
        if self.conductor.goes_on(number, progress):
            self._go_on(number, work, answer=True)
            return
        with contextlib.suppress(StopIteration):
            work.send(None if self.conductor.is_set_aside(number) else False)

    def _go_on(self, number: int, work: Work, *, answer: bool | None) -> None:
        try:
            pause, progress = work.send(answer)
            heapq.heappush(self._reports, (self.clock.now + pause, number, progress, work))
        except StopIteration as end:
            if isinstance(end.value, str):
                self.conductor.fail(number, end.value)
            else:
                self.conductor.complete(number, end.value)


class Nobody:
    """Listens to nothing."""

    def started(self, proposal: Proposal) -> None:
        """Nothing."""

    def progressed(self, proposal: Proposal, progress: Progress) -> None:
        """Nothing."""

    def finished(self, proposal: Proposal, records: Sequence[Record]) -> None:
        """Nothing."""

    def said(self, text: str) -> None:
        """Nothing."""
