"""How much memory this process has held at most since a moment, where the system can tell."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """What is resident now."""
    return int(psutil.Process().memory_info().rss)


def restart_peak() -> bool:
    """Give freed memory back and start the peak of resident memory anew; whether the system can (Linux)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def peak_bytes() -> int:
    """The peak of resident memory since ``restart_peak``; of the process's whole life where that could not do it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
