"""Ray as the engine uses it: started quietly, our own code on every worker, and enough room checked before launch."""

import contextlib
import importlib.metadata
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from search.spec_sections import Resources

_GB_PER_WORKER = 2.0
"""Memory to count on for one training worker of a small encoder, when seats are laid out by themselves."""
_SPARE_CPU = 0.05
"""What a worker leaves of its cores, so that trials (0.01 CPU each) find a place beside the seats."""
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray warns of four times as many processes as it may start at once, by default one for each core; a seat has six.
    "RAY_worker_maximum_startup_concurrency": str(max(16, os.cpu_count() or 1)),
}
_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""For a Ray of our own: nobody takes this machine's only node away."""


class NoRoom(Exception):
    """The cluster cannot hold what the spec asks for; says what is there and what would fit."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many seats, and what each of their workers may use."""

    seats: int
    workers: int
    cpus: int
    """Of one worker."""
    gpus: float = 0.0
    """Of one worker."""

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, in Ray's names."""
        return {"CPU": self.cpus - _SPARE_CPU} | ({"GPU": self.gpus} if self.gpus else {})


@contextlib.contextmanager
def ray_running(address: str | None) -> Iterator[None]:
    """Ray, started on this machine or joined at ``address``, with this package on every worker.

    Workers get an empty working folder: otherwise a ``search.py`` beside the user's spec would be imported as ours.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    import ray

    from search.seats import NAMESPACE

    with tempfile.TemporaryDirectory(prefix="distune-empty-") as empty:
        with _signals_kept():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"working_dir": empty, "py_modules": [str(path) for path in _packages()]},
            )
        _protect_token()
        try:
            yield
        finally:
            ray.shutdown()


def lay_out(resources: Resources, *, trials: int | None) -> Layout:
    """Seats for what the spec asks, from what the cluster has.

    Raises:
        NoRoom: not even one trial fits.
    """
    import ray

    there = ray.cluster_resources()
    return plan_layout(
        resources,
        cores=int(there.get("CPU", 0)),
        gpus=float(there.get("GPU", 0)),
        memory_gb=psutil.virtual_memory().available / 1e9,
        trials=trials,
    )


def plan_layout(resources: Resources, *, cores: int, gpus: float, memory_gb: float, trials: int | None) -> Layout:
    """``lay_out`` for given numbers. Threads times workers never exceed the cores."""
    workers, each = resources.workers_per_trial, resources.cpus_per_worker or 1
    by_core = cores // (workers * each)
    by_gpu = int(gpus / resources.gpus_per_trial + 1e-9) if resources.gpus_per_trial else by_core
    most = min(by_core, by_gpu)
    if most < 1:
        raise NoRoom(
            f"one trial asks for {workers} workers × {each} cores and {resources.gpus_per_trial:g} GPUs; "
            f"there are {cores} cores and {gpus:g} GPUs; lower resources.workers_per_trial, cpus_per_worker or "
            "gpus_per_trial, or search on a larger cluster with resources.address"
        )
    wanted = resources.max_concurrent
    if wanted == "auto":
        seats = max(1, min(most, int(memory_gb / (_GB_PER_WORKER * workers)), trials or most))
    elif wanted > most:
        raise NoRoom(
            f"resources.max_concurrent: found {wanted}; {cores} cores and {gpus:g} GPUs hold {most}; use {most}"
        )
    else:
        seats = wanted
    cpus = resources.cpus_per_worker or max(1, cores // (seats * workers))
    return Layout(seats=seats, workers=workers, cpus=cpus, gpus=resources.gpus_per_trial / workers)


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    names = ("distune", "torch", "transformers", "peft", "ray", "optuna", "onnxruntime", "pyarrow")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, one that exits with 15 and prints a stack."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _packages() -> list[Path]:
    top = Path(__file__).resolve().parent.parent
    return [top / name for name in ("search", "trainers", "spaces")]


def _protect_token() -> None:
    """Ray writes its token readable by everybody."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
