"""How much training the search needs, beside what a user would take today: baselines, and ours without one idea each.

    python benchmarks/search_quality.py FILE.yaml [FILE.yaml …] [--synthetic zdt1,conditional] [--ablation]
        [--workers 1,4,16] [--seeds 20] [--slow-seeds 5] [--trials 100] [--by-cost] [--jobs 2]
        [--baselines a,b] [--json FILE]

Each FILE is a problem of ``distune simulate``; ``--synthetic`` names those of ``synthetic_problems.py``. All
competitors run in the same harness, on the same table, from the same seeds, with the same number of trainings. Where a
training yields several precisions, a baseline has precision as one more parameter (``:single``), as its user would, and
once more with all of them told. Ours runs without and with its scheduler. What is printed for each: the share of the
table's hypervolume at the end, and how many times less it spent until it had what OptunaSearch's default had at its
end; then ours against every baseline, with the goals. ``search_plot.py`` draws the JSON.

Baselines: those of ``distune simulate``; ``qlognehvi`` (``by_botorch.py``), where no parameter hangs on another one;
and ``moasha`` (``by_syne_tune.py``), where there are curves: random plans, stopped by it as published and mended, until
they have cost what OptunaSearch's default has spent, since what it saves is for further plans; with ``--by-cost`` ours
go on until then as well. ``gp`` and ``qlognehvi`` take seconds a proposal: they have ``--slow-seeds``, and are compared
on these.

``--ablation`` adds ours without known costs (they are learned instead), without fan-out, without early stopping,
without knowing which beginnings are there, and without looking at costs of training.

Run it with OMP_NUM_THREADS=1.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ablations import Ablation, ablations, full_scheduler
from search_scores import Field
from synthetic_problems import SYNTHETIC

from search.budget import Limits
from search.sampler import Propose
from search.scheduler import SCHEDULERS
from search.simulation.comparison import Score, by_workers
from search.simulation.problem import Problem, load_problem
from search.simulation.samplers import SAMPLERS, known_cost
from search.simulation.simulate import Given, Maker
from search.simulation.study import SINGLE, Competitor, Study
from search.simulation.table import Table, read_table
from search.simulation.trace import Trace

REFERENCE = "optuna_default"
"""Whose end is the goal: what OptunaSearch takes where its user names no sampler."""
_GOAL_OF_REFERENCE, _GOAL_OF_BEST = 4.0, 1.5


def qlognehvi(given: Given) -> Propose:
    """BoTorch's, imported where it is asked for."""
    from by_botorch import QLogNehvi

    return QLogNehvi(given)


QUICK = ("optuna_default", "tpe", "nsga2", "random")
SLOW: Mapping[str, Maker] = {"gp": SAMPLERS["gp"], "qlognehvi": qlognehvi}
"""Seconds a proposal."""
HALVING = "moasha"
BASELINES = (*QUICK, *SLOW, HALVING)


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        paths = [*options.problems, *(SYNTHETIC[name](Path(folder)) for name in _names(options.synthetic))]
        found = [row for path in paths for row in measured(path, options)]
    if options.json:
        options.json.write_text(json.dumps({"options": _said(options), "rows": found}, indent=1) + "\n")


def measured(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A problem, at each number of workers; prints as it goes."""
    contest = Contest(path.stem, load_problem(path), options)
    return [contest.told(field) for field in contest.fields()]


class Contest:
    """Ours and the baselines on one problem."""

    def __init__(self, name: str, problem: Problem, options: argparse.Namespace) -> None:
        self._name, self._problem, self._options = name, problem, options
        self._of_user = Competitor(sampler=f"{REFERENCE}{SINGLE if problem.fan_out else ''}", scheduler="none")
        self._ablations: list[Ablation] = ablations(problem) if options.ablation else []
        schedulers = dict.fromkeys(("none", full_scheduler(problem)))
        self._ours = [Competitor(sampler="known_cost", scheduler=of) for of in schedulers]
        """The last one has all ideas."""

    def fields(self) -> list[Field]:
        """Everyone's searches, by the number of workers."""
        found: dict[int, dict[Competitor, list[Trace]]] = {}
        for study in self._baselines():
            _add(found, self._run(study))
        reference = [trace.cost for traces in found.values() for trace in traces.get(self._of_user, ())]
        by_cost = Limits(device_hours=float(np.median(reference)) / 3600) if reference else None
        for study in (*self._own(by_cost), *self._halving(by_cost)):
            _add(found, self._run(study))
        print(file=sys.stderr)
        return [Field(traces, workers) for workers, traces in found.items()]

    def _baselines(self) -> Iterator[Study]:
        quick = {name: SAMPLERS[name] for name in self._wanted if name in SAMPLERS and name not in SLOW}
        slow = {name: SLOW[name] for name in self._wanted if name in SLOW}
        if "qlognehvi" in slow and any(param.when for param in self._problem.params.values()):
            print(f"{self._name}: without qlognehvi, which knows no conditions between parameters", file=sys.stderr)
            del slow["qlognehvi"]
        for samplers, seeds in ((quick, self._options.seeds), (slow, self._slow_seeds)):
            if samplers:
                yield self._study(self._in_both_kinds(samplers), ("none",), seeds=seeds)

    def _own(self, by_cost: Limits | None) -> Iterator[Study]:
        limits = self._checked(by_cost, "--by-cost") if self._options.by_cost else None
        yield self._study({"known_cost": known_cost}, [one.scheduler for one in self._ours], limits=limits)
        others = [one for one in self._ablations if one.competitor.sampler != "known_cost"]
        if less := {one.competitor.sampler: one.sampler for one in others}:
            yield self._study(less, (self._full.scheduler,), limits=limits)

    def _halving(self, by_cost: Limits | None) -> Iterator[Study]:
        """Random plans that MOASHA stops."""
        if HALVING not in self._wanted or not self._problem.fidelity:
            return
        from by_syne_tune import schedulers_for

        samplers = self._in_both_kinds({"random": SAMPLERS["random"]})
        study = self._study(samplers, (), limits=self._checked(by_cost, HALVING))
        yield replace(study, schedulers=schedulers_for(self._table))

    def _checked(self, by_cost: Limits | None, who: str) -> Limits:
        if by_cost is None:
            raise SystemExit(f"{who} spends what {self._of_user.name} does: --baselines needs {REFERENCE}")
        return by_cost

    def _study(
        self,
        samplers: Mapping[str, Maker],
        schedulers: Iterable[str],
        *,
        seeds: int | None = None,
        limits: Limits | None = None,
    ) -> Study:
        return Study(
            problem=self._problem,
            samplers=samplers,
            schedulers={name: SCHEDULERS[name] for name in schedulers},
            workers=[int(count) for count in _names(self._options.workers)],
            num_seeds=self._options.seeds if seeds is None else seeds,
            limits=limits or Limits(trials=self._options.trials),
        )

    def _in_both_kinds(self, samplers: Mapping[str, Maker]) -> dict[str, Maker]:
        kinds = ("", SINGLE) if self._problem.fan_out else ("",)
        return {f"{name}{kind}": maker for name, maker in samplers.items() for kind in kinds}

    def _run(self, study: Study) -> dict[int, dict[Competitor, list[Trace]]]:
        traces = {}
        for cell, trace in study.run(jobs=self._options.jobs):
            traces[cell] = trace
            print(f"\r{self._name}: {len(traces)}/{study.num_searches} searches", end="", file=sys.stderr)
        return by_workers(study, traces)

    def told(self, field: Field) -> dict[str, Any]:
        """What is said at one number of workers."""
        print(f"\n{self._name}, {field.workers} worker{'s' if field.workers > 1 else ''}")
        for competitor, score in field.scores.items():
            print(f"  {competitor.name:36} {self._line(score)}{self._seeds(field, competitor)}")
        self._tell_ours(field)
        for ablation in self._ablations:
            worth = _worth(field, self._full, ablation.competitor)
            print(f"  − {ablation.idea:14} {worth}  {ablation.competitor.name}")
        return {
            "problem": self._name,
            "ours": self._full.name,
            "reference": self._of_user.name,
            "ablations": {ablation.idea: ablation.competitor.name for ablation in self._ablations},
            **field.plain(float(np.mean([training.cost for training in self._table.trainings]))),
        }

    def _tell_ours(self, field: Field) -> None:
        less = [ablation.competitor for ablation in self._ablations]
        baselines = [competitor for competitor in field.traces if competitor not in (*self._ours, *less)]
        if self._of_user not in baselines:
            return
        best = max(baselines, key=field.end)
        for competitor in self._ours:
            speed = {other: up.median for other, up in field.scores[competitor].speed_ups.items()}
            print(
                f"  {competitor.name}: {speed[self._of_user]:.1f}× less than {self._of_user.name}"
                f" (goal {_GOAL_OF_REFERENCE}), {speed[best]:.1f}× less than the best baseline, {best.name}"
                f" (goal {_GOAL_OF_BEST}); at its end {field.ratio(competitor, best):.3f} of that one"
            )

    def _line(self, score: Score) -> str:
        end, against = score.shares[1.0], score.speed_ups.get(self._of_user)
        times = f"{against.median:5.1f}× ({against.num_never} never)" if against else " " * 16
        quartiles = f"{end.median:.4f} [{end.low:.4f}, {end.high:.4f}]"
        return f"{quartiles}  {times}  rank {score.rank:4.1f}  {score.proposal_ms:5.0f} ms"

    def _seeds(self, field: Field, competitor: Competitor) -> str:
        count = len(field.traces[competitor])
        return f"  {count} seeds" if count < self._options.seeds else ""

    @property
    def _full(self) -> Competitor:
        return self._ours[-1]

    @property
    def _wanted(self) -> list[str]:
        return _names(self._options.baselines)

    @property
    def _slow_seeds(self) -> int:
        return min(self._options.slow_seeds, self._options.seeds)

    @cached_property
    def _table(self) -> Table:
        return read_table(self._problem)


def _add(found: dict[int, dict[Competitor, list[Trace]]], more: Mapping[int, Mapping[Competitor, Any]]) -> None:
    for workers, traces in more.items():
        found.setdefault(workers, {}).update(traces)


def _worth(field: Field, ours: Competitor, other: Competitor) -> str:
    """What all ideas are worth beside all but one."""
    up = field.scores[ours].speed_ups[other]
    return f"{up.median:5.1f}× less with it ({up.num_never} never), {field.ratio(ours, other):.3f} at the end"


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
    parser.add_argument("--slow-seeds", type=int, default=5, help="of gp and qlognehvi, at most --seeds")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--by-cost", action="store_true", help="ours spends what OptunaSearch's default spends")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--baselines", default=",".join(BASELINES))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
