"""What a search would take with so many workers, by simulation: its own sampler, scheduler and ledger in virtual time.

How long plans train is foreseen, how good they become is not. Quality is assumed to rise with latency and to be chance
beyond that: no strategy and no setting is thought to be better than another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.budget import Limits, seconds_spent
from search.conductor import Setup
from search.foreknown import CostTableForeknown, Works
from search.history import Outcome
from search.memory_ledger import MemoryLedger
from search.optuna_terms import Drawing
from search.records import Record
from search.sampler import RandomSampler, make_sampler
from search.scheduler import NeverStop, Scheduler
from search.simulation.clock import Clock
from search.simulation.course import Course, Variant
from search.simulation.workers import Recordings, search_through
from spaces.draw import Draw
from spaces.plan import Plan

MOST = 200
"""Plans that are simulated; later ones are taken to go on at their pace."""
_GUIDED = 20
"""Plans after the opening that the sampler proposes, so that nobody waits for minutes; later ones come by chance."""
_AT_FIRST = 0.7
"""Share of its quality that a plan has when it begins; it rises evenly from there to its end."""
_LEVELS, _CHANCE = (0.5, 0.8), 0.05
"""Quality at the least latency and at the largest, and the standard deviation of chance."""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What is known of a search before it begins."""

    setup: Setup
    drawing: Drawing
    sampler: str
    scheduler: Scheduler
    seed: int
    train_s: Callable[[Plan], float]
    """Of a plan's last stage."""
    beside_s: Callable[[Plan], float]
    """That a plan takes beside training."""
    num_timed: int = 0
    """Plans of the same search, trained before, whose pace ``train_s`` has; 0: its times are rough."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A search at the moment at which a limit ends it."""

    limit: str
    """trials, minutes or device_hours; space where no plan is left before any of them."""
    num_plans: int
    """That it has begun by then."""
    minutes: float
    device_hours: float


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A search with so many workers."""

    end: Outlook
    """Whichever limit comes first."""
    alone: tuple[Outlook, ...]
    """Each limit as if it were the only one."""


def prospect(foreseen: Foreseen, *, workers: int, stopping: bool) -> Prospect:
    """``stopping``: whether the scheduler ends plans early; else all of them train to their end."""
    clock, ledger = Clock(), MemoryLedger()
    recordings = Recordings(_Plans(foreseen).course)
    setup = replace(foreseen.setup, max_seats=workers, limits=Limits(trials=MOST))
    search_through(
        setup,
        recordings,
        sampler=_Proposing(foreseen, recordings, clock, ledger),
        scheduler=foreseen.scheduler if stopping else NeverStop(),
        ledger=ledger,
        clock=clock,
    )
    plans = sorted({record.number: record for record in ledger.records}.values(), key=lambda plan: plan.number)
    limits, devices = foreseen.setup.limits, setup.devices_per_trial
    past = _Past(plans, devices, is_cut=ledger.num_trials == MOST)
    # Where no more plans may begin, those that are left do not use up another limit.
    begun = past if limits.trials is None or limits.trials > len(plans) else _Past(plans[: limits.trials], devices)
    return Prospect(
        end=min(begun.at_limits(limits), key=lambda outlook: outlook.minutes), alone=tuple(past.at_limits(limits))
    )


class _Plans:
    """Plans as they would go."""

    def __init__(self, foreseen: Foreseen) -> None:
        self._foreseen, self._works = foreseen, Works(foreseen.train_s)
        self._goals, self._precisions = foreseen.setup.goals, foreseen.setup.precisions
        self._courses: dict[str, Course] = {}

    def course(self, found: Draw[Plan]) -> Course:
        """How the training of a draw's plan would go."""
        if found.fingerprint not in self._courses:
            self._courses[found.fingerprint] = self._course(found)
        return self._courses[found.fingerprint]

    def _course(self, found: Draw[Plan]) -> Course:
        own, beginnings = self._works(found)
        last = found.plan.last_training
        epochs = last.optimisation.epochs if last is not None else 1
        chance = np.random.default_rng([self._foreseen.seed, int(found.fingerprint[:15], 16)])
        quality = self._quality(found.shape, float(chance.normal()))
        shares = [epoch / epochs for epoch in range(1, epochs + 1)]
        return Course(
            steps=tuple(range(1, epochs + 1)),
            qualities=tuple(self._so_far(quality, share) for share in shares),
            costs=tuple(own * share for share in shares),
            variants={name: Variant(quality=quality) for name in self._precisions},
            learned={name: float(chance.uniform(0, 0.1)) for name in self._learned},
            parts=beginnings,
            overhead=self._foreseen.beside_s(found.plan),
        )

    def _quality(self, shape: Any, chance: float) -> float:
        low, high = _LEVELS
        level = min(0.99, low + (high - low) * self._places.get(shape, 0.5) + _CHANCE * chance)
        return level if self._rises else 2.0 - level

    def _so_far(self, quality: float, share: float) -> float:
        reached = _AT_FIRST + (1 - _AT_FIRST) * share
        return quality * reached if self._rises else quality / reached

    @property
    def _rises(self) -> bool:
        return self._goals.columns[self._goals.metric].direction == "max"

    @cached_property
    def _learned(self) -> list[str]:
        """Objectives beside quality and training time that only training tells."""
        columns = self._goals.columns
        names = [name for name, target in self._goals.axes if target is None and name != self._goals.metric]
        return [name for name in names if not columns[name].grows]

    @cached_property
    def _places(self) -> Mapping[Any, float]:
        """Where shapes stand between the least latency, 0, and the largest, 1, by its logarithm."""
        where = (self._precisions[0], self._goals.targets[0])
        found = {
            shape: math.log(costs["latency_ms"])
            for (shape, *at), costs in self._foreseen.setup.costs.items()
            if tuple(at) == where and costs["latency_ms"]
        }
        low, high = min(found.values(), default=0.0), max(found.values(), default=0.0)
        return {shape: (value - low) / (high - low or 1.0) for shape, value in found.items()}


class _Proposing:
    """The search's own sampler for a while, then chance; nothing more once every limit has been passed."""

    def __init__(self, foreseen: Foreseen, recordings: Recordings, clock: Clock, ledger: MemoryLedger) -> None:
        setup = foreseen.setup
        self._limits, self._devices, self._clock, self._ledger = setup.limits, setup.devices_per_trial, clock, ledger
        foreknown = CostTableForeknown(setup.goals, setup.costs, setup.precisions, share_left=recordings.share_left)
        self._guided = make_sampler(
            foreseen.sampler, draw=foreseen.drawing, goals=setup.goals, seed=foreseen.seed, foreknown=foreknown
        )
        self._num_guided = len(setup.opening) + _GUIDED
        self._by_chance = RandomSampler(draw=foreseen.drawing, seed=foreseen.seed)

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The plan of proposal ``number``."""
        if self._is_enough(number):
            return None
        sampler = self._guided if number < self._num_guided else self._by_chance
        return sampler(outcomes, running, number)

    def _is_enough(self, number: int) -> bool:
        limits = self._limits
        hours = sum(seconds_spent(self._ledger.records_of(n)[-1:]) for n in range(number) if self._ledger.records_of(n))
        passed = (
            limits.trials is None or number >= limits.trials,
            limits.minutes is None or self._clock.now >= 60 * limits.minutes,
            limits.device_hours is None or self._devices * hours >= 3600 * limits.device_hours,
        )
        return all(passed)


class _Past:
    """A simulated search, looked at afterwards."""

    def __init__(self, plans: Sequence[Record], devices: int, *, is_cut: bool = False) -> None:
        """``plans``: a record of each, by number; ``is_cut``: more would have followed."""
        self._starts = np.array([plan.started_at for plan in plans])
        self._ends = np.array([plan.finished_at for plan in plans])
        self._device_s = devices * np.array([seconds_spent([plan]) for plan in plans])
        self._is_cut = is_cut
        self._times = np.unique(np.concatenate([self._starts, self._ends]))
        self._used = np.array([self._used_at(time) for time in self._times])

    def at_limits(self, limits: Limits) -> list[Outlook]:
        """The search at each of its limits that it gets to, and at its own end where it gets to none."""
        found = [
            *([self._after("trials", limits.trials)] if limits.trials is not None else []),
            *([self._at("minutes", 60 * limits.minutes)] if limits.minutes is not None else []),
            *([self._having("device_hours", 3600 * limits.device_hours)] if limits.device_hours is not None else []),
        ]
        return [outlook for outlook in found if outlook is not None] or [self._outlook("space", self._whole, 1.0)]

    @property
    def _whole(self) -> float:
        return float(self._times[-1])

    def _after(self, limit: str, trials: int) -> Outlook | None:
        if trials > len(self._starts):
            return self._outlook(limit, self._whole, trials / len(self._starts)) if self._is_cut else None
        device_s = float(self._device_s[:trials].sum())
        return Outlook(
            limit=limit, num_plans=trials, minutes=self._ends[:trials].max() / 60, device_hours=device_s / 3600
        )

    def _at(self, limit: str, time: float) -> Outlook | None:
        if time <= self._whole:
            return self._outlook(limit, time, 1.0)
        return self._outlook(limit, self._whole, time / self._whole) if self._is_cut else None

    def _having(self, limit: str, device_s: float) -> Outlook | None:
        if device_s <= self._used[-1]:
            return self._outlook(limit, float(np.interp(device_s, self._used, self._times)), 1.0)
        return self._outlook(limit, self._whole, device_s / self._used[-1]) if self._is_cut else None

    def _outlook(self, limit: str, time: float, factor: float) -> Outlook:
        """At ``time``, and then on at the same pace, by ``factor`` in all."""
        return Outlook(
            limit=limit,
            num_plans=round(factor * int((self._starts < time).sum())),
            minutes=factor * time / 60,
            device_hours=factor * self._used_at(time) / 3600,
        )

    def _used_at(self, time: float) -> float:
        """Device seconds until then: a plan uses them evenly from its start to its end."""
        spans = np.maximum(self._ends - self._starts, 1e-9)
        shares: NDArray[np.float64] = np.clip((time - self._starts) / spans, 0.0, 1.0)
        return float(shares @ self._device_s)
