"""What a report says, gathered from a run into frozen data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.ablation import Ablation, read_ablations
from search.progress import ByChance, Step
from search.records import Record
from search.report.importance import Importance, importance
from search.run import Confirmed, Run, described
from search.savings import StrategyTime, by_strategy
from search.select import Choice, NoChoice
from search.words import say_plan, say_shape, student_names
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import TARGETS

_BESIDE = ("forgetting", "overfit")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One complete variant on one target."""

    record: Record
    plan: str
    """In words."""
    size: str
    """In layers, and what was added to them."""
    on_front: bool
    chosen: bool
    feasible: bool
    test: Confirmed | None


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """One target: its variants, and what to ship there."""

    name: str
    summary: str
    estimated: bool
    points: tuple[Point, ...]
    """The front first, cheapest first."""
    choice: Choice | None
    no_choice: str
    """Why there is none; empty where there is one."""
    baseline: Record | None
    """The base model fine-tuned in full, fp32, on this target."""
    steps: tuple[Step, ...]
    """After each trial."""

    @property
    def front(self) -> tuple[Point, ...]:
        """Its front, cheapest first."""
        return tuple(point for point in self.points if point.on_front)

    @property
    def chosen(self) -> Point | None:
        """What to ship."""
        return next((point for point in self.points if point.chosen), None)


@dataclass(frozen=True, kw_only=True)
class BestAtSize:
    """The best variant of a strategy at a size and precision."""

    size: str
    strategy: str
    precision: str
    record: Record
    test: Confirmed | None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial or shape without a result."""

    trial: str
    status: str
    what: str
    """Strategy and size."""
    why: str
    """One line."""
    detail: str
    """The whole text; empty where the line says it all."""
    fidelity: float


@dataclass(frozen=True, kw_only=True)
class TimeUse:
    """Where the run's time went, in seconds over all trials."""

    wall: float
    overhead: float
    strategies: tuple[StrategyTime, ...]

    @property
    def spent(self) -> float:
        """On training."""
        return sum(strategy.spent for strategy in self.strategies)

    @property
    def shared(self) -> float:
        """Training that was not spent, because a beginning was there already."""
        return sum(strategy.shared for strategy in self.strategies)

    @property
    def stopped(self) -> float:
        """What plans that the scheduler stopped would still have taken."""
        return sum(strategy.stopped for strategy in self.strategies)

    @property
    def num_stopped(self) -> int:
        """Those plans."""
        return sum(strategy.num_stopped for strategy in self.strategies)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report says."""

    name: str
    metric: str
    objectives: tuple[str, ...]
    beside: tuple[str, ...]
    """What training does beside quality, of which some record has a value: forgetting, overfit."""
    constraints: tuple[str, ...]
    targets: tuple[TargetView, ...]
    best: tuple[BestAtSize, ...]
    importance: Importance
    ablations: tuple[Ablation, ...]
    """What was measured side by side, the last of everything that groups differed in."""
    notes: tuple[str, ...]
    """What was said of data and models before the first trial."""
    ended: tuple[Ended, ...]
    counts: Mapping[str, int]
    """Trials by how they ended."""
    costs: tuple[Mapping[str, Any], ...]
    """Rows of the cost table, each with its `size` in words."""
    time: TimeUse
    by_chance: ByChance | None
    """What random searches would have reached; None where that was not asked for."""
    spec_text: str
    seed: int
    versions: Mapping[str, str]
    labels: int
    """Number of validation rows; 0 where it is not known."""


def build(run: Run, *, by_chance: bool = True) -> Report:
    """Gather the report of ``run``. Without ``by_chance`` no random searches are simulated, which takes seconds."""
    records = run.records
    return Report(
        name=run.name,
        metric=run.metric,
        objectives=run.goals.objectives,
        beside=tuple(name for name in _BESIDE if any(record.value(name, run.metric) is not None for record in records)),
        constraints=tuple(constraint.text for constraint in run.goals.constraints),
        targets=tuple(_target(run, name) for name in run.goals.targets),
        best=_best(run),
        importance=importance(records, run.metric),
        ablations=read_ablations(run),
        notes=run.notes,
        ended=tuple(_ended(record) for record in records if record.status != "complete"),
        counts=_counts(records),
        costs=_costs(run),
        time=_time(records),
        by_chance=run.by_chance if by_chance else None,
        spec_text=run.spec_text,
        seed=int((run.spec.get("search") or {}).get("seed", 0)),
        versions=dict(next((record.versions for record in reversed(records) if record.versions), {})),
        labels=0 if run.labels is None else len(run.labels),
    )


def _target(run: Run, name: str) -> TargetView:
    choice, no_choice = _choice(run, name)
    front = run.front_records(name)
    on_front = {record.record_id for record in front}
    rest = [record for record in run.points(name)[0] if record.record_id not in on_front]
    base = run.baseline
    known = TARGETS.get(name)
    return TargetView(
        name=name,
        summary=known.summary if known else "",
        estimated=not known.measured if known else any(record.estimated for record in front),
        points=tuple(_point(run, record, on_front, choice) for record in [*front, *rest]),
        choice=choice,
        no_choice=no_choice,
        baseline=next((r for r in rest + front if base and _is_variant_of(r, base)), None),
        steps=tuple(run.box(name).steps(run.records)),
    )


def _choice(run: Run, target: str) -> tuple[Choice | None, str]:
    try:
        return run.select(target=target), ""
    except NoChoice as error:
        return None, str(error)


def _is_variant_of(record: Record, base: Record) -> bool:
    return (record.fingerprint, record.precision) == (base.fingerprint, base.precision)


def _point(run: Run, record: Record, on_front: set[str], choice: Choice | None) -> Point:
    return Point(
        record=record,
        plan=say_plan(Plan.model_validate_json(record.plan)),
        size=described(record),
        on_front=record.record_id in on_front,
        chosen=choice is not None and choice.record.record_id == record.record_id,
        feasible=run.goals.feasible(record, baseline=run.baseline_quality),
        test=run.confirmed.get(record.record_id),
    )


def _best(run: Run) -> tuple[BestAtSize, ...]:
    by_id = {record.record_id: record for record in run.records}
    return tuple(
        BestAtSize(
            size=row["size"],
            strategy=row["strategy"],
            precision=row["precision"],
            record=by_id[row["record_id"]],
            test=run.confirmed.get(row["record_id"]),
        )
        for row in run.best_by_size().to_pylist()
    )


def _costs(run: Run) -> tuple[Mapping[str, Any], ...]:
    rows = run.cost_table.to_pylist() if run.cost_table is not None else []
    plans = [Plan.model_validate_json(record.plan) for record in run.records if record.plan]
    # Only plans tell names, and a model may not have been tried.
    names = {row["base"]: f"model {row['base'][:12]}…" for row in rows} | {plan.base: "" for plan in plans}
    for plan in plans:
        names |= student_names(plan)
    return tuple(row | {"size": say_shape(Shape.of_row(row), names=names if plans else None)} for row in rows)


def _ended(record: Record) -> Ended:
    lines = [line for line in record.error.splitlines() if line.strip()]
    # The last line of a traceback is what went wrong.
    why = (lines[-1] if record.status == "failed" else lines[0]) if lines else "no reason was written down"
    return Ended(
        trial=record.trial_id,
        status=record.status,
        what=_what(record),
        why=why.strip(),
        detail=record.error.strip() if len(lines) > 1 else "",
        fidelity=record.fidelity,
    )


def _what(record: Record) -> str:
    words = [record.strategy, described(record) if record.plan else str(record.params.get("size", ""))]
    if record.status == "infeasible":
        words += [record.precision, f"on {record.target}"]
    return ", ".join(word for word in words if word)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    of_trial = {record.trial_id: record.status for record in records}
    return dict(Counter(of_trial.values()))


def _time(records: Sequence[Record]) -> TimeUse:
    trials = list({record.trial_id: record for record in records if record.number >= 0}.values())
    started, finished = ([getattr(r, name) for r in trials] for name in ("started_at", "finished_at"))
    return TimeUse(
        wall=max(finished) - min(started) if trials else 0.0,
        overhead=sum(record.overhead_seconds or 0.0 for record in trials),
        strategies=by_strategy(records),
    )
