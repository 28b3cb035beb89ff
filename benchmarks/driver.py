"""How many results a second a search's driver handles, and in how much memory: no training, no Ray.

    python benchmarks/driver.py [--workers 1000] [--trials 10000] [--epochs 1] [--samplers random]
        [--schedulers none] [--json FILE]

The conductor, ledger, sampler and scheduler of a real search, with virtual workers on a made-up table of
``--trials`` configurations. A result is a trial that has come to its end; with ``--epochs`` above 1 it has reported as
often before. Processor seconds of the whole driver, its proposals included; the ledger is in memory.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from search.budget import Limits
from search.scheduler import make_scheduler
from search.simulation.problem import load_problem
from search.simulation.samplers import SAMPLERS
from search.simulation.simulate import simulate
from search.simulation.table import Table, read_table


def make_table(folder: Path, *, count: int, epochs: int) -> Table:
    """``count`` configurations of two numbers and a category; quality rises with training, and costs with both."""
    rng = np.random.default_rng(0)
    depth, rate, kind = rng.integers(1, 25, count), 10 ** rng.uniform(-5, -1, count), rng.integers(0, 4, count)
    best = 0.5 + 0.3 * depth / 25 - 0.02 * (np.log10(rate) + 3) ** 2 + 0.03 * kind + rng.normal(0, 0.01, count)
    share = np.tile(np.arange(1, epochs + 1) / epochs, count)
    columns = {
        "run": np.repeat(np.arange(count), epochs),
        "epoch": np.tile(np.arange(1, epochs + 1), count),
        "depth": np.repeat(depth, epochs),
        "rate": np.repeat(rate, epochs),
        "kind": np.repeat(kind, epochs),
        "accuracy": np.repeat(best, epochs) * share**0.3,
        "size": np.repeat(10.0 * depth + kind, epochs),
        "seconds": np.repeat(rng.uniform(5, 50, count), epochs) * share,
    }
    pq.write_table(pa.table(columns), folder / "table.parquet")
    problem = {
        "table": "table.parquet",
        "id": "run",
        "params": {"depth": {"type": "int"}, "rate": {"type": "float", "log": True}, "kind": {"type": "categorical"}},
        "fidelity": "epoch",
        "quality": {"column": "accuracy", "direction": "max"},
        "known_costs": ["size"],
        "train_cost": "seconds",
    }
    (folder / "problem.yaml").write_text(yaml.safe_dump(problem))
    return read_table(load_problem(folder / "problem.yaml"))


def measure(table: Table, sampler: str, scheduler: str, *, workers: int, trials: int) -> dict[str, float]:
    """One search of the table."""
    began = time.perf_counter()
    found = simulate(
        table,
        sampler=SAMPLERS[sampler],
        seed=0,
        scheduler=make_scheduler(scheduler),
        workers=workers,
        limits=Limits(trials=trials),
    )
    results = len({record.number for record in found.records})
    return {
        "results": results,
        "stopped": sum(record.status == "stopped" for record in found.records),
        "results_per_s": results / found.driver_s,
        "wall_s": time.perf_counter() - began,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samplers", default="random")
    parser.add_argument("--schedulers", default="none")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "settings": {"workers": given.workers, "trials": given.trials, "epochs": given.epochs},
    }
    with tempfile.TemporaryDirectory() as folder:
        table = make_table(Path(folder), count=given.trials, epochs=given.epochs)
    for sampler, scheduler in product(given.samplers.split(","), given.schedulers.split(",")):
        told = measure(table, sampler, scheduler, workers=given.workers, trials=given.trials)
        found[f"{sampler} + {scheduler}"] = told
        said = f"{told['results_per_s']:.0f} results/s, {told['peak_memory_mb']:.0f} MB"
        print(f"{sampler} + {scheduler}: {said}", file=sys.stderr)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
