"""Who picks a value when a space is drawn from: a sampler's trial, chance, or a fixed set of values."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

Value = str | int | float


class Chooser(Protocol):
    """Picks one value for a named parameter. A name always comes with the same range."""

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """One of ``choices``."""

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number in [low, high]."""

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""


class RandomChooser:
    """Draws uniformly (uniformly in the logarithm where ``log``) from ``rng``."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:  # noqa: ARG002
        return self._rng.choice(choices)

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        if log:
            return min(high, max(low, math.floor(self.real(name, low, high + 1, log=True))))
        return self._rng.randint(low, high)

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        if log:
            return min(high, max(low, math.exp(self._rng.uniform(math.log(low), math.log(high)))))
        return self._rng.uniform(low, high)


class FixedChooser:
    """Answers from ``values``; a name that is missing, or a value outside its range, is an error."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        value = self._get(name)
        if value not in choices:
            raise ValueError(f"{name}: {value!r} is none of {list(choices)}")
        return value

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:  # noqa: ARG002
        value = self._within(name, low, high)
        if value != int(value):
            raise ValueError(f"{name}: {value!r} is not a whole number within [{low}, {high}]")
        return int(value)

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        return float(self._within(name, low, high))

    def _get(self, name: str) -> Value:
        if name not in self._values:
            raise ValueError(f"{name}: no value given; given are {sorted(self._values)}")
        return self._values[name]

    def _within(self, name: str, low: float, high: float) -> float:
        value = self._get(name)
        if isinstance(value, str) or not low <= value <= high:
            raise ValueError(f"{name}: {value!r} is not within [{low}, {high}]")
        return value


class MiddleChooser:
    """Answers with given defaults, else the middle of the range: a sensible first try of everything."""

    def __init__(self, defaults: Mapping[str, Value]) -> None:
        self._defaults = defaults

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        default = self._defaults.get(name)
        return default if default in choices and default is not None else choices[0]

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self.real(name, low, high, log=log))

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        default = self._defaults.get(name)
        if isinstance(default, int | float):
            return min(high, max(low, default))
        return math.sqrt(low * high) if log else (low + high) / 2


class RecordingChooser:
    """Passes on to another chooser and keeps what was picked, reals rounded to three significant digits.

    The rounding makes plans readable and lets near-twins meet in one fingerprint.
    """

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self.picked: dict[str, Value] = {}

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        self.picked[name] = value = self._inner.categorical(name, choices)
        return value

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.picked[name] = value = self._inner.integer(name, low, high, log=log)
        return value

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = min(high, max(low, float(f"{self._inner.real(name, low, high, log=log):.3g}")))
        self.picked[name] = value
        return value
