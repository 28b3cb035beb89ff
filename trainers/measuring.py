"""Measuring on a shared machine: two things in turn, call by call, and how far memory rises."""

from collections.abc import Callable
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


def time_in_turn(
    call: Callable[[], float], reference: Callable[[], float], *, calls: int = CALLS, warm_up: int = WARM_UP
) -> tuple[np.ndarray, np.ndarray]:
    """What both return (their time), call by call; which goes first alternates, since the second finds the caches
    fuller.
    """
    times = np.empty((calls, 2))
    for turn in range(-warm_up, calls):
        for which in (0, 1) if turn % 2 else (1, 0):
            elapsed = (call, reference)[which]()
            if turn >= 0:
                times[turn, which] = elapsed
    return times[:, 0], times[:, 1]
