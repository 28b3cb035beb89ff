"""The plan with the largest expected gain in hypervolume for a second of training, given what is known of it.

Serving costs are known before training; quality, and whatever else only training tells, is modelled. A plan yields a
variant at each precision, so its gain is summed over these. A pure function of the outcomes, the plans under way, the
seed and the number: what is kept between calls could be computed again from these.
"""

import hashlib
import random
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.history import Outcome
from search.known_cost.beliefs import Beliefs, Question
from search.known_cost.candidates import Candidates, Settle, Source
from search.known_cost.foreknown import Foreknown
from search.known_cost.gaussian_process import Vector
from search.known_cost.learner import Learner
from search.known_cost.observations import Observer
from search.optuna_terms import Drawing, looked_over
from spaces.choosers import RandomChooser
from spaces.draw import Draw

_STARTUP = 5
"""Complete plans before a model guides."""
_POOL = 800
"""Candidates from the whole space."""
_POOL_FOR = 20
"""Proposals that share these."""
_NEAR = 100
"""Candidates near the front."""
_ROUNDS, _BEST, _NEIGHBOURS = 2, 5, 40
"""How often, around how many of the best, how many more are looked at."""
_ALL = 5_000
"""Draws that meet only plans which were had, before the space is taken for exhausted."""


@dataclass
class KnownCostSampler:
    """See the module's first lines. Objects are cheap to make and keep what they computed."""

    draw: Drawing
    foreknown: Foreknown
    question: Question
    seed: int
    settle: Settle = list
    _pools: dict[int, Candidates] = field(default_factory=dict, init=False)
    _learner: Learner = field(init=False)

    def __post_init__(self) -> None:
        self._source = Source(self.draw, self.settle)
        chance = RandomChooser(random.Random(self._chance("distributions")))
        drawn, asked = looked_over(self.draw, chance, count=_POOL)
        self._learner = Learner(Observer(asked, self.foreknown.variants))
        values = self.foreknown.values(self.settle(drawn))
        self._learned = [axis for axis in range(values.shape[2]) if np.isnan(values[:, :, axis]).any()]
        self._known_worst = _worst(values)

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The plan of proposal ``number``; None when the space has no more."""
        return next(self.best_first(outcomes, running, number, count=1), None)

    def best_first(
        self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int, *, count: int
    ) -> Iterator[Draw]:
        """Plans that are new, from proposal ``number`` on: each worth the most beside those before it, for ``count``
        that are taken together.
        """
        past = sorted(outcomes, key=lambda outcome: (outcome.finished_at, outcome.number, outcome.precision))
        under_way = sorted(running, key=lambda found: found.fingerprint)
        tried = [*(outcome.draw for outcome in past), *running]
        had, plans = {found.key for found in tried}, {found.fingerprint for found in tried}
        pool = _without(self._pool(number), had) or self._last_ones(plans, number)
        if len({outcome.number for outcome in past if outcome.values is not None}) < _STARTUP:
            best_first = list(pool.values())
        else:
            draws, scores = self._weighed(pool, had, beliefs := self._beliefs(past, under_way), number)
            best_first = [draws[index] for index in beliefs.best_together(draws, scores, count=count)]
        # Settings that are new may still make a plan that was had.
        return (found for found in best_first if found.fingerprint not in plans)

    def _beliefs(self, past: Sequence[Outcome], running: Sequence[Draw]) -> Beliefs:
        return Beliefs(
            self.question,
            self.foreknown,
            outcomes=past,
            running=running,
            learned=self._learned,
            known_worst=self._known_worst,
            learner=self._learner,
        )

    def _weighed(
        self, pool: Candidates, had: Set[Hashable], beliefs: Beliefs, number: int
    ) -> tuple[list[Draw], Vector]:
        """The pool, the front's neighbours, and the neighbours of the best of these, with their scores."""
        rng = random.Random(self._chance("near", number))
        candidates = pool | _without(self._source.around(beliefs.parents, rng, count=_NEAR), had)
        draws, scores = list(candidates.values()), beliefs.score(list(candidates.values()))
        for _ in range(_ROUNDS):
            best = [draws[index] for index in np.argsort(-scores, kind="stable")[:_BEST]]
            more = _without(self._source.around(best, rng, count=_NEIGHBOURS), had | candidates.keys())
            candidates |= more
            draws, scores = [*draws, *more.values()], np.append(scores, beliefs.score(list(more.values())))
        return draws, scores

    def _pool(self, number: int) -> Candidates:
        turn = number // _POOL_FOR
        if turn not in self._pools:
            self._pools = {turn: self._source.whole_space(random.Random(self._chance("pool", turn)), count=_POOL)}
        return self._pools[turn]

    def _last_ones(self, plans: Set[str], number: int) -> Candidates:
        """What is left of a space that is all but tried."""
        rng = random.Random(self._chance("last", number))
        found = self._source.whole_space(rng, count=_ALL)
        return {key: drawn for key, drawn in found.items() if drawn.fingerprint not in plans}

    def _chance(self, *what: object) -> int:
        return int.from_bytes(hashlib.sha256(repr((self.seed, *what)).encode()).digest()[:6], "big")


def _without(candidates: Candidates, had: Set[Hashable]) -> Candidates:
    return {key: found for key, found in candidates.items() if key not in had}


def _worst(values: NDArray[np.float64]) -> Vector:
    """The largest finite value of each objective, -inf where there is none: m."""
    flat = values.reshape(-1, values.shape[2])
    found: Vector = np.max(flat, axis=0, where=np.isfinite(flat), initial=-np.inf)
    return found
