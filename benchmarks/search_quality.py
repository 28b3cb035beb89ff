"""How much training the search needs, beside what a user would take today: baselines, and ours without one idea each.

    python benchmarks/search_quality.py FILE.yaml [FILE.yaml …] [--synthetic zdt1,conditional] [--ablation]
        [--workers 1,4,16] [--seeds 20] [--trials 100] [--jobs 2] [--baselines a,b] [--json FILE]

Each FILE is a problem of ``distune simulate``. All competitors run in the same harness, on the same table, from the
same seeds, with the same number of trainings. Where a training yields several precisions, a baseline has precision as
one more parameter (``:single``), as its user would, and once more with all of them told. Ours runs without and with its
scheduler. What is printed for each: the share of the table's hypervolume at the end, and how many times less it spent
until it had what OptunaSearch's default had at its end; then ours against every baseline, with the goals.

``--ablation`` adds ours without known costs (they are learned instead), without fan-out, without looking at time, and
without knowing which beginnings are there.

``zdt1`` [Zitzler2000] has a known front, of which f1 is the known cost; ``conditional`` has a known front over branches
with parameters of their own. Both are sampled as tables of 20,000 rows.
"""

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from search.budget import Limits
from search.known_cost.sampler import KnownCostSampler
from search.sampler import Propose
from search.scheduler import make_scheduler
from search.simulation.comparison import Comparison, Score, by_workers, compare
from search.simulation.problem import Problem, load_problem
from search.simulation.samplers import SAMPLERS, known_cost
from search.simulation.simulate import Given, Maker
from search.simulation.study import SINGLE, Study

BASELINES = ("optuna_default", "tpe", "nsga2", "random")
_REFERENCE = "optuna_default"
"""Whose end is the goal: what OptunaSearch takes where its user names no sampler."""
_ROWS = 20_000
_GOAL_OF_REFERENCE, _GOAL_OF_BEST = 4.0, 1.5


def without_known_costs(given: Given) -> Propose:
    """Ours, to which all objectives are told by training alone."""
    return _changed(given, values=lambda known: np.where(np.isinf(known), np.inf, np.nan))


def without_time(given: Given) -> Propose:
    """Ours, by gain for a plan and not for a second."""
    ours = known_cost(given)
    assert isinstance(ours, KnownCostSampler)
    return replace(ours, question=replace(ours.question, per_second=False))


def without_sharing(given: Given) -> Propose:
    """Ours, which does not know what beginnings are there. They are still computed once."""
    return _changed(given, share_left=np.ones_like)


class _Changed:
    """Knows what another knows, with changes."""

    def __init__(self, foreknown: Any, **changes: Any) -> None:
        self.variants, self._foreknown, self._changes = foreknown.variants, foreknown, changes

    def values(self, draws: Sequence[Any]) -> Any:
        known = self._foreknown.values(draws)
        return self._changes["values"](known) if "values" in self._changes else known

    def share_left(self, draws: Sequence[Any]) -> Any:
        left = self._foreknown.share_left(draws)
        return self._changes["share_left"](left) if "share_left" in self._changes else left


def _changed(given: Given, **changes: Any) -> Propose:
    ours = known_cost(given)
    assert isinstance(ours, KnownCostSampler)
    return replace(ours, foreknown=_Changed(ours.foreknown, **changes))


ABLATIONS: Mapping[str, Maker] = {
    "without_known_costs": without_known_costs,
    "without_time": without_time,
    "without_sharing": without_sharing,
}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        paths = [*options.problems, *(SYNTHETIC[name](Path(folder)) for name in _names(options.synthetic))]
        found = [row for path in paths for row in measured(path, options)]
    if options.json:
        options.json.write_text(json.dumps({"options": _said(options), "rows": found}, indent=1) + "\n")


def measured(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A problem, at each number of workers; prints as it goes."""
    problem = load_problem(path)
    rows = []
    for study in (baseline_study(problem, options), own_study(problem, options)):
        traces = {}
        for cell, trace in study.run(jobs=options.jobs):
            traces[cell] = trace
            print(f"\r{path.stem}: {len(traces)}/{study.num_searches} searches", end="", file=sys.stderr)
        rows.append(by_workers(study, traces))
    print(file=sys.stderr)
    return [
        told(path.stem, compare({**rows[0][workers], **rows[1][workers]}, workers=workers, budget=None), problem)
        for workers in rows[0]
    ]


def baseline_study(problem: Problem, options: argparse.Namespace) -> Study:
    names = _names(options.baselines)
    kinds = ("", SINGLE) if problem.fan_out else ("",)
    samplers = {f"{name}{kind}": SAMPLERS[name] for name in names for kind in kinds}
    return _study(problem, options, samplers, ("none",))


def own_study(problem: Problem, options: argparse.Namespace) -> Study:
    samplers: dict[str, Maker] = {"known_cost": known_cost}
    if options.ablation:
        samplers |= ABLATIONS
        if problem.fan_out:
            samplers[f"known_cost{SINGLE}"] = known_cost
    return _study(problem, options, samplers, ("none", "known_cost") if problem.fidelity else ("none",))


def _study(
    problem: Problem, options: argparse.Namespace, samplers: Mapping[str, Maker], schedulers: Sequence[str]
) -> Study:
    return Study(
        problem=problem,
        samplers=samplers,
        schedulers={name: make_scheduler(name) for name in schedulers},
        workers=[int(count) for count in _names(options.workers)],
        num_seeds=options.seeds,
        limits=Limits(trials=options.trials),
    )


def told(name: str, found: Comparison, problem: Problem) -> dict[str, Any]:
    """What is said of one problem at one number of workers."""
    of_user = f"{_REFERENCE}{SINGLE if problem.fan_out else ''}"
    scores = {score.competitor.name: score for score in found.scores}
    print(f"\n{name}, {found.workers} worker{'s' if found.workers > 1 else ''}")
    for label, score in scores.items():
        print(f"  {label:34} {_line(score, of_user)}")
    ours = [label for label in scores if label.split(" ")[0] == "known_cost"]
    baselines = {label: score for label, score in scores.items() if _is_baseline(label)}
    best = max(baselines, key=lambda label: baselines[label].shares[1.0].median)
    for label in ours:
        speed = {other.name: up.median for other, up in scores[label].speed_ups.items()}
        worst = min(speed[other] for other in baselines)
        ratio = scores[label].shares[1.0].median / baselines[best].shares[1.0].median
        print(
            f"  {label}: {speed[of_user]:.1f}× less than {of_user} (goal {_GOAL_OF_REFERENCE}), {worst:.1f}× less than"
            f" the best baseline (goal {_GOAL_OF_BEST}); at its end {ratio:.3f} of {best}"
        )
    return {"problem": name, "workers": found.workers, "scores": {k: _plain(score) for k, score in scores.items()}}


def _line(score: Score, of_user: str) -> str:
    end = score.shares[1.0]
    against = next((up for other, up in score.speed_ups.items() if other.name == of_user), None)
    times = f"{against.median:5.1f}× ({against.num_never} never)" if against else " " * 16
    quartiles = f"{end.median:.4f} [{end.low:.4f}, {end.high:.4f}]"
    return f"{quartiles}  {times}  rank {score.rank:4.1f}  {score.proposal_ms:4.0f} ms"


def _is_baseline(label: str) -> bool:
    return label.removesuffix(SINGLE) in SAMPLERS and not label.startswith("known_cost")


def _plain(score: Score) -> dict[str, Any]:
    return {
        "shares": {str(at): [found.low, found.median, found.high] for at, found in score.shares.items()},
        "speed_ups": {other.name: [up.median, up.num_never] for other, up in score.speed_ups.items()},
        "rank": score.rank,
        "stopped": score.stopped,
        "beaten": score.beaten,
        "cost": score.cost,
        "saved": score.saved,
        "proposal_ms": score.proposal_ms,
    }


# Problems with a known front ------------------------------------------------------------------------------------------


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


def _written(folder: Path, name: str, rows: list[dict[str, Any]], params: dict[str, Any], **problem: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"table": f"{name}.parquet", "params": params, **problem}, sort_keys=False))
    return path


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _said(options: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if isinstance(value, int | str)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", type=Path, metavar="FILE.yaml")
    parser.add_argument("--synthetic", default="", help="zdt1,conditional")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--baselines", default=",".join(BASELINES))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
