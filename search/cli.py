"""The command line. Each command imports what it needs when it runs, so ``--help`` and ``select`` start at once."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from search.errors import NOTHING_FITS, exit_code

app = typer.Typer(
    name="distune",
    help="Fine-tune, distil, or both? One search over methods, sizes and precisions, and the model to ship.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or s3://bucket/prefix/NAME.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set budget.trials=4. Repeat it.")
]
Where = Annotated[list[str] | None, typer.Option("--where", metavar="CONSTRAINT", help="'latency_ms <= 5'. Repeat it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TargetName = Annotated[str | None, typer.Option("--target", help="Where it must serve; the spec's first otherwise.")]
Wish = Annotated[str, typer.Option("--wish", help="knee, quality or cost: which end of the front.")]


@app.command(epilog="Example: distune search examples/docstrings.yaml --set budget.minutes=5")
def search(
    spec: SpecPath,
    override: Overrides = None,
    new: Annotated[bool, typer.Option("--new", help="Start beside an earlier run of this name.")] = False,
) -> None:
    """Run a search, or go on with one. Ctrl-C stops it; the same command goes on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from search.engine import Search
    from search.live import listening

    wanted = Search.from_yaml(spec, override or (), new=new)
    console = Console(highlight=False)
    with listening(console, trials=wanted.spec.budget.trials, metric=wanted.spec.task.metric) as listener:
        run = wanted.run(listener)
    _show(run, console)
    if not any(run.front_records(target) for target in run.goals.targets):
        raise typer.Exit(NOTHING_FITS)


@app.command(epilog="Example: distune plan examples/docstrings.yaml --workers 1,4,16 --price 0.4")
def plan(
    spec: SpecPath,
    override: Overrides = None,
    workers: Annotated[
        str | None, typer.Option("--workers", help="Foretell the search for so many workers, such as 1,4,16.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Of a device, in USD an hour: tells what a search costs.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show what a search would do and take: sizes, serving costs, what is feasible, time, money. Trains nothing."""
    counts = [] if workers is None else _numbers(workers, "--workers")
    from search.foresee import foresee, render
    from search.spec import load_spec

    found = foresee(
        load_spec(spec, override or ()),
        say=lambda text: print(text, file=sys.stderr),
        workers=counts,
        usd_per_hour=price,
    )
    _print(found.to_json() if json_ else render(found), json_)


@app.command(epilog="Example: distune report runs/docstrings")
def report(
    run: RunPath, to: Annotated[Path | None, typer.Option("--to", help="Another file than RUN/report.html.")] = None
) -> None:
    """Write the report as one HTML file, and print the front."""
    from search.run import load_run

    loaded = load_run(run)
    path = loaded.report(to)
    _show(loaded, Console(highlight=False), path)


@app.command(epilog="Example: distune select runs/docstrings --where 'latency_ms <= 2' --wish quality")
def select(
    run: RunPath, where: Where = None, target: TargetName = None, wish: Wish = "knee", json_: AsJson = False
) -> None:
    """Name the variant to ship under these constraints, and why."""
    from search.run import load_run
    from search.select import choice_to_json
    from search.words import say

    choice = load_run(run).select(_parsed(where), target=target, wish=_wish(wish))
    if json_:
        return _print(choice_to_json(choice), as_json=True)
    record = choice.record
    costs = " · ".join(f"{name} {say(name, record.value(name, choice.metric))}" for name in choice.objectives)
    print(f"{record.record_id}: {record.strategy} at {record.precision} for {record.target}  ({costs})")
    print("\n".join(f"- {reason}" for reason in choice.reasons))
    return None


@app.command(epilog="Example: distune export runs/docstrings --to model --where 'size_mb <= 20'")
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("--to", help="The folder to write; not there yet.")],
    record: Annotated[str | None, typer.Option("--record", help="A record's id; the choice otherwise.")] = None,
    where: Where = None,
    target: TargetName = None,
    wish: Wish = "knee",
) -> None:
    """Write a variant as a folder that transformers and ONNX Runtime load, measured again after it is written."""
    from search.export import export_record
    from search.run import load_run

    loaded = load_run(run)
    chosen = (
        _record(loaded, record) if record else loaded.select(_parsed(where), target=target, wish=_wish(wish)).record
    )
    print(f"{chosen.record_id} written to {export_record(loaded, chosen, to)}")


@app.command(epilog="Example: distune ablate runs/docstrings --by strategy --batch-sizes 1,8,32")
def ablate(
    run: RunPath,
    by: Annotated[
        str,
        typer.Option("--by", help="strategy, student_layers, precision, or a parameter: what the groups differ in."),
    ] = "strategy",
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="Rows that are answered at once.")] = "1,8,32",
    where: Where = None,
    target: Annotated[str | None, typer.Option("--target", help="A measured one; the first of them otherwise.")] = None,
    json_: AsJson = False,
) -> None:
    """Measure the best variant of each group side by side, over batch sizes; into ablations/ and the report."""
    from search.ablation import ablation_to_json, best_of_groups
    from search.run import load_run

    sizes, loaded = _numbers(batch_sizes, "--batch-sizes"), load_run(run)
    picked = best_of_groups(loaded, by=by, target=target, where=_parsed(where))
    from search.side_by_side import measure

    found = measure(loaded, picked, batch_sizes=sizes, say=lambda text: print(text, file=sys.stderr))
    path = loaded.report()
    if json_:
        return _print(ablation_to_json(found, metric=loaded.metric), as_json=True)
    from search.report.text import render_ablation

    console = Console(highlight=False)
    console.print(render_ablation(found, loaded.metric))
    console.print(f"\nreport: {path}", soft_wrap=True)
    return None


@app.command(
    epilog="Example: distune simulate problem.yaml --sampler known_cost,tpe,random --workers 1,16 --json found.json"
)
def simulate(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM", help="A problem file, YAML (docs/simulate.md).")],
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler",
            help="Some of known_cost, tpe, random, optuna_default, nsga2, gp. With `:single` behind a name, the "
            "fan-out is a parameter and each variant a training of its own.",
        ),
    ] = "known_cost,tpe,random",
    scheduler: Annotated[str, typer.Option("--scheduler", help="Some of known_cost, pareto_halving, none.")] = "none",
    workers: Annotated[str, typer.Option("--workers", help="Numbers of virtual workers.")] = "1",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Searches of each kind.")] = 20,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trainings of each search.")] = 100,
    cost: Annotated[
        float | None, typer.Option("--cost", min=0, help="Cost of each search, in the place of --trials.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Searches at a time, each in a process.")] = 1,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON; - prints it.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write plots and tables as a page.")
    ] = None,
) -> None:
    """Compare samplers and schedulers on a table of recorded trainings, in virtual time. Trains nothing."""
    from search.simulation.command import WrongChoice, carry_out, show, study_of

    limits = {"trials": trials} if cost is None else {"device_hours": cost / 3600}
    try:
        study = study_of(problem, samplers=sampler, schedulers=scheduler, workers=workers, seeds=seeds, limits=limits)
    except WrongChoice as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(highlight=False, stderr=json_ == "-")
    show(carry_out(study, name=problem.stem, jobs=jobs), console, json_to=json_, html_to=html)


@app.command()
def strategies() -> None:
    """List the strategies: what each stands for, what it needs beside labelled rows, the parameters it opens."""
    from spaces.catalogue import CATALOGUE

    for name, strategy in CATALOGUE.items():
        sizes = ["student", "student_layers", "student_width"] if strategy.student else []
        opens = [*sizes, *(span.name for span in strategy.parameters)]
        print(f"{name}: {strategy.summary}")
        print(f"    for {', '.join(strategy.kinds)}{f'; needs {strategy.needs_in_words}' if strategy.needs else ''}")
        print(f"    opens {', '.join(opens)}")
    print("\nRanges and meanings: distune spec --schema, or docs/spec.md")


@app.command()
def spec(schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema, for editors.")] = False) -> None:
    """Describe the spec file."""
    from search.spec import Spec

    if schema:
        return _print(Spec.model_json_schema(), as_json=True)
    for name, field in Spec.model_fields.items():
        print(f"{name:12}{field.description}")
    print("\nEvery key with its meaning: distune spec --schema, or docs/spec.md")
    return None


@app.command()
def doctor(address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster, or auto.")] = None) -> None:
    """Check the installation, Ray and the devices."""
    from search.doctor import examine

    healthy = True
    for finding in examine(address):
        healthy &= finding.good
        print(f"{'ok  ' if finding.good else 'FAIL'}  {finding.what:14}{finding.text}")
    if not healthy:
        raise typer.Exit(1)


def main() -> None:
    """Run a command; errors that are the user's end in one line and an exit code."""
    try:
        app()
    except BaseException as error:
        code = exit_code(error)
        if code is None:
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(_said(error), style="red", markup=False)
        sys.exit(code)


def _said(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "distune: interrupted; the same command goes on"
    return f"distune: {error}"


def _show(run: Any, console: Console, path: Path | None = None) -> None:
    from search.report.build import build
    from search.report.text import render_text

    console.print()
    console.print(render_text(build(run, by_chance=False)))
    where = path or f"{run.storage.shown}/report.html"
    console.print(f"\nreport: {where}", soft_wrap=True)
    if run.storage.exists("best"):
        console.print(f"model:  {run.storage.shown}/best", soft_wrap=True)


def _print(value: Any, as_json: bool) -> None:
    print(json.dumps(value, indent=1) if as_json else value)


def _parsed(where: list[str] | None) -> list[str]:
    from spaces.objectives import parse_constraint

    for text in where or ():
        try:
            parse_constraint(text)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--where") from error
    return list(where or ())


def _numbers(text: str, option: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r}; expected numbers from 1, such as 1,8,32", param_hint=option)
    return sorted({int(part) for part in parts})


def _wish(wish: str) -> Any:
    if wish not in ("knee", "quality", "cost"):
        raise typer.BadParameter(f"{wish!r}; expected knee, quality or cost", param_hint="--wish")
    return wish


def _record(run: Any, record_id: str) -> Any:
    found = next((record for record in run.records if record.record_id == record_id), None)
    if found is None:
        front = [record.record_id for target in run.goals.targets for record in run.front_records(target)]
        raise typer.BadParameter(f"no record {record_id!r}; on the front: {', '.join(front)}", param_hint="--record")
    return found


if __name__ == "__main__":
    main()
