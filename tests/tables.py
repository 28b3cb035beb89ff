"""Small problems of recorded trainings, written to a folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import yaml

PLAIN = {
    "table": "table.csv",
    "params": {"depth": {"type": "int"}, "rate": {"type": "float", "log": True}},
    "quality": {"column": "accuracy", "direction": "max"},
    "known_costs": ["size"],
}
"""Of the columns that ``plain_columns`` has."""


def plain_columns(rates=(0.001, 0.01, 0.1), depths=(1, 2, 3, 4)):
    """Every depth at every rate; the middle rates are best, and so is depth."""
    pairs = [(depth, rate) for depth in depths for rate in rates]
    return {
        "depth": [depth for depth, _ in pairs],
        "rate": [rate for _, rate in pairs],
        "accuracy": [0.5 + 0.1 * depth - abs(rate - 0.01) for depth, rate in pairs],
        "size": [10.0 * depth for depth, _ in pairs],
    }


CURVES = {
    "table": "table.parquet",
    "id": "run",
    "params": {
        "strategy": {"type": "categorical"},
        "rate": {"type": "float", "log": True},
        "rank": {"type": "int", "when": {"strategy": ["lora"]}},
    },
    "fidelity": "epoch",
    "quality": {"column": "accuracy", "direction": "max"},
    "known_costs": ["size"],
    "learned_costs": ["seconds"],
    "train_cost": "seconds",
    "fan_out": "precision",
    "shared": {"teacher": "teacher_seconds"},
}
"""Of the columns that ``curve_columns`` has: everything that a problem file knows."""


def curve_columns(num=4, epochs=3):
    """``num`` trainings at rates that rise, every second one with a rank, two of each three with a teacher."""
    rows = []
    for run in range(num):
        lora = run % 2 == 1
        for epoch in range(1, epochs + 1):
            for precision in ("fp32", "int8") if epoch == epochs else ("fp32",):
                rows.append(
                    {
                        "run": f"r{run}",
                        "strategy": "lora" if lora else "full",
                        "rate": 0.001 * 2.0**run,
                        "rank": 4 + run if lora else None,
                        "epoch": epoch,
                        "precision": precision,
                        "accuracy": 0.1 * run + 0.02 * epoch - (0.01 if precision == "int8" else 0.0),
                        "size": (2.0 if precision == "int8" else 8.0) + run,
                        "seconds": 10.0 * (run + 1) * epoch,
                        "teacher": None if run % 3 == 0 else "long",
                        "teacher_seconds": None if run % 3 == 0 else 90.0 + run,
                    }
                )
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_problem(folder: Path, problem=None, columns=None, **changes) -> Path:
    """The problem file, and its table beside it."""
    problem = {**(PLAIN if problem is None else problem), **changes}
    table = pa.table(plain_columns() if columns is None else columns)
    path = folder / problem["table"]
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.CompressedOutputStream(path, "gzip") if path.suffix == ".gz" else path.open("wb") as file:
            pa_csv.write_csv(table, file)
    file = folder / "problem.yaml"
    file.write_text(yaml.safe_dump(problem, sort_keys=False))
    return file
