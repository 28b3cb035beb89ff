"""Measuring on a shared machine: two things in turn, call by call, and how far memory rises."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

T = TypeVar("T")

CALLS = 60
WARM_UP = 10


def peak_rise_mb(action: Callable[[], T]) -> tuple[T, float]:
    """What ``action`` returns, and by how many MB (10⁶ bytes) the process's peak rose above what it held before."""
    _release_free_memory()
    before = psutil.Process().memory_info().rss
    result = action()
    return result, max(0.0, (_peak_bytes() - before) / 1e6)


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


def _release_free_memory() -> None:
    """Give freed memory back and start the peak anew, where the system can (Linux with glibc)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return


def _peak_bytes() -> int:
    """The peak of resident memory since it was started anew; elsewhere than on Linux, what is resident now."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
