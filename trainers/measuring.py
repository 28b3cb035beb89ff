"""Measuring on a shared machine: things in turn, call by call, and how far memory rises."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from trainers.memory import peak_bytes, resident_bytes, restart_peak

T = TypeVar("T")

CALLS = 60
WARM_UP = 10


def peak_rise_mb(action: Callable[[], T]) -> tuple[T, float]:
    """What ``action`` returns, and by how many MB (10⁶ bytes) the process's peak rose above what it held before.

    Where the system cannot start a peak anew, what is resident afterwards stands for it.
    """
    restarted = restart_peak()
    before = resident_bytes()
    result = action()
    held = peak_bytes() if restarted else resident_bytes()
    return result, max(0.0, (held - before) / 1e6)


def time_in_turn(actions: Sequence[Callable[[], float]], *, calls: int = CALLS, warm_up: int = WARM_UP) -> np.ndarray:
    """What each action returns (its time), call by call: actions × calls.

    All go once before one goes again, so that what slows the machine slows them alike. Their order changes each time:
    over twice as many calls as there are actions each stands in every place, and before every other one, equally often.
    """
    times = np.empty((len(actions), calls))
    for turn in range(-warm_up, calls):
        for which in _order(turn, len(actions)):
            elapsed = actions[which]()
            if turn >= 0:
                times[which, turn] = elapsed
    return times


def _order(turn: int, count: int) -> list[int]:
    order = [(turn + place) % count for place in range(count)]
    return order[::-1] if turn // count % 2 else order
