"""What a search would do, before it does it: trains nothing, measures serving costs only."""

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from search.budget import Limits
from search.cluster import lay_out, ray_running
from search.conductor import Setup
from search.engine import export_shapes, probe_apart
from search.foreknown import Works, work_of
from search.foretold import Foretold, explained, foretell, numbers_of_workers, table
from search.prepare import Prepared, feasible_space, first_draws, known_costs, measure_costs, prepare
from search.run import Run
from search.run_folder import RunChanged, RunFolder
from search.scheduler import make_scheduler
from search.simulation.foretell import Foreseen
from search.spec import Spec
from search.students import names_of
from search.words import say_list, say_students
from spaces.draw import draw
from spaces.methods.finetune import baseline
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space
from trainers.cost import CostRow
from trainers.storage import Storage

_IN_BATCHES = 0.5
"""Time of a row in a batch over its time alone. Medians of searches on 2 cores: docstrings 0.6, arithmetic 0.4."""
_MIN_TIMED = 3
"""Complete plans of a run that tell its pace."""


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
    limits: Limits
    foretold: tuple[Foretold, ...]
    """The search by number of workers."""
    assumptions: tuple[str, ...]
    """What that rests on, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def foresee(
    spec: Spec,
    *,
    say: Callable[[str], None],
    workers: Sequence[int] = (),
    usd_per_hour: float | None = None,
) -> Foresight:
    """Prepare everything in a temporary folder, and look at it.

    Args:
        workers: how many of them to foretell the search for; none: what the spec and the machine say.
        usd_per_hour: the price of a device, for what the search would cost.

    Raises:
        NothingFits: no size satisfies the constraints.
    """
    with tempfile.TemporaryDirectory(prefix="distune-plan-") as folder, ray_running(spec.resources.address):
        storage = Storage(Path(folder))
        layout = lay_out(spec.resources, trials=spec.budget.trials)
        prepared = prepare(spec, storage, threads=layout.cpus, say=say)
        rows = measure_costs(prepared, storage, measure=probe_apart, say=say, before=export_shapes(prepared.context))
        space = feasible_space(prepared, rows)
        foreseen = _foreseen(spec, prepared, space, rows, devices=layout.workers)
        counts = workers or numbers_of_workers(spec.resources.max_concurrent, here=layout.seats)
        say(f"simulating the search with {say_list([str(count) for count in counts])} workers")
        costs = [_cost(row, prepared.space, prepared.goals.broken_known) for row in _known(rows)]
        return Foresight(
            name=spec.name,
            notes=prepared.notes,
            rows={name: len(split) for name, split in prepared.rows.splits.items()},
            labels=len(prepared.rows.labels),
            strategies=space.strategies,
            student_layers=space.student_layers,
            students=say_students(space),
            opening=tuple(found.strategy for found in foreseen.setup.opening),
            seats=layout.seats,
            threads=layout.cpus,
            costs=tuple(costs),
            feasible_share=sum(not cost["breaks"] for cost in costs) / len(costs),
            budget=spec.budget.model_dump(exclude_none=True),
            limits=foreseen.setup.limits,
            foretold=tuple(foretell(foreseen, workers=counts, here=layout.seats, usd_per_hour=usd_per_hour)),
            assumptions=explained(foreseen),
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
        f"feasible    {found.feasible_share:.0%} of {len(found.costs)} sizes × precisions × targets",
        "",
        f"{'layers':>{width}} {'precision':9} {'target':8} {'latency':>10} {'size':>9} {'memory':>9}",
    ]
    costs = [_line(cost, width) for cost in found.costs]
    return "\n".join([*head, *costs, "", *table(found.foretold, found.limits), "", *found.assumptions])


def _foreseen(spec: Spec, prepared: Prepared, space: Space, rows: list[CostRow], *, devices: int) -> Foreseen:
    """The search as a simulation needs it."""
    row_s, run = _row_s(rows), _earlier(spec)

    def train_s(plan: Plan) -> float:
        return work_of(plan, row_s) * len(prepared.rows.train)

    pace, num_timed = pace_of(run, train_s) if run else (1.0, 0)
    answers_s: dict[Shape, float] = defaultdict(float)
    for row in rows:
        answers_s[row.shape] += 0.0 if row.estimated else row.latency_ms / 1e3
    setup = Setup(
        goals=prepared.goals,
        costs=known_costs(rows),
        estimated=frozenset(),
        opening=first_draws(space, prepared.goals),
        baseline=baseline(space).fingerprint,
        precisions=prepared.precisions,
        limits=Limits.of(spec.budget),
        devices_per_trial=devices,
    )
    return Foreseen(
        setup=setup,
        drawing=partial(draw, space),
        sampler=spec.search.sampler,
        scheduler=make_scheduler(spec.search.scheduler),
        seed=space.seed,
        train_s=lambda plan: pace * train_s(plan),
        beside_s=lambda plan: answers_s[plan.shape] * len(prepared.rows.validation),
        num_timed=num_timed,
    )


def _earlier(spec: Spec) -> Run | None:
    """The run that the same search would go on with."""
    with contextlib.suppress(RunChanged):
        storage = RunFolder.open(spec, new=False).storage
        return Run(storage) if storage.exists("spec.yaml") else None
    return None


def pace_of(run: Run, train_s: Callable[[Plan], float]) -> tuple[float, int]:
    """By how much the run's complete plans took longer than foreseen, their median, and how many these are.

    ``train_s``: what the training of a plan's last stage is foreseen to take. Of few plans nothing is told: (1, 0).
    """
    works, found = Works(train_s), {}
    for proposal in run.ledger.proposals:
        records = run.ledger.records_of(proposal.number)
        own, beginnings = works(proposal.draw)
        if records and records[0].status == "complete" and records[0].train_seconds and own:
            found[proposal.number] = records[0].train_seconds / (own + sum(beginnings.values()))
    return (median(found.values()), len(found)) if len(found) >= _MIN_TIMED else (1.0, 0)


def _row_s(rows: Sequence[CostRow]) -> dict[Shape, float]:
    """Seconds in which a model reads one row of many, by shape."""
    whole = [row for row in rows if row.precision == "fp32" and not row.estimated]
    return {row.shape: _IN_BATCHES * (row.first_token_ms or row.latency_ms) / 1e3 for row in whole}


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
