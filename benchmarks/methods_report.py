"""The results of ``methods.py``: a table, and the comparisons that were asked for."""

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.plan import Plan

COMPARISONS = (
    ("distillation against fine-tuning", "distill_soft", "small_finetune", "fp32"),
    ("the same, student cut from the expert", "finetune_then_distill", "small_finetune", "fp32"),
    ("features, then soft labels, against soft labels", "distill_feature", "finetune_then_distill", "fp32"),
    ("rationales against answers alone", "distill_cot", "small_finetune", "fp32"),
    ("rationales written, against answers alone", "distill_cot generate", "small_finetune", "fp32"),
    ("rationales as a second task, against answers alone", "distill_cot multitask", "small_finetune", "fp32"),
    ("mixture of experts against one teacher", "moe_dft", "dft", "fp32"),
    ("mixture: learned gate against uniform weights", "moe_dft gate", "moe_dft uniform", "fp32"),
    ("int8 in training against after it", "quantized_distill", "quantized_distill post-training", "int8"),
    ("a teacher that goes on learning against one that does not", "meta_distill", "distill_soft", "fp32"),
    ("adapters against LoRA", "adapter", "lora", "fp32"),
    ("LoRA against all weights", "lora", "full", "fp32"),
    ("on-policy against offline", "distill_reverse_kl on-policy", "distill_reverse_kl offline", "fp32"),
    ("pseudo-labels against gold labels alone", "pseudo_label", "small_finetune", "fp32"),
)
"""(what, one, the other, precision). Those of which both were run are reported."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One plan, once a seed."""

    strategy: str
    variant: str
    setting: str
    student: bool
    params: Mapping[str, Any]
    plan: Plan
    rows: tuple[Mapping[str, Any], ...]
    """What was measured, a row a seed."""
    tried: tuple[float, ...]
    """Validation quality of the settings among which it was picked."""

    @property
    def name(self) -> str:
        """Strategy and variant."""
        return f"{self.strategy} {self.variant}".strip()

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """The rows of the seeds that did not fail."""
        return [row for row in self.rows if row["quality"]]

    @property
    def seconds(self) -> float:
        """Of the whole plan, mean over seeds."""
        return statistics.mean(row["seconds"] for row in self.trained)

    @property
    def own_seconds(self) -> float:
        """Of the student's own stages."""
        return statistics.mean(row["own_seconds"] for row in self.trained)


def report(runs: Sequence[Run], *, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All of it as plain JSON."""
    shown = ("strategies", "reference", "seeds", "tuning", "layers", "epochs", "limit", "only", "set")
    return {
        "task": task,
        "options": {name: options[name] for name in shown},
        "rows": [_row(run) for run in runs if run.trained],
        "failed": {f"{run.name}, equal {run.setting}": run.rows[0]["error"] for run in runs if not run.trained},
        "comparisons": list(_comparisons(runs)),
        "machine": platform.processor() or platform.machine(),
    }


def table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| method | equal | fp32 | ± | int8 | ± | seconds | stages of seed 0 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        cells = [f"`{row['method']}`", row["setting"]]
        for precision in ("fp32", "int8"):
            cells += [f"{statistics.mean(row['test'][precision]):.3f}", f"{spread(row['test'][precision]):.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.1f}", "; ".join(row["stages"])]) + " |")
    lines += [
        "",
        "| comparison | equal | precision | difference | ± | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found["comparisons"]:
        signs = " ".join(f"{value:+.3f}" for value in one["differences"])
        cells = [one["what"], one["setting"], one["precision"], f"{one['mean']:+.3f}", f"{one['sd']:.3f}", signs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 of one alone."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _row(run: Run) -> dict[str, Any]:
    names = run.trained[0]["quality"]
    return {
        "method": run.name,
        "student": run.student,
        "setting": run.setting,
        "params": dict(run.params),
        "stages": run.trained[0]["stages"],
        "test": {name: [row["quality"][name] for row in run.trained] for name in names},
        "seconds": run.seconds,
        "own_seconds": run.own_seconds,
        "memory_mb": max(row["memory_mb"] for row in run.trained),
        "tried": list(run.tried),
    }


def _comparisons(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Differences seed by seed: both of a pair were trained with the same seeds."""
    by_name = {(run.name, run.setting): {row["seed"]: row["quality"] for row in run.trained} for run in runs}
    for what, one, other, precision in COMPARISONS:
        for setting in ("steps", "seconds"):
            pair = by_name.get((one, setting), {}), by_name.get((other, setting), {})
            seeds = sorted(pair[0].keys() & pair[1].keys())
            if seeds:
                differences = [pair[0][seed][precision] - pair[1][seed][precision] for seed in seeds]
                yield {
                    "what": what,
                    "one": one,
                    "other": other,
                    "setting": setting,
                    "precision": precision,
                    "differences": differences,
                    "mean": statistics.mean(differences),
                    "sd": spread(differences),
                }
