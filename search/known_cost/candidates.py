"""The plans that are weighed against each other: from the whole space, and around those that did best."""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from search.optuna_terms import Drawing, settings_of
from spaces.choosers import RandomChooser, Value
from spaces.draw import Draw

_CHANGED = 0.3
"""Share of a parent's parameters that a child changes."""
_STEPS = (0.02, 0.1, 0.3)
"""How far numbers move, as shares of their range: normal steps of one of these deviations."""


Candidates = dict[Hashable, Draw]
"""By their key, each once."""


Settle = Callable[[Sequence[Draw]], Sequence[Draw]]
"""What becomes of each of some draws if it is proposed: itself, or the recorded training that answers it."""


@dataclass(frozen=True)
class Source:
    """Where candidates come from."""

    draw: Drawing
    settle: Settle

    def whole_space(self, rng: random.Random, *, count: int) -> Candidates:
        """At most ``count`` draws by chance."""
        return self._settled([self.draw(RandomChooser(rng)) for _ in range(count)])

    def around(self, parents: Sequence[Draw], rng: random.Random, *, count: int) -> Candidates:
        """At most ``count`` draws near ``parents``, by turns: a mixture of kernels on what did best, as TPE's."""
        turns = [parents[turn % len(parents)] for turn in range(count if parents else 0)]
        return self._settled([self.draw(_Near(settings_of(parent), rng)) for parent in turns])

    def _settled(self, draws: Sequence[Draw]) -> Candidates:
        return {found.key: found for found in self.settle(draws)}


class _Near:
    """Answers as the parent did, here and there with something else; what the parent was not asked, by chance."""

    def __init__(self, parent: Mapping[str, Value], rng: random.Random) -> None:
        self._parent, self._rng, self._chance = parent, rng, RandomChooser(rng)
        self._step = rng.choice(_STEPS)

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        # A strategy opens other parameters: as often changed as one of many would be too often.
        share = _CHANGED / 3 if name == "strategy" else _CHANGED
        if self._parent.get(name) in choices and self._rng.random() > share:
            return self._parent[name]
        return self._chance.categorical(name, choices)

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        value = self._parent.get(name)
        if not isinstance(value, int | float):
            return self._chance.integer(name, low, high, log=log)
        if self._rng.random() > _CHANGED:
            return min(high, max(low, int(value)))
        moved = round(self._moved(float(value), low, high, log=log))
        return min(high, max(low, moved if moved != value else round(value) + self._rng.choice((-1, 1))))

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = self._parent.get(name)
        if not isinstance(value, int | float):
            return self._chance.real(name, low, high, log=log)
        if self._rng.random() > _CHANGED:
            return min(high, max(low, float(value)))
        return min(high, max(low, self._moved(float(value), low, high, log=log)))

    def _moved(self, value: float, low: float, high: float, *, log: bool) -> float:
        step = self._rng.gauss(0.0, self._step)
        return float(value * (high / low) ** step) if log else value + step * (high - low)
