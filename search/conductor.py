"""The search itself: which plan goes next, whether it goes on, and what is written down of it.

Knows no Ray, no torch, no clock of its own: ``engine`` drives it with real workers, ``search.simulation`` with virtual
ones. All that it decides follows from the ledger, so that a search which was interrupted goes on as if it had not been.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from search.budget import Limits, Spent
from search.clerk import Clerk, Standing
from search.goals import CostTable, Goals
from search.memory_ledger import MemoryLedger, Proposal
from search.records import Record
from search.sampler import Propose
from search.scheduler import Scheduler
from search.tally import Tally
from spaces.draw import Draw
from spaces.shape import Shape
from trainers.progress import Progress
from trainers.results import Result


class Listener(Protocol):
    """Hears of everything that happens; shows it to a person."""

    def started(self, proposal: Proposal) -> None:
        """A plan goes to a seat."""

    def progressed(self, proposal: Proposal, progress: Progress) -> None:
        """An epoch of it is done."""

    def finished(self, proposal: Proposal, records: Sequence[Record]) -> None:
        """It has come to an end, with these records."""

    def said(self, text: str) -> None:
        """Anything else worth a line."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a conductor works with; all of it stays the same for a run."""

    goals: Goals
    costs: CostTable
    estimated: frozenset[str]
    """Targets whose costs come from a profile."""
    opening: tuple[Draw, ...]
    """The first proposals."""
    baseline: str
    """Fingerprint of the base model, fine-tuned in full."""
    base_layers: int | None = None
    """Of the model that plans begin with; None where they begin with none."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Of students that are models of their own, by fingerprint."""
    precisions: tuple[str, ...]
    limits: Limits
    devices_per_trial: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    max_seats: int = 1
    earlier_minutes: float = 0.0
    """Wall time of the run's earlier sessions."""


WAIT = "wait"
DONE = "done"


class Conductor:
    """Hands out proposals, judges reports, and keeps the ledger."""

    def __init__(
        self,
        setup: Setup,
        *,
        ledger: MemoryLedger,
        sampler: Propose,
        scheduler: Scheduler,
        missing: Callable[[Draw], set[str]],
        release: Callable[[Draw], None],
        listener: Listener,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``missing`` tells the fingerprints of those parts of a plan that still have to be trained. What is trained
        stays so. ``release`` is told of plans that were set aside and whose checkpoints are not to be kept any more.
        """
        self._release = release
        self._setup, self._ledger, self._sampler, self._scheduler = setup, ledger, sampler, scheduler
        self._missing, self._listener, self._clock = missing, listener, clock
        self._clerk = Clerk(
            ledger=ledger,
            goals=setup.goals,
            costs=setup.costs,
            estimated=setup.estimated,
            base_layers=setup.base_layers,
            names=setup.names,
            versions=setup.versions,
            clock=clock,
        )
        self._tally = Tally(ledger, setup.goals, costs=setup.costs, baseline=setup.baseline)
        self._began = clock()
        self._waiting = ledger.unfinished()
        self._running: dict[int, Proposal] = {}
        self._standing: dict[int, Standing] = {}
        self._claims: dict[int, set[str]] = {}
        self._claimed: set[str] = set()
        self._exhausted = False
        self.interrupted = False
        """Set from outside to end the search: nothing more is handed out, nothing under way is recorded."""

    # Handing out ------------------------------------------------------------------------------------------------

    def next(self) -> Proposal | str:
        """The next plan to carry out, ``WAIT`` while every candidate waits for another plan's work, or ``DONE``."""
        if self.interrupted or self._limits.time_is_up(self.spent):
            return DONE
        ready = next((proposal for proposal in self._waiting if not self._is_held(proposal)), None)
        while ready is None and len(self._waiting) < self._setup.max_seats:
            proposal = self._new_one() or self._rest_of_one()
            if proposal is None:
                break
            self._waiting.append(proposal)
            ready = None if self._is_held(proposal) else proposal
        if ready is None:
            # Whatever is under way may show of a stopped plan that it is worth its rest.
            return WAIT if self._waiting or (self._running and self._limits.in_time) else DONE
        return self._start(ready)

    @property
    def spent(self) -> Spent:
        """What the search has used so far."""
        return Spent(
            trials=self._ledger.num_trials,
            minutes=self._setup.earlier_minutes + (self._clock() - self._began) / 60,
            device_hours=self._tally.seconds * self._setup.devices_per_trial / 3600,
        )

    @property
    def running(self) -> Sequence[Proposal]:
        """Plans under way."""
        return tuple(self._running.values())

    @property
    def promising(self) -> Proposal | None:
        """The stopped plan with the furthest reach beyond the front, as the records are now; None: none reaches it, or
        time is not limited, so that none is left over.
        """
        if not self._limits.in_time:
            return None
        race = self._tally.race
        reaches = [(self._scheduler.reach(proposal.number, race) or 0.0, proposal) for proposal in self._tally.stopped]
        reach, found = max(reaches, key=lambda one: (one[0], -one[1].number), default=(0.0, None))
        return found if reach > 0 else None

    def _new_one(self) -> Proposal | None:
        """A plan that was never tried; None where the space or the number of trials allows none."""
        if self._exhausted or not self._limits.allows_another(self.spent):
            return None
        number = self._ledger.next_number
        draw = self._opening_draw(number - self._ledger.num_resumed) or self._sampled_draw(number)
        if draw is None:
            self._exhausted = True
            self._listener.said("the space has no plan left that was not tried")
            return None
        return self._propose(Proposal(number=number, draw=draw, variants=self._variants(draw)))

    def _rest_of_one(self) -> Proposal | None:
        """What is left of a plan that was stopped and has become promising."""
        stopped = self.promising
        if stopped is None:
            return None
        proposal = replace(stopped, number=self._ledger.next_number, resumes=stopped.number)
        self._listener.said(f"{proposal.trial_id} goes on with {stopped.trial_id}: it may reach the front after all")
        return self._propose(proposal)

    def _propose(self, proposal: Proposal) -> Proposal:
        self._ledger.propose(proposal)
        self._tally.propose(proposal)
        return proposal

    def _opening_draw(self, place: int) -> Draw | None:
        return self._setup.opening[place] if place < len(self._setup.opening) else None

    def _sampled_draw(self, number: int) -> Draw | None:
        under_way = [proposal.draw for proposal in self._ledger.unfinished()]
        return self._sampler(self._tally.outcomes, under_way, number)

    def _variants(self, draw: Draw) -> tuple[tuple[str, str], ...]:
        """Every (precision, target) that the known constraints allow; all of them for the baseline."""
        every = [(p, t) for p in self._setup.precisions for t in self._setup.goals.targets]
        offered = [variant for variant in every if (draw.plan.shape, *variant) in self._setup.costs]
        if draw.plan.fingerprint == self._setup.baseline:
            return tuple(offered)
        return tuple(
            variant
            for variant in offered
            if not self._setup.goals.broken_known(self._setup.costs[(draw.plan.shape, *variant)])
        )

    def _is_held(self, proposal: Proposal) -> bool:
        """Whether another plan is computing a part of it at this moment."""
        return bool(self._claimed) and not self._missing(proposal.draw).isdisjoint(self._claimed)

    def _start(self, proposal: Proposal) -> Proposal:
        self._waiting.remove(proposal)
        self._running[proposal.number] = proposal
        self._standing[proposal.number] = self._standing_of(proposal)
        # What it claims and has trained meanwhile is missing to nobody, so nobody waits for it.
        self._claims[proposal.number] = self._missing(proposal.draw)
        self._claimed |= self._claims[proposal.number]
        self._listener.started(proposal)
        return proposal

    def _standing_of(self, proposal: Proposal) -> Standing:
        standing = Standing(started_at=self._clock())
        if proposal.resumes is not None:
            # None where its file was deleted.
            for stopped in self._ledger.records_of(proposal.resumes):
                standing.judged_at = stopped.fidelity
                standing.paid_before = stopped.curve_seconds[-1] if stopped.curve_seconds else 0.0
        return standing

    # Judging ----------------------------------------------------------------------------------------------------

    def goes_on(self, number: int, progress: Progress) -> bool:
        """Whether a plan goes on after a report; where not, that is recorded."""
        proposal, standing = self._running[number], self._standing[number]
        standing.hear(progress)
        self._tally.hear(proposal, standing)
        self._listener.progressed(proposal, progress)
        was_told = progress.final and progress.fidelity <= standing.judged_at
        if was_told and progress.restored:
            return True
        if reason := self._limits.time_is_up(self.spent):
            self._end(proposal, "stopped", reason, fidelity=progress.fidelity)
            return False
        if progress.quality is None or not progress.final or was_told:
            return True
        # Of the first of a strategy nothing says yet how its curve goes on: rationales, for one, pay late.
        if self._tally.is_first_of_strategy(proposal):
            return True
        if not self._scheduler.is_due(standing.curve) or self._scheduler.goes_on(number, self._tally.race):
            return True
        self._end(proposal, "stopped", self._scheduler.reason, fidelity=progress.fidelity)
        return False

    def is_set_aside(self, number: int) -> bool:
        """Whether a plan that was stopped may be gone on with, so that its checkpoint is to be kept."""
        if not self._limits.in_time or self._limits.time_is_up(self.spent):
            return False
        return any(proposal.number == number for proposal in self._tally.stopped)

    def restarted(self, number: int) -> None:
        """A plan's worker died; the new one reports again from the start of the stage that was under way."""
        proposal, standing = self._running[number], self._standing[number]
        standing.begin_again()
        self._tally.hear(proposal, standing)
        self._listener.said(f"{proposal.trial_id}: its worker died; a new one goes on")

    # Coming to an end --------------------------------------------------------------------------------------------

    def complete(self, number: int, result: Result) -> None:
        """A plan has been carried out: one record for each of its variants."""
        proposal = self._running[number]
        self._settle(proposal, self._clerk.complete(proposal, self._standing[number], result))

    def fail(self, number: int, error: str) -> None:
        """A plan ended in an error: one record that says so; the search goes on."""
        self._end(self._running[number], "failed", error, fidelity=0.0)

    def abandon(self, number: int) -> None:
        """A plan was interrupted with the search: nothing is recorded, and the next start takes it up again."""
        self._forget(number)

    def rule_out(self, shapes: Sequence[Shape]) -> None:
        """Record, once, every shape that the known constraints forbid at some precision and target."""
        self._clerk.rule_out(shapes, began=self._began)

    def _end(self, proposal: Proposal, status: Literal["stopped", "failed"], error: str, *, fidelity: float) -> None:
        standing = self._standing[proposal.number]
        reach = self._scheduler.reach(proposal.number, self._tally.race) if status == "stopped" else None
        before = self._tally.stopped
        self._settle(proposal, self._clerk.end(proposal, standing, status, error=error, fidelity=fidelity, reach=reach))
        kept = {other.number for other in self._tally.stopped}
        for other in before:
            if other.number not in kept:
                self._release(other.draw)

    def _settle(self, proposal: Proposal, records: Sequence[Record]) -> None:
        self._forget(proposal.number)
        self._tally.settle(proposal)
        self._listener.finished(proposal, records)

    def _forget(self, number: int) -> None:
        self._running.pop(number, None)
        self._standing.pop(number, None)
        self._tally.forget(number)
        self._claimed -= self._claims.pop(number, set())

    @property
    def _limits(self) -> Limits:
        return self._setup.limits
