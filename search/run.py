"""A run's folder, read: records, front, choice, outputs. Needs neither torch nor Ray, and changes no record."""

import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from search.goals import CostTable, Goals, baseline_quality
from search.ledger import Ledger, read_table, write_table
from search.pareto import non_dominated
from search.progress import Box, ByChance, minimised, points_on
from search.records import COST_COLUMNS, Record
from search.select import Choice, NoChoice, Wish, choice_to_json, choose
from search.words import say_shape, say_size, student_names
from spaces.methods.finetune import Finetune
from spaces.objectives import parse_constraint
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space
from spaces.space_json import SPACE, space_from_json
from spaces.stages import Optimisation
from spaces.targets import PRECISIONS
from trainers.storage import Storage


class RunError(ValueError):
    """The folder is not that of a run; says what is missing and the way out."""


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """Quality on the test split, which nothing was chosen by, with its 95 % interval."""

    value: float
    low: float
    high: float


class Run:
    """One run as it is on its storage at the moment it is loaded."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.spec_text = _read_spec(storage)
        self.spec: Mapping[str, Any] = yaml.safe_load(self.spec_text) or {}
        """The resolved spec as plain data."""
        self.goals = _goals(self.spec)
        self.ledger = Ledger(storage, metric=self.goals.metric)
        self.cost_table: pa.Table | None = (
            read_table(storage, "cost_table.parquet") if storage.exists("cost_table.parquet") else None
        )
        self.confirmed: Mapping[str, Confirmed] = {
            record_id: Confirmed(**found) for record_id, found in _json(storage, "confirmation.json").items()
        }

    @property
    def name(self) -> str:
        """The run's name in its spec."""
        return str(self.spec.get("name", "run"))

    @property
    def metric(self) -> str:
        """The task's quality metric."""
        return self.goals.metric

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they were finished."""
        return self.ledger.records

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """What is right in each validation row, as a label index; None where the run did not write it down."""
        rows = _json(self.storage, "validation_labels.json").get("rows")
        return None if rows is None else np.asarray(rows, dtype=np.int64)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was said of data and models before the first trial: all that was left out, cut or looks odd."""
        return tuple(_json(self.storage, "notes.json").get("notes", ()))

    @cached_property
    def baseline(self) -> Record | None:
        """The base model fine-tuned in full by the first teacher recipe, at fp32; None if it is not there."""
        fingerprint = _baseline_fingerprint(self.spec, self.records)
        found = [r for r in self.records if r.fingerprint == fingerprint and r.precision == "fp32"]
        complete = [r for r in found if r.status == "complete"]
        return next((r for r in complete if r.target == self.goals.targets[0]), next(iter(complete), None))

    @cached_property
    def space(self) -> Space | None:
        """What plans were drawn from; None where it was not written down, or in a way that this version cannot read."""
        if not self.storage.exists(SPACE):
            return None
        with contextlib.suppress(ValueError):
            return space_from_json(self.storage.read(SPACE))
        return None

    @cached_property
    def costs(self) -> CostTable:
        """The cost table by (shape, precision, target)."""
        rows = self.cost_table.to_pylist() if self.cost_table is not None else []
        return {
            (Shape.of_row(row), row["precision"], row["target"]): {name: row.get(name) for name in COST_COLUMNS}
            for row in rows
        }

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that models are deployed at."""
        return tuple(name for name in PRECISIONS if any(precision == name for _, precision, _ in self.costs))

    @property
    def full_precision_latency_s(self) -> dict[Shape, float]:
        """Of a request, by shape, on the machine of the run."""
        rows = self.cost_table.to_pylist() if self.cost_table is not None else []
        measured = (row for row in rows if row["precision"] == "fp32" and not row["estimated"])
        return {Shape.of_row(row): row["latency_ms"] / 1e3 for row in measured}

    @cached_property
    def by_chance(self) -> ByChance:
        """What random searches of the same space would have reached in the same time of training, by simulation."""
        # What is learned from the records takes a second to import.
        from search.simulation.by_chance import by_chance

        return by_chance(self)

    @property
    def baseline_quality(self) -> float | None:
        """Its quality; None while it is not known."""
        return baseline_quality(self.records, self.baseline.fingerprint) if self.baseline else None

    def points(self, target: str) -> tuple[list[Record], NDArray[np.float64]]:
        """Complete variants on ``target`` and their objectives, all minimised: records × objectives, NaN if unknown."""
        return points_on(self.records, self.goals, target)

    def front_records(self, target: str) -> list[Record]:
        """Complete, feasible, non-dominated variants on ``target``, cheapest first."""
        records, points = self.points(target)
        feasible = np.array([self.goals.feasible(r, baseline=self.baseline_quality) for r in records], dtype=bool)
        points[~feasible] = np.nan
        front = [(tuple(point), r) for point, r, on in zip(points, records, non_dominated(points), strict=True) if on]
        return [record for _, record in sorted(front, key=lambda pair: (pair[0][::-1], pair[1].record_id))]

    def front(self, target: str | None = None) -> pa.Table:
        """The front on ``target``, or on every target, with the test split's quality in ``test_*`` columns."""
        targets = [target] if target else self.goals.targets
        return self._with_test([record for name in targets for record in self.front_records(name)])

    def best_by_size(self) -> pa.Table:
        """The best complete variant of each strategy at each size and precision: the front's columns, num_layers, and
        the size in words.
        """
        best: dict[tuple[Any, ...], Record] = {}
        for record in self.records:
            if record.status == "complete" and record.target == self.goals.targets[0] and record.quality is not None:
                key = (num_layers(record) or math.inf, size_of(record), record.precision, record.strategy)
                found = best.setdefault(key, record)
                if minimised(record.quality, self.metric) < minimised(found.quality, self.metric):
                    best[key] = record
        records = [best[key] for key in sorted(best)]
        layers = pa.array([num_layers(record) for record in records], pa.int64())
        sizes = pa.array([size_of(record) for record in records], pa.string())
        return self._with_test(records).append_column("num_layers", layers).append_column("size", sizes)

    def known_target(self, target: str) -> str:
        """``target``, which is one of this run's. Raises ``RunError`` where it is not."""
        if target not in self.goals.targets:
            raise RunError(f"target {target!r} is not in this run; it has {', '.join(self.goals.targets)}")
        return target

    def select(self, where: Sequence[str] = (), *, target: str | None = None, wish: Wish = "knee") -> Choice:
        """The variant to ship under the spec's constraints and those in ``where``.

        Raises:
            NoChoice: none fits.
            RunError: ``target`` is none of this run's.
            ValueError: a constraint does not parse, or ``wish`` is unknown.
        """
        target = self.known_target(target or self.goals.targets[0])
        return choose(
            self.records,
            metric=self.metric,
            objectives=self.goals.objectives,
            constraints=[*self.goals.constraints, *(parse_constraint(text) for text in where)],
            target=target,
            wish=wish,
            predictions=self.ledger.predictions,
            labels=self.labels,
            baseline=self.baseline_quality,
        )

    def box(self, target: str) -> Box:
        """What hypervolume on ``target`` is a share of."""
        return Box.around(self.records, self.goals, target, baseline=self.baseline_quality)

    def hypervolume_over_time(self, target: str | None = None) -> pa.Table:
        """Columns seconds, train_seconds, trials, hypervolume: after each trial that ended, the share of the
        objectives' box that feasible variants cover.

        Objectives are scaled to their range over all complete variants, costs by their logarithm; the reference point
        lies at 1.1, so 1 is reached by a variant that is best in everything.
        """
        steps = self.box(target or self.goals.targets[0]).steps(self.records)
        return pa.Table.from_pylist([asdict(step) for step in steps], schema=_OVER_TIME)

    def report(self, path: Path | None = None) -> Path:
        """Write the report as one HTML file: to ``path``, or as ``report.html`` in the run's folder.

        On an object store it is put there, and a copy on this machine is returned.
        """
        # The report draws on plotly; whoever only selects does not pay for it.
        from search.report.build import build
        from search.report.html import render_html

        page = render_html(build(self)).encode()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(page)
            return path
        self.storage.write("report.html", page)
        if self.storage.local_path is not None:
            return self.storage.local_path / "report.html"
        copy = Path(tempfile.mkdtemp(prefix="distune-report-")) / "report.html"
        copy.write_bytes(page)
        return copy

    def write_outputs(self) -> None:
        """Write ``trials.parquet``, ``front.parquet``, ``selection.json`` and ``report.html`` to the run's folder."""
        on_front = {record.record_id for target in self.goals.targets for record in self.front_records(target)}
        flags = pa.array([record.record_id in on_front for record in self.records], pa.bool_())
        write_table(self.ledger.table().append_column("on_front", flags), self.storage, "trials.parquet")
        write_table(self.front(), self.storage, "front.parquet")
        self.storage.write_json("selection.json", self._selection())
        self.report()

    def _selection(self) -> dict[str, Any]:
        found = {}
        for target in self.goals.targets:
            try:
                found[target] = {"target": target, **choice_to_json(self.select(target=target))}
            except NoChoice as error:
                found[target] = {"target": target, "record": None, "rivals": [], "reasons": [str(error)]}
        first, *others = self.goals.targets
        return {**found[first], "other_targets": [found[target] for target in others]}

    def _with_test(self, records: Sequence[Record]) -> pa.Table:
        table = self.ledger.table(records)
        tested = [self.confirmed.get(record.record_id) for record in records]
        for part, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            values = [None if found is None else getattr(found, part) for found in tested]
            table = table.append_column(f"test_{self.metric}{end}", pa.array(values, pa.float64()))
        return table

    def _repr_html_(self) -> str:
        from search.report.build import build
        from search.report.html import render_front

        return render_front(build(self, by_chance=False))


_OVER_TIME = pa.schema(
    [("seconds", pa.float64()), ("train_seconds", pa.float64()), ("trials", pa.int64()), ("hypervolume", pa.float64())]
)


def load_run(location: str | Path) -> Run:
    """The run in a folder or at a URI.

    Raises:
        RunError: it is not a run's folder.
        LedgerError: a record cannot be read.
    """
    return Run(Storage(location))


def num_layers(record: Record) -> int | None:
    """Layers of the model that a record's plan ends in; None: as many as the base has."""
    return Plan.model_validate_json(record.plan).shape.num_layers if record.plan else None


def size_of(record: Record) -> str:
    """The size of a record's model, or its name where the student is a model of its own."""
    plan = Plan.model_validate_json(record.plan)
    return say_size(plan.shape, names=student_names(plan))


def described(record: Record) -> str:
    """As ``size_of``, and what else its serving costs depend on."""
    plan = Plan.model_validate_json(record.plan)
    return say_shape(plan.shape, names=student_names(plan))


def _read_spec(storage: Storage) -> str:
    try:
        return storage.read("spec.yaml").decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            f"{storage.shown} has no spec.yaml, so it is not the folder of a run; "
            "give the folder that `distune search` named, for example runs/NAME"
        ) from error


def _json(storage: Storage, name: str) -> dict[str, Any]:
    return dict(storage.read_json(name)) if storage.exists(name) else {}


def _goals(spec: Mapping[str, Any]) -> Goals:
    search = spec.get("search") or {}
    metric = (spec.get("task") or {}).get("metric") or "accuracy"
    return Goals(
        metric=metric,
        objectives=tuple(search.get("objectives") or (metric, "latency_ms")),
        constraints=tuple(parse_constraint(text) for text in search.get("constraints") or ()),
        targets=tuple(spec.get("targets") or ("cpu",)),
    )


def _baseline_fingerprint(spec: Mapping[str, Any], records: Sequence[Record]) -> str | None:
    search = spec.get("search") or {}
    recipe = next(iter((search.get("teacher_recipes") or {}).values()), None)
    some_plan = next((record.plan for record in records if record.plan), None)
    if recipe is None or some_plan is None:
        return None
    optimisation = Optimisation(**{"batch_size": search.get("batch_size", 32), **recipe})
    plan = Plan.model_validate_json(some_plan)
    return plan.model_copy(update={"stages": (Finetune(optimisation=optimisation),)}).fingerprint
