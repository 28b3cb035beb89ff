"""Recorded plans as the rows of a table, and the problem file that says what its columns mean."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.ranges import Range
from spaces.shape import Shape
from spaces.targets import Precision
from trainers.cost import MEASURED

KNOWN_COSTS = ("latency_ms", "size_mb", "memory_mb")
_STRATEGY = "strategy"

Row = dict[str, Any]
Costs = Mapping[tuple[Shape, str, str], Mapping[str, float | None]]
"""By shape, precision and target."""


def rows_of(records: Sequence[Mapping[str, Any]], costs: Costs, *, metric: str) -> list[Row]:
    """One row for each variant of a plan at one fidelity; below 1 at the precision that its curve has. What failed has
    rows without a quality, at fidelity 1.
    """
    names = list(dict.fromkeys(name for record in records for name in record["params"]))
    rows = [row for record in records for row in _rows(record, names, costs, metric)]
    empty = {name for name in rows[0] if all(row[name] is None for row in rows)} if rows else set()
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _rows(record: Mapping[str, Any], names: Sequence[str], costs: Costs, metric: str) -> Iterator[Row]:
    shape, empty = Shape(**record["shape"]), {"quality": None, "low": None, "high": None}
    precisions = [precision for of, precision, target in costs if of == shape and target == MEASURED]
    curve = record.get("curve") or [{"fidelity": 1.0, "seconds": record["seconds"]}]
    variants = record.get("variants") or [{"precision": precision, **empty} for precision in precisions]
    for entry in curve:
        beginning = [{**empty, "precision": curve_precision(record["strategy"]), "quality": entry.get("quality")}]
        for variant in variants if entry["fidelity"] == 1 else beginning:
            known = costs[(shape, variant["precision"], MEASURED)]
            yield {
                **{name: record[name] for name in ("id", "config")},
                "fidelity": entry["fidelity"],
                "precision": variant["precision"],
                _STRATEGY: record[_STRATEGY],
                **{name: record["params"].get(name) for name in names},
                **{name: record[name] for name in ("seed", "num_layers")},
                metric: variant["quality"],
                f"{metric}_low": variant["low"],
                f"{metric}_high": variant["high"],
                **{name: known[name] for name in KNOWN_COSTS},
                "train_seconds": entry["seconds"],
                "shared_id": record["shared_id"],
                "shared_seconds": record["shared_seconds"],
                "forgetting": record.get("forgetting") if entry["fidelity"] == 1 else None,
                "stages": record.get("stages") if entry["fidelity"] == 1 else None,
            }


def curve_precision(strategy: str) -> Precision:
    """The arithmetic in which a plan is asked while it trains."""
    return "int8" if "int8" in CATALOGUE[strategy].needs else "fp32"


def table_of(rows: Sequence[Row], *, about: Mapping[str, str]) -> bytes:
    """The rows as a Parquet file with ``about`` in its metadata."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table.replace_schema_metadata(dict(about)), sink, compression="zstd")
    return sink.getvalue()


def problem_of(rows: Sequence[Row], *, metric: str, table: str) -> dict[str, Any]:
    """What ``distune simulate`` reads beside the table: what varies in it, and what was measured.

    Raises:
        ValueError: some rows have a parameter and others lack it, and no other parameter tells which.
    """
    params = [name for name in rows[0] if name in PARAMETERS or name in (_STRATEGY, *_SIZES)]
    varied = [name for name in params if len({row[name] for row in rows} - {None}) > 1]
    return {
        "table": table,
        "id": "id",
        "params": {name: _param(name, rows, varied) for name in varied},
        "fidelity": "fidelity",
        "quality": {"column": metric, "direction": "max"},
        "known_costs": ["latency_ms"],
        "train_cost": "train_seconds",
        "fan_out": "precision",
        "shared": {"shared_id": "shared_seconds"},
    }


_SIZES = ("student", "student_layers", "student_width", "teacher")
"""What strategies ask for that is no parameter of theirs."""


def _param(name: str, rows: Sequence[Row], varied: Sequence[str]) -> dict[str, Any]:
    span = PARAMETERS.get(name)
    if not isinstance(span, Range):
        found: dict[str, Any] = {"type": "categorical"}
    else:
        found = {"type": "int" if span.kind == "integer" else "float"} | ({"log": True} if span.log else {})
    when = _when(name, rows, varied)
    return found | ({"when": when} if when else {})


def _when(name: str, rows: Sequence[Row], varied: Sequence[str]) -> dict[str, list[Any]]:
    """At which strategies the parameter is read, and at which options of one other where that decides as well."""
    strategies = {row[_STRATEGY] for row in rows if row[name] is not None}
    when = {} if len(strategies) == len({row[_STRATEGY] for row in rows}) else {_STRATEGY: sorted(strategies)}
    of_these = [row for row in rows if row[_STRATEGY] in strategies]
    if all(row[name] is not None for row in of_these):
        return when
    for other in varied:
        options: dict[bool, set[Any]] = {True: set(), False: set()}
        for row in of_these:
            options[row[name] is not None].add(row[other])
        decides = not options[True] & options[False] and None not in options[True] | options[False]
        if decides and not isinstance(PARAMETERS.get(other), Range):
            return {**when, other: sorted(options[True])}
    raise ValueError(
        f"{name}: no other parameter tells which rows have it; leave it one value: --set search.space.{name}=…"
    )


def write_problem(problem: Mapping[str, Any], path: Path, about: Mapping[str, Any]) -> None:
    """The problem file, with how much is in its table above it."""
    head = f"# {about['plans']} plans, {about['failed']} of them failed. Made by benchmarks/record_table.py.\n"
    path.write_text(head + yaml.safe_dump(dict(problem), sort_keys=False, default_flow_style=None, width=120))
