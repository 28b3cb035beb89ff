"""The two sides of ``versus_ray_tune.py``: what each one's process does from its first import to what it found."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from by_ray_tune import STRATEGIES, STUDENT_LAYERS, Work, search
from tasks import EXAMPLES, prepared_task

from search.engine import Search
from search.records import Record
from search.run import num_layers

SPEC = EXAMPLES / "docstrings.yaml"

Outcome = dict[str, list[Any]]
"""JSON: ``rows``, a deployed model each, ``num_layers`` None where it is the base's; ``failed``, an error each."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the process of one side is to do."""

    side: str
    seed: int
    limit: int
    minutes: float
    began: float
    """Seconds since 1970."""
    folder: Path
    """Its own, empty."""

    @property
    def seconds_left(self) -> float:
        """At least one: Ray Tune takes 0 for no limit at all."""
        return max(1.0, self.began + 60 * self.minutes - time.time())

    @property
    def found(self) -> Path:
        """Where it writes what it found."""
        return self.folder / "found.json"


def settings_of(*, limit: int, seed: int) -> list[str]:
    """What makes the example's spec the one that both sides search."""
    return [
        f"task.limit={limit}",
        f"model.student_layers={list(STUDENT_LAYERS)}",
        "model.student_widths=[1]",
        f"search.strategies=[{', '.join(STRATEGIES)}]",
        "search.space.lora_variant=lora",
        "search.space.lora_target=all",
        f"search.seed={seed}",
        "targets=[cpu]",
    ]


def search_alone(assignment: Assignment) -> None:
    """What the process of a side does."""
    assignment.found.write_text(json.dumps(SIDES[assignment.side](assignment)))


def by_distune(assignment: Assignment) -> Outcome:
    """``distune search`` at its defaults."""
    settings = settings_of(limit=assignment.limit, seed=assignment.seed)
    own = [f"budget={{minutes: {assignment.minutes}}}", f"storage={assignment.folder}"]
    run = Search.from_yaml(SPEC, [*settings, *own]).run()
    return outcome_of(run.records)


def outcome_of(records: Sequence[Record]) -> Outcome:
    """What a run's records say."""
    rows = [
        {
            "finished_at": record.finished_at,
            "accuracy": record.quality,
            "own_latency_ms": record.latency_ms,
            "num_layers": num_layers(record),
            "precision": record.precision,
            "strategy": record.strategy,
            "params": dict(record.params),
        }
        for record in records
        if record.status == "complete"
    ]
    return {"rows": rows, "failed": [record.error for record in records if record.status == "failed"]}


def by_ray(assignment: Assignment) -> Outcome:
    """The search written by hand."""
    prepared = prepared_task(
        SPEC, settings_of(limit=assignment.limit, seed=assignment.seed), store=assignment.folder / "store"
    )
    work = Work(
        context=prepared.context,
        base=prepared.base.fingerprint,
        request_tokens=prepared.sequence_length,
        seed=assignment.seed,
        folder=assignment.folder,
    )
    ended, failed = search(work, seconds_left=lambda: assignment.seconds_left)
    rows = [
        {
            "finished_at": metrics["finished_at"],
            "accuracy": metrics["accuracy"],
            "own_latency_ms": metrics["latency_ms"],
            "num_layers": metrics["config"].get("student_layers"),
            "precision": metrics["config"]["precision"],
            "strategy": metrics["config"]["strategy"],
            "params": metrics["config"],
        }
        for metrics in ended
    ]
    return {"rows": rows, "failed": failed}


SIDES: dict[str, Callable[[Assignment], Outcome]] = {"distune": by_distune, "ray": by_ray}
