"""A whole search against one by Ray Tune, OptunaSearch and a ``TorchTrainer`` a trial: same space, task and minutes.

    python benchmarks/versus_ray_tune.py [--minutes 30] [--seeds 3] [--limit 1200] [--side distune|ray|both]
        [--folder runs/versus] [--json FILE]

The task is that of ``examples/docstrings.yaml``, cut to ``--limit`` training rows, another draw for each seed and the
same for both sides; the strategies are those that one puts together by hand (``by_ray_tune.STRATEGIES``), the ranges
``by_ray_tune.define_space``, which a test holds against distune's. Sides take turns, each in a process of its own with
a Ray of its own and an empty cache; the clock starts with the process, so that imports, tokenising, teachers and
distune's measuring of costs count. What is found after ``--minutes`` does not.

Quality is accuracy on the same validation rows, of the deployed ONNX graph. Latency is that of the deployed shape and
precision, measured once before either side starts: both are scored by the same figures, and luck in measuring wins
nothing. What each side itself measured, and went by, is kept beside it.

Hypervolumes are shares of a box (``anytime.Box``): errors from 0 to those of guessing among the labels, latency by
factors from the quickest of all sizes and precisions to 1.1 times the base at fp32. The ratio of a seed is Ray Tune's
time to the hypervolume that it has at its end (the moment of its last gain, not the end of its budget) over distune's
time to the same; 0 where distune never gets there. The figure is the median over the seeds.

Results are written after each side and seed; the same command goes on where an earlier one ended.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from anytime import Box, Found, Step, final, over_time, time_to, times_sooner
from record_table import probe_apart
from tasks import prepared_task
from versus_sides import SIDES, SPEC, Assignment, search_alone, settings_of

from search.cluster import versions
from search.prepare import Prepared, measure_costs
from spaces.shape import Shape
from trainers.docstrings import docstring_rows
from trainers.kinds import kind_of
from trainers.storage import Storage

_SLOWEST = 1.1
"""Where the box ends, in latencies of the base at fp32: the base itself counts a little."""
_SPARE_S = 600.0
"""A side that has not ended so long after its minutes has hung."""


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    result = opened(options)
    write(result, options)
    done = {(run["side"], run["seed"]) for run in result["runs"]}
    for side, seed in turns(options):
        if (side, seed) not in done:
            result["runs"].append(carried_out(side, seed, options))
            write(result, options)
    print(text(result))


def turns(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Sides and seeds; who was first is second the next time, since a machine changes with the hours."""
    sides = list(SIDES) if options.side == "both" else [options.side]
    for seed in range(options.seeds):
        yield from ((side, seed) for side in (sides[::-1] if seed % 2 else sides))


def opened(options: argparse.Namespace) -> dict[str, Any]:
    """The result so far; a new one has the costs that both sides are scored by."""
    settings = {"limit": options.limit, "minutes": options.minutes}
    if options.json.exists():
        result = json.loads(options.json.read_text())
        if result["settings"] != settings:
            raise SystemExit(f"{options.json}: has results for {result['settings']}; give another --json to begin anew")
        return result
    with cache_in(options.folder / "costs"):
        prepared = prepared_task(SPEC, settings_of(limit=options.limit, seed=0), store=options.folder / "costs")
        costs = latencies(prepared, options.folder / "costs")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "settings": settings,
        "num_labels": len(prepared.context.labels),
        "base_layers": prepared.base.num_layers,
        "latency_ms": costs,
        "runs": [],
    }


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """distune keeps costs in the user's cache; inside the block that is an empty one, but for the harvested rows."""
    with patch.dict(os.environ, {"DISTUNE_CACHE": str(folder / "cache")}):
        docstring_rows()
        yield


def latencies(prepared: Prepared, folder: Path) -> dict[str, float]:
    """Latency of every size and precision, by ``variant``."""

    def export(shapes: Sequence[Shape]) -> None:
        for shape in shapes:
            kind_of(prepared.context).prepare_probe(shape, prepared.context)

    rows = measure_costs(prepared, Storage(folder), measure=probe_apart, say=print, before=export)
    return {variant(prepared.space.num_layers(row.shape), row.precision): row.latency_ms for row in rows}


def variant(num_layers: int, precision: str) -> str:
    return f"{num_layers} layers, {precision}"


def carried_out(side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Have one side search in a process of its own; what it found, and when."""
    folder = options.folder / f"{side}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with cache_in(folder):
        print(f"{side}, seed {seed}: {options.minutes:g} minutes", flush=True)
        assignment = Assignment(
            side=side, seed=seed, limit=options.limit, minutes=options.minutes, began=time.time(), folder=folder
        )
        process = multiprocessing.get_context("spawn").Process(target=search_alone, args=(assignment,))
        process.start()
        process.join(60 * options.minutes + _SPARE_S)
    if process.is_alive():
        # Its Ray ends with it.
        process.kill()
        process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{side}, seed {seed}: ended with {process.exitcode}, see above; the same command goes on")
    wall_s = time.time() - assignment.began
    found = json.loads(assignment.found.read_text())
    rows = [{"seconds": row.pop("finished_at") - assignment.began, **row} for row in found["rows"]]
    # Models of gigabytes, which nobody needs any more.
    shutil.rmtree(folder)
    rows.sort(key=lambda row: row["seconds"])
    return {"side": side, "seed": seed, "wall_s": wall_s, "rows": rows, "failed": found["failed"]}


def compared(result: dict[str, Any]) -> list[dict[str, float]]:
    """Both sides of each seed that both have searched with."""
    curves = {(run["side"], run["seed"]): curve(run, result) for run in result["runs"]}
    seeds = sorted(seed for side, seed in curves if side == "ray" and ("distune", seed) in curves)
    return [_comparison(seed, ours=curves["distune", seed], theirs=curves["ray", seed]) for seed in seeds]


def curve(run: dict[str, Any], result: dict[str, Any]) -> list[Step]:
    """The hypervolume of a side over its time."""
    latency_ms, layers = result["latency_ms"], result["base_layers"]
    found = [
        Found(
            seconds=row["seconds"],
            quality=row["accuracy"],
            latency_ms=latency_ms[variant(row["num_layers"] or layers, row["precision"])],
        )
        for row in run["rows"]
    ]
    box = Box(
        guessing=1 / result["num_labels"],
        quickest_ms=min(latency_ms.values()),
        slowest_ms=_SLOWEST * latency_ms[variant(layers, "fp32")],
    )
    return over_time(found, box, until_s=60 * result["settings"]["minutes"])


def _comparison(seed: int, *, ours: Sequence[Step], theirs: Sequence[Step]) -> dict[str, float]:
    return {
        "seed": seed,
        "distune_hypervolume": final(ours),
        "ray_hypervolume": final(theirs),
        "distune_s": time_to(ours, final(theirs)),
        "ray_s": time_to(theirs, final(theirs)),
        "ratio": times_sooner(ours, theirs),
    }


def write(result: dict[str, Any], options: argparse.Namespace) -> None:
    """The result as JSON, in which a time that never came is null."""
    found = [{name: value if math.isfinite(value) else None for name, value in one.items()} for one in compared(result)]
    options.json.write_text(json.dumps({**result, "compared": found}, indent=1) + "\n")


def text(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [
        f"{run['side']}, seed {run['seed']}: {len(run['rows'])} variants, {len(run['failed'])} trials failed"
        for run in result["runs"]
    ]
    found = compared(result)
    lines += map(_said, found)
    if ratios := [one["ratio"] for one in found if not math.isnan(one["ratio"])]:
        lines.append(f"median of {len(ratios)} seeds: {statistics.median(ratios):.2f}x")
    return "\n".join(lines)


def _said(one: dict[str, float]) -> str:
    if math.isnan(one["ratio"]):
        return f"seed {one['seed']}: Ray Tune found nothing; distune's hypervolume {one['distune_hypervolume']:.4f}"
    volumes = f"hypervolume {one['distune_hypervolume']:.4f} against Ray Tune's {one['ray_hypervolume']:.4f}"
    ours = f"after {one['distune_s']:.0f}" if one["ratio"] else "never"
    return f"seed {one['seed']}: {volumes}; the latter {ours} against {one['ray_s']:.0f} s: {one['ratio']:.2f}x"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1200, help="training rows")
    parser.add_argument("--side", choices=(*SIDES, "both"), default="both")
    parser.add_argument("--folder", type=Path, default=Path("runs/versus"), help="what is under way")
    parser.add_argument("--json", type=Path, help="the result; otherwise result.json in the folder")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    options.json = options.json or options.folder / "result.json"
    return options


if __name__ == "__main__":
    main()
