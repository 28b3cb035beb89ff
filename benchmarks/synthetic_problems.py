"""Problems with a known front, written as tables of 20,000 rows for ``search_quality.py``.

``zdt1`` [Zitzler2000] has a known front, of which f1 is the known cost; ``conditional`` has a known front over branches
with parameters of their own.
"""

import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_ROWS = 20_000


def zdt1(folder: Path) -> Path:
    """Five variables; f1 is known, f2 is the quality. The front is f2 = 1 - √f1."""
    rng = random.Random(0)
    rows = [{f"x{i}": rng.random() for i in range(5)} for _ in range(_ROWS)]
    for row in rows:
        # Some of the rows lie at the front, so that the table has one.
        if rng.random() < 0.2:
            row |= {f"x{i}": rng.random() ** 6 for i in range(1, 5)}
        g = 1 + 9 / 4 * sum(row[f"x{i}"] for i in range(1, 5))
        row |= {"f1": row["x0"], "f2": g * (1 - math.sqrt(row["x0"] / g))}
    params = {f"x{i}": {"type": "float"} for i in range(5)}
    return _written(folder, "zdt1", rows, params, quality={"column": "f2", "direction": "min"}, known_costs=["f1"])


def conditional(folder: Path) -> Path:
    """Three branches with a size and a rate of their own; each has its best rate, and at each size one is best."""
    rng = random.Random(0)
    rows = []
    for _ in range(_ROWS):
        branch, size = rng.choice(("a", "b", "c")), rng.randint(1, 8)
        rate = 10 ** rng.uniform(-5, -1)
        best, lift = {"a": (1e-4, 0.0), "b": (1e-3, 0.03), "c": (1e-2, 0.06 - 0.01 * size)}[branch]
        quality = 1 - math.exp(-size / 3) + lift - 0.03 * math.log(rate / best) ** 2
        rows.append({"branch": branch, f"rate_{branch}": rate, "size": size, "quality": quality, "cost": float(size)})
    columns = ("branch", "rate_a", "rate_b", "rate_c", "size", "quality", "cost")
    rows = [{name: row.get(name) for name in columns} for row in rows]
    rates = {f"rate_{name}": {"type": "float", "log": True, "when": {"branch": [name]}} for name in "abc"}
    params = {"branch": {"type": "categorical"}, **rates, "size": {"type": "int"}}
    quality = {"column": "quality", "direction": "max"}
    return _written(folder, "conditional", rows, params, quality=quality, known_costs=["cost"])


SYNTHETIC = {"zdt1": zdt1, "conditional": conditional}
"""By name; each writes a problem to a folder and returns its file."""


def _written(folder: Path, name: str, rows: list[dict[str, Any]], params: dict[str, Any], **problem: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"table": f"{name}.parquet", "params": params, **problem}, sort_keys=False))
    return path
