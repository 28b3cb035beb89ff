"""A record: one immutable row, a variant with its quality, its costs on one target, and how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

Status = Literal["complete", "stopped", "failed", "infeasible"]
Curve = Sequence[tuple[float, float]]
"""(fidelity, quality) at each report, rising in fidelity."""

COST_COLUMNS = ("latency_ms", "latency_p95_ms", "size_mb", "memory_mb", "energy_j", "first_token_ms", "token_ms")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of the ledger. Numbers that were not measured are None."""

    record_id: str
    """Unique in the run and the same when the trial is run again: trial, precision and target."""
    trial_id: str
    number: int
    """Of the proposal, from 0; -1 for shapes that were ruled out before any proposal."""
    strategy: str
    plan: str
    """The plan as canonical JSON."""
    fingerprint: str
    """Of the plan: the name of the artifact it ends in."""
    params: Mapping[str, Any]
    precision: str
    target: str
    estimated: bool
    """Whether the costs come from a profile instead of a measurement."""
    status: Status
    error: str = ""
    """Why it failed, was stopped or ruled out; empty when complete."""
    fidelity: float = 1.0
    """Share of the plan's last stage that was trained."""
    reach: float | None = None
    """Of a stopped plan: how far beyond the front the best that could be hoped for it lay (``ReachesFront.reach``)."""
    resumes: str = ""
    """``trial_id`` of the stopped plan that this one went on with; empty: it began anew."""
    quality: float | None = None
    """The task's metric on the validation split, of the deployed variant."""
    quality_low: float | None = None
    quality_high: float | None = None
    """Ends of the 95 % interval."""
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    energy_j: float | None = None
    first_token_ms: float | None = None
    token_ms: float | None = None
    train_seconds: float | None = None
    """Training time of every stage of the plan, as if alone."""
    prefix_seconds_saved: float = 0.0
    """How much of it was not spent, because the result was there already, or a part of it in a checkpoint."""
    overhead_seconds: float | None = None
    """Time of the trial beside training: deployment, evaluation, waiting."""
    train_memory_mb: float | None = None
    """The largest peak of memory among the plan's stages, 10⁶ bytes."""
    forgetting: float | None = None
    """What the trained model has lost on the task's `retain` rows; positive: lost."""
    overfit: float | None = None
    """Train metric minus validation metric, before deployment."""
    curve: Curve = ()
    """Of the plan's last stage."""
    curve_seconds: Sequence[float] = ()
    """Training seconds of that stage at each point of the curve; empty where they are not known."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What the plan's stages had to say of themselves, such as the share of pseudo-labels that was kept; in a
    simulation also what its table has under names of its own."""
    seed: int = 0
    host: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    """Seconds since 1970."""
    versions: Mapping[str, str] = field(default_factory=dict)
    predictions: Sequence[int] = ()
    """Label index of each validation row; kept in the record's own file only."""

    def value(self, name: str, metric: str) -> float | None:
        """The number called ``name``, where the quality is called ``metric``."""
        if name == metric:
            return self.quality
        # Notes first: a table's own columns are there, under any name.
        found = self.notes[name] if name in self.notes else getattr(self, name, None)
        return None if found is None else float(found)


_JSON = ("params", "curve", "curve_seconds", "notes", "versions")
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema(metric: str, *, predictions: bool = True) -> pa.Schema:
    """Columns of a record's file, the quality under the metric's own name."""
    columns = []
    for item in fields(Record):
        if item.name == "predictions":
            columns += [pa.field("predictions", pa.list_(pa.int32()))] if predictions else []
        else:
            columns.append(pa.field(_column(item.name, metric), _arrow_type(item.name, item.type)))
    return pa.schema(columns, metadata={"metric": metric})


def to_row(record: Record, metric: str) -> dict[str, Any]:
    """The record as one row of ``schema(metric)``."""
    row = asdict(record)
    for name in _JSON:
        row[name] = json.dumps(row[name], sort_keys=True)
    return {_column(name, metric): value for name, value in row.items()}


def from_row(row: Mapping[str, Any], metric: str) -> Record:
    """The record in one row; columns that are not there keep their defaults."""
    values = {
        item.name: row[_column(item.name, metric)] for item in fields(Record) if _column(item.name, metric) in row
    }
    for name in _JSON:
        if name in values:
            values[name] = json.loads(values[name])
    values["curve"] = tuple((float(f), float(q)) for f, q in values["curve"])
    values["curve_seconds"] = tuple(map(float, values.get("curve_seconds", ())))
    values["predictions"] = tuple(values.get("predictions") or ())
    return Record(**values)


def _column(name: str, metric: str) -> str:
    return name.replace("quality", metric, 1) if name.startswith("quality") else name


def _arrow_type(name: str, annotation: Any) -> pa.DataType:
    if name in _JSON:
        return pa.string()
    if name.startswith("quality") or "float" in str(annotation):
        return pa.float64()
    return _TYPES.get(annotation, pa.string())
