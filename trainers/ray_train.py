"""Ray Train's part: a group of workers that stays up and takes one order after another from a switchboard.

Starting a group costs ten to twenty seconds, an order milliseconds. A worker that dies is replaced by Ray Train; the
new group asks for the unfinished order again and goes on from its last finished stage or checkpoint.
"""

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from spaces.plan import Plan
from trainers.carry_out import carry_out, measure
from trainers.context import Context, Stopped, Suspended
from trainers.loop import TrainingError
from trainers.model_files import ModelError
from trainers.progress import Progress
from trainers.ranks import RankError, Ranks
from trainers.storage import StorageError, is_of_storage

_WAIT_S = 7 * 24 * 3600
"""How long workers of a group wait for each other: rank 0 may wait for an order for long."""
_HEARTBEAT_S = 2.0
_SEEN_BY_ALL = (TrainingError, ModelError, RankError, StorageError)
"""Errors that every worker of a group raises at the same place, so that the group can go on together."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A worker group: its name, its size, and what each worker may use."""

    name: str
    switchboard: str
    """Name of the actor that hands out orders."""
    namespace: str
    num_workers: int
    resources: Mapping[str, float]
    """Of each worker, in Ray's names."""
    log_folder: str
    """Local folder for what Ray Train writes."""


def run_seat(seat: Seat, context: Context, *, attempt: int) -> None:
    """Start the group and stay until the switchboard sends it home. Raises what ended it otherwise."""
    trainer = TorchTrainer(
        _work,
        train_loop_config={"seat": seat, "context": context},
        torch_config=TorchConfig(timeout_s=_WAIT_S),
        scaling_config=ScalingConfig(
            num_workers=seat.num_workers,
            use_gpu="GPU" in seat.resources,
            resources_per_worker=dict(seat.resources),
        ),
        # A name that was used before would resume: each attempt has its own.
        run_config=RunConfig(
            name=f"{seat.name}-{attempt}",
            storage_path=seat.log_folder,
            failure_config=FailureConfig(max_failures=-1),
        ),
    )
    trainer.fit()


def _work(config: dict[str, Any]) -> None:
    seat, context = config["seat"], config["context"]
    place = ray.train.get_context()
    ranks = Ranks(place.get_world_rank(), place.get_world_size())
    board = ray.get_actor(seat.switchboard, namespace=seat.namespace)
    ray.get(board.arrive.remote(ray.get_runtime_context().current_actor))
    while True:
        order = ranks.on_first(lambda: ray.get(board.take.remote(seat.name)))
        if order is None:
            return
        _serve(order, board, context=context, ranks=ranks)


def _serve(order: dict[str, Any], board: Any, *, context: Context, ranks: Ranks) -> None:
    def report(progress: Progress) -> None:
        goes_on = ray.get(board.report.remote(order["id"], progress))
        if goes_on is None:
            raise Suspended(order["id"])
        if not goes_on:
            raise Stopped(order["id"])

    beat = _Heartbeat(order["id"], board)
    try:
        outcome = {"result": _execute(order, context=context, ranks=ranks, report=report, heartbeat=beat)}
    except Stopped:
        return
    except Exception as error:
        outcome = {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
            "storage": is_of_storage(error),
        }
        if ranks.size > 1 and not isinstance(error, _SEEN_BY_ALL):
            ray.get(board.finish.remote(order["id"], outcome))
            raise
    if ranks.first:
        ray.get(board.finish.remote(order["id"], outcome))


class _Heartbeat:
    """Asks the switchboard every few seconds whether the plan is still wanted: an epoch may take hours."""

    def __init__(self, order_id: str, board: Any) -> None:
        self._order_id, self._board, self._asked_at = order_id, board, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._asked_at < _HEARTBEAT_S:
            return
        self._asked_at = time.monotonic()
        wanted = ray.get(self._board.is_wanted.remote(self._order_id))
        if wanted is None:
            raise Suspended(self._order_id)
        if not wanted:
            raise Stopped(self._order_id)


def _execute(order: dict[str, Any], *, context: Context, ranks: Ranks, report: Any, heartbeat: Any) -> Any:
    plan = Plan.model_validate_json(order["plan"])
    if order["kind"] == "measure":
        return ranks.on_first(lambda: measure(plan, order["precisions"], context, split=order["split"]))
    return carry_out(plan, order["precisions"], context, ranks=ranks, report=report, heartbeat=heartbeat)
