"""What each method is worth: every strategy that fits a task, trained at equal steps and at equal device-seconds.

    python benchmarks/methods.py --task docstrings|arithmetic|clinc150 [--data FOLDER] [--only label,label]
        [--strategies a,b] [--reference dft] [--seeds 3] [--tuning 3] [--layers 2] [--epochs 4] [--limit ROWS]
        [--set KEY=VALUE …] [--json FILE]

The task is that of ``examples/TASK.yaml``; ``--data`` names a folder with train.jsonl, val.jsonl and test.jsonl for the
one that has no rows of its own. Strategies come from the catalogue. Each is tuned first: its defaults and some draws
from its own ranges, compared on validation with seed 0. The best then runs once a seed and is measured on test,
deployed at fp32 and at int8. A student of one size is trained by all; methods that leave the base's size stand beside
it with half the tuning, and at equal steps alone.

Equal steps: the stages that train the student itself see the rows ``--epochs`` times altogether. Equal seconds: as many
epochs as bring the whole plan, teacher and its answers included, near the seconds that ``--reference`` takes at equal
steps, settings unchanged. Seconds are those of the processor: on a shared machine wall time would measure the
neighbours. ``COSTLY`` strategies are not tuned, and run at equal seconds alone.

Every training is a line of ``runs/methods/TASK.jsonl``; the same command goes on where an earlier one ended.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from methods_plans import COSTLY, VARIANTS, Candidate, drawn_plan, own_stages, variants, with_epochs
from methods_report import Run, report, table
from tasks import EXAMPLES, cut_splits, delete, prepared_task, processor_seconds, read_splits, silent, write_splits

from search.prepare import Prepared
from spaces.catalogue import CATALOGUE
from spaces.plan import Plan
from trainers.carry_out import measure
from trainers.loop import TrainingError
from trainers.ranks import solo
from trainers.run_stage import plan_memory_mb, plan_seconds, run_plan

PRECISIONS = ("fp32", "int8")


@dataclass
class Bench:
    """Trains plans and remembers what was measured of them."""

    prepared: Prepared
    journal: Path
    expected: int
    """About how many trainings there are."""
    done: int = 0
    trained_s: list[float] = field(default_factory=list)
    """Wall seconds of the trainings of this process."""

    def __post_init__(self) -> None:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        self.rows = {(row["fingerprint"], row["split"]): row for row in map(json.loads, lines)}

    def run(self, plan: Plan, *, what: str, split: str, precisions: Sequence[str]) -> dict[str, Any]:
        """What was measured of ``plan``; trains it where nothing was."""
        key, started = (plan.fingerprint, split), time.monotonic()
        self.done += 1
        if key not in self.rows:
            self.rows[key] = row = self._train(plan, split, precisions)
            with self.journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.trained_s.append(time.monotonic() - started)
            self._say(row, what)
        return self.rows[key]

    def forget(self, plan: Plan) -> None:
        """Delete the students that ``plan`` left: a model is large, and no other plan needs them."""
        students = (prefix for prefix in plan.trained_prefixes() if prefix.shape != self.prepared.reference)
        delete(students, self.prepared.context)

    def _train(self, plan: Plan, split: str, precisions: Sequence[str]) -> dict[str, Any]:
        context = self.prepared.context
        row: dict[str, Any] = {"fingerprint": plan.fingerprint, "split": split, "seed": plan.seed}
        row["stages"] = [stage.say() for stage in plan.stages]
        try:
            run_plan(plan, context, ranks=solo(), report=silent)
        except TrainingError as error:
            return row | {"error": str(error), "quality": {}}
        found = measure(plan, precisions, context, split=split)  # type: ignore[arg-type]
        own = [context.store.about(plan.prefix(length).fingerprint) or {} for length in own_stages(plan)]
        return row | {
            "quality": {variant.precision: variant.value for variant in found},
            "seconds": plan_seconds(plan, context.store),
            "own_seconds": sum(about["seconds"] for about in own),
            "memory_mb": plan_memory_mb(plan, context.store),
        }

    def _say(self, row: Mapping[str, Any], what: str) -> None:
        left_s = max(0, self.expected - self.done) * sum(self.trained_s) / len(self.trained_s)
        quality = "  ".join(f"{name} {value:.4f}" for name, value in row["quality"].items())
        figures = f"{quality}  {row['seconds']:.1f} s" if row["quality"] else row["error"]
        print(f"{self.done}/{self.expected}  {what:44}{figures}  about {left_s / 60:.0f} min left", flush=True)


def main() -> None:
    options = arguments()
    runs: list[Run] = []
    # Unpatched, validation rows would be asked after each epoch, for nobody.
    with processor_seconds(), patch("trainers.loop._Fit._quality", lambda _: None):
        for run in benchmark(options, own_task(options)):
            runs.append(run)
            found = report(runs, task=options.task, options=vars(options))
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def benchmark(options: argparse.Namespace, prepared: Prepared) -> Iterator[Run]:
    """Every strategy, the reference first, those of the base's size last."""
    fit = prepared.space.strategies
    asked = options.strategies.split(",") if options.strategies else fit
    names = sorted(
        (name for name in dict.fromkeys([options.reference, *asked]) if name in fit),
        key=lambda name: (name != options.reference, not CATALOGUE[name].student),
    )
    expected = sum(trainings(name, options) for name in names)
    bench = Bench(prepared, options.folder / f"{options.task}.jsonl", expected=expected)
    budget_s = per_pass_s = 0.0
    for name in names:
        began = [] if name in COSTLY else list(equal_steps(bench, name, options))
        yield from began
        if name == options.reference:
            budget_s, per_pass_s = began[0].seconds, began[0].own_seconds / options.epochs
        elif CATALOGUE[name].student and (name in COSTLY or began[0].trained):
            yield from equal_seconds(bench, name, options, began=began, budget_s=budget_s, per_pass_s=per_pass_s)


def trainings(name: str, options: argparse.Namespace) -> int:
    """At most how many there are of a strategy."""
    if name in COSTLY:
        return options.seeds
    at_seconds = CATALOGUE[name].student and name != options.reference
    return num_draws(name, options) + options.seeds * (1 + at_seconds + len(VARIANTS.get(name, ())))


def num_draws(name: str, options: argparse.Namespace) -> int:
    return options.tuning if CATALOGUE[name].student else (options.tuning + 1) // 2


def equal_steps(bench: Bench, name: str, options: argparse.Namespace) -> Iterator[Run]:
    """The strategy tuned, and its variants; all at the same number of steps."""
    drawn = [
        drawn_plan(bench.prepared, name, number, passes=options.epochs) for number in range(num_draws(name, options))
    ]
    qualities = []
    for number, candidate in enumerate(drawn):
        what, precision = f"{name}, setting {number + 1}", candidate.precision
        row = bench.run(candidate.plan, what=what, split="validation", precisions=(precision,))
        qualities.append(row["quality"].get(precision, -1.0))
    best = drawn[qualities.index(max(qualities))]
    yield seeded(bench, best, options, setting="steps", tried=qualities)
    for variant, other in variants(bench.prepared, best, passes=options.epochs):
        yield seeded(bench, other, options, setting="steps", variant=variant)
    for candidate in drawn:
        bench.forget(candidate.plan)


def equal_seconds(
    bench: Bench, name: str, options: argparse.Namespace, *, began: list[Run], budget_s: float, per_pass_s: float
) -> Iterator[Run]:
    """The best plan with as many epochs as take the reference's seconds; at least one of each stage."""
    if began:
        best = Candidate(strategy=name, params=began[0].params, plan=began[0].plan)
        fixed_s, per_pass_s = began[0].seconds - began[0].own_seconds, began[0].own_seconds / options.epochs
    else:
        best = drawn_plan(bench.prepared, name, 0, passes=options.epochs)
        stage = best.plan.stages[-1]
        fixed_s, per_pass_s = 0.6 * budget_s, per_pass_s * stage.passes / stage.optimisation.epochs
    epochs = max(1, round((budget_s - fixed_s) / per_pass_s))
    yield seeded(bench, replace(best, plan=with_epochs(best.plan, epochs)), options, setting="seconds")


def seeded(
    bench: Bench,
    candidate: Candidate,
    options: argparse.Namespace,
    *,
    setting: str,
    variant: str = "",
    tried: Sequence[float] = (),
) -> Run:
    """Once a seed, measured on test."""
    rows = []
    for seed in range(options.seeds):
        plan = candidate.plan.model_copy(update={"seed": seed})
        what = f"{candidate.strategy} {variant}, equal {setting}, seed {seed}"
        rows.append(bench.run(plan, what=what, split="test", precisions=PRECISIONS))
        if seed or setting == "seconds" or variant:
            bench.forget(plan)
    return Run(
        strategy=candidate.strategy,
        variant=variant,
        setting=setting,
        student=CATALOGUE[candidate.strategy].student,
        params=dict(candidate.params),
        plan=candidate.plan,
        rows=tuple(rows),
        tried=tuple(tried),
    )


def own_task(options: argparse.Namespace) -> Prepared:
    """The example's task, one student size, one number of epochs."""
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = [f"model.student_layers=[{options.layers}]", "search.space.quantization=[fp32, int8]", *options.set]
    if options.data:
        splits = cut_splits(read_splits(options.data, only=options.only), num_train=options.limit)
        settings += write_splits(splits, options.folder, options.task)
    elif options.limit:
        settings.append(f"task.limit={options.limit}")
    spec, store = EXAMPLES / f"{options.task}.yaml", options.folder / f"{options.task}-store"
    return prepared_task(spec, settings, store=store)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("docstrings", "arithmetic", "clinc150"), required=True)
    parser.add_argument("--data", type=Path, help="folder with train.jsonl, val.jsonl and test.jsonl")
    parser.add_argument("--only", help="labels of --data to keep, with commas")
    parser.add_argument("--strategies", help="some of the catalogue, with commas; otherwise all that fit")
    parser.add_argument("--reference", default="dft", help="the strategy whose seconds are given to all others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuning", type=int, default=3, help="settings that each strategy tries")
    parser.add_argument("--layers", type=int, default=2, help="of the student")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="at most this many training rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the spec")
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"), help="journal, tokens, models")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
