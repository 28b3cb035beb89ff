"""Proposals for many workers: from one look at the records as many as a small share of the workers will take.

A look takes a tenth of a second, and a thousand workers may ask two hundred times a second. What comes in while a
batch is handed out is known to the next one: of a thousand plans under way, a few in a hundred.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from search.history import Outcome, plans_of
from search.known_cost.sampler import KnownCostSampler
from spaces.draw import Draw

_SHARE = 20
"""Workers for each proposal of a batch."""


@dataclass(frozen=True)
class _Batch:
    first: int
    """Number of its first proposal."""
    outcomes: Sequence[Outcome]
    """What it was asked with, for the first time."""
    picks: Sequence[Draw]


@dataclass
class Batched:
    """Proposals of ``sampler``, in batches that begin at the multiples of their size.

    A batch knows the plans that had finished when so many were under way as there are ``workers``, counted from its
    first number, and takes all others before that number for under way: so it is the same whenever it is asked for.
    """

    sampler: KnownCostSampler
    workers: int
    _batch: _Batch | None = field(default=None, init=False)

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw | None:
        """The plan of proposal ``number``; None when the space has no more."""
        finished, under_way = plans_of(outcomes), {found.fingerprint for found in running}
        for found in self._picks(outcomes, running, number):
            if found.fingerprint not in finished and found.fingerprint not in under_way:
                return found
        return self.sampler(outcomes, running, number)

    @property
    def size(self) -> int:
        """Proposals of a batch."""
        return max(1, self.workers // _SHARE)

    def _picks(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Sequence[Draw]:
        first = number - number % self.size
        # A search keeps its outcomes in one list, which grows.
        if self._batch is None or self._batch.first != first or self._batch.outcomes is not outcomes:
            past, others = self._known(outcomes, running, first=first, number=number)
            picks = self.sampler.best_first(past, others, first, count=self.size)
            self._batch = _Batch(first, outcomes, list(islice(picks, self.size)))
        return self._batch.picks

    def _known(
        self, outcomes: Sequence[Outcome], running: Sequence[Draw], *, first: int, number: int
    ) -> tuple[list[Outcome], list[Draw]]:
        """The outcomes that a batch knows, and the plans that it takes for under way."""
        ends: dict[int, float] = {}
        for outcome in outcomes:
            ends[outcome.number] = max(outcome.finished_at, ends.get(outcome.number, outcome.finished_at))
        earlier = sorted((at, of) for of, at in ends.items() if of < first)
        known = {of for _, of in earlier[: max(0, first - self.workers)]}
        late = {outcome.number: outcome.draw for outcome in outcomes if outcome.number < first}
        still_running = len(running) - max(0, number - first - (len(ends) - len(earlier)))
        others = [found for of, found in late.items() if of not in known]
        past = [outcome for outcome in outcomes if outcome.number in known]
        return past, [*others, *running[: max(0, still_running)]]
