"""``distune simulate``: from words on a command line to tables, JSON and a page."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.budget import Limits
from search.scheduler import SCHEDULERS
from search.simulation.findings import Findings
from search.simulation.page import render_page
from search.simulation.problem import load_problem
from search.simulation.samplers import SAMPLERS
from search.simulation.study import SINGLE, Study, read_yardstick
from search.simulation.text import render
from spaces.objectives import nearest


class WrongChoice(ValueError):
    """A word on the command line that is none of those it may be; says which these are."""


def study_of(
    path: Path, *, samplers: str, schedulers: str, workers: str, seeds: int, limits: Mapping[str, Any]
) -> Study:
    """The study that is asked for; lists are separated by commas.

    Raises:
        WrongChoice: an unknown sampler or scheduler, workers that are no numbers, ``:single`` without a fan-out.
        SpecError: the problem file is wrong.
    """
    names = _listed(samplers, SAMPLERS, "--sampler", ending=SINGLE)
    chosen = _listed(schedulers, SCHEDULERS, "--scheduler")
    numbers = [part.strip() for part in workers.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in numbers):
        raise WrongChoice(f"--workers: found {workers!r}; expected numbers from 1, such as 1,16")
    problem = load_problem(path)
    if problem.fan_out is None and any(name.endswith(SINGLE) for name in names):
        raise WrongChoice(f"--sampler: {SINGLE} is for problems with a fan_out, which {path} has none of")
    return Study(
        problem=problem,
        samplers={name: SAMPLERS[name.removesuffix(SINGLE)] for name in names},
        schedulers={name: SCHEDULERS[name] for name in chosen},
        workers=sorted({int(part) for part in numbers}),
        num_seeds=seeds,
        limits=Limits(**limits),
    )


def carry_out(study: Study, *, name: str, jobs: int) -> Findings:
    """Run a study, with a bar of progress on standard error."""
    yardstick = read_yardstick(study.problem)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("searches", total=study.num_searches)
        for cell, trace in study.run(jobs=jobs):
            found[cell] = trace
            bar.advance(task)
    return Findings(name, study, yardstick, found)


def show(findings: Findings, console: Console, *, json_to: str | None, html_to: Path | None) -> None:
    """Tables on ``console``; JSON and the page where they are wanted."""
    console.print(render(findings))
    if json_to is not None:
        text = json.dumps(findings.to_json(), indent=1, allow_nan=False)
        sys.stdout.write(f"{text}\n") if json_to == "-" else Path(json_to).write_text(f"{text}\n", encoding="utf-8")
    if html_to is not None:
        html_to.write_text(render_page(findings), encoding="utf-8")
        console.print(f"\npage: {html_to}", soft_wrap=True)


def _listed(text: str, known: Sequence[str] | Mapping[str, object], option: str, *, ending: str = "") -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        plain = name.removesuffix(ending) if ending else name
        if plain not in known:
            raise WrongChoice(f"{option}: unknown {name!r}{nearest(plain, list(known))}")
    return names
