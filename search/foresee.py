"""What a search would do, before it does it: trains nothing, measures serving costs only."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.cluster import lay_out, ray_running
from search.engine import export_shapes, full_precision_latency_s, probe_apart
from search.foreknown import work_of
from search.prepare import feasible_space, first_draws, known_costs, measure_costs, prepare
from search.spec import Spec
from search.students import names_of
from search.words import say_students
from spaces.draw import Draw
from spaces.space import Space
from trainers.cost import CostRow
from trainers.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """What would run, and at which serving costs."""

    name: str
    notes: tuple[str, ...]
    """What is left out, cut or looks odd in data and models."""
    rows: dict[str, int]
    """Rows of each split."""
    labels: int
    strategies: tuple[str, ...]
    student_layers: tuple[int, ...]
    students: str
    """Every size of a student, in words."""
    opening: tuple[str, ...]
    seats: int
    threads: int
    costs: tuple[dict[str, Any], ...]
    feasible_share: float
    """Of all (size, precision, target)."""
    budget: dict[str, Any]
    expected_minutes: float | None
    """For the budget's number of plans, from the measured latencies; rough. None without such a number."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def foresee(spec: Spec, *, say: Callable[[str], None]) -> Foresight:
    """Prepare everything in a temporary folder, and look at it.

    Raises:
        NothingFits: no size satisfies the constraints.
    """
    with tempfile.TemporaryDirectory(prefix="distune-plan-") as folder, ray_running(spec.resources.address):
        storage = Storage(Path(folder))
        layout = lay_out(spec.resources, trials=spec.budget.trials)
        prepared = prepare(spec, storage, threads=layout.cpus, say=say)
        rows = measure_costs(prepared, storage, measure=probe_apart, say=say, before=export_shapes(prepared.context))
        space = feasible_space(prepared, rows)
        draws = first_draws(space, prepared.goals)
        costs = [_cost(row, prepared.space, prepared.goals.broken_known) for row in _known(rows)]
        return Foresight(
            name=spec.name,
            notes=prepared.notes,
            rows={name: len(split) for name, split in prepared.rows.splits.items()},
            labels=len(prepared.rows.labels),
            strategies=space.strategies,
            student_layers=space.student_layers,
            students=say_students(space),
            opening=tuple(draw.strategy for draw in draws),
            seats=layout.seats,
            threads=layout.cpus,
            costs=tuple(costs),
            feasible_share=sum(not cost["breaks"] for cost in costs) / len(costs),
            budget=spec.budget.model_dump(exclude_none=True),
            expected_minutes=_minutes(spec, draws, rows, examples=len(prepared.rows.train), seats=layout.seats),
        )


def render(found: Foresight) -> str:
    """For a person."""
    rows = ", ".join(f"{count} {name}" for name, count in found.rows.items())
    width = max(len("layers"), *(len(_size(cost)) for cost in found.costs))
    head = [
        f"{found.name}: {rows} rows{f', {found.labels} labels' if found.labels else ''}",
        f"strategies  {', '.join(found.strategies)}",
        f"students    {found.students}",
        f"seats       {found.seats} × {found.threads} threads",
        f"budget      {', '.join(f'{value:g} {name}' for name, value in found.budget.items())}",
        *(
            [f"training    about {found.expected_minutes:.0f} min (rough)"]
            if found.expected_minutes is not None
            else []
        ),
        f"feasible    {found.feasible_share:.0%} of {len(found.costs)} sizes × precisions × targets",
        "",
        f"{'layers':>{width}} {'precision':9} {'target':8} {'latency':>10} {'size':>9} {'memory':>9}",
    ]
    return "\n".join([*head, *(_line(cost, width) for cost in found.costs)])


def _minutes(spec: Spec, draws: Sequence[Draw], rows: Sequence[CostRow], *, examples: int, seats: int) -> float | None:
    """The opening's training time, each shared part once, carried over to all plans; what is shared stays shared."""
    if spec.budget.trials is None:
        return None
    latency_s = full_precision_latency_s(rows)
    own: dict[str, float] = {}
    shared: dict[str, float] = {}
    for draw in draws:
        *before, last = draw.plan.trained_prefixes()
        shared |= {part.fingerprint: work_of(part, latency_s) * examples for part in before}
        own[last.fingerprint] = work_of(last, latency_s) * examples
    each = sum(own.values()) / len(own)
    rest = sum(seconds for name, seconds in shared.items() if name not in own)
    return (rest + each * spec.budget.trials) / seats / 60


def _known(rows: list[CostRow]) -> list[CostRow]:
    return sorted(rows, key=lambda row: (row.target, row.precision, row.latency_ms))


def _cost(row: CostRow, space: Space, broken: Callable[[Any], list[str]]) -> dict[str, Any]:
    costs = known_costs([row])[(row.shape, row.precision, row.target)]
    return {
        "layers": space.num_layers(row.shape),
        "student": names_of(space.students).get(row.shape.base),
        "width": row.shape.width,
        "additions": list(row.shape.details),
        "precision": row.precision,
        "target": row.target,
        "estimated": row.estimated,
        **costs,
        "breaks": broken(costs),
    }


def _size(cost: dict[str, Any]) -> str:
    width = f" × {cost['width']:g}" if cost["width"] else ""
    return " + ".join([cost["student"] or f"{cost['layers']}{width}", *cost["additions"]])


def _line(cost: dict[str, Any], width: int) -> str:
    mark = "~" if cost["estimated"] else " "
    breaks = f"  ✗ {'; '.join(cost['breaks'])}" if cost["breaks"] else ""
    return (
        f"{_size(cost):>{width}} {cost['precision']:9} {cost['target']:8} {mark}{cost['latency_ms']:6.2f} ms"
        f" {cost['size_mb']:6.1f} MB {cost['memory_mb']:6.0f} MB{breaks}"
    )
