"""What one choice does: the variants of a run in groups, the best of each, and what was measured of those side by side.

Data and rules alone; ``search.side_by_side`` measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from search.question import Question
from search.records import Record
from search.run import Run, described, num_layers, size_of
from search.select import feasible_variants, record_to_json
from search.words import say_layers, say_name
from spaces.objectives import OBJECTIVES, nearest, parse_constraint
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import TARGETS

_FOLDER, _END = "ablations", ".json"
_MOST_VALUES = 6
"""A number that took more values than this is cut into ``_BINS`` ranges of as many values each."""
_BINS = 4
_TIES = ("latency_ms", "size_mb", "train_seconds")
_ALWAYS = ("strategy", "student_layers", "precision")


class AblationError(ValueError):
    """What was asked for cannot be compared in this run; says what can."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How one variant answered batches of one size, on one thread."""

    batch_size: int
    """In rows."""
    latency_ms: float
    """Median time of a batch."""
    latency_p95_ms: float

    @property
    def rows_per_s(self) -> float:
        """Throughput: rows of a batch over its median time."""
        return 1e3 * self.batch_size / self.latency_ms


@dataclass(frozen=True, kw_only=True)
class Member:
    """The best of one group."""

    group: str
    num_variants: int
    """How many feasible variants it is the best of."""
    record: Record
    batches: tuple[Batch, ...] = ()
    """What was measured, by batch size; empty before that."""

    @property
    def shape(self) -> Shape:
        """Of its model."""
        return Plan.model_validate_json(self.record.plan).shape

    @property
    def size(self) -> str:
        """Of its model, in words."""
        return described(self.record)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The best of each group on one target, side by side."""

    by: str
    """What the groups differ in: strategy, student_layers, precision or a parameter."""
    target: str
    constraints: tuple[str, ...]
    members: tuple[Member, ...]
    left_out: tuple[str, ...]
    """A sentence on each group, or on variants of no group, of which nothing is compared."""
    rule: str
    """How the best of a group was found, in a sentence."""
    sequence_length: int = 0
    """Tokens of each row that was timed."""
    output_tokens: int = 0
    """Tokens that each row was answered with, beside a rationale where one is written; 0 where the answer is no text.
    """
    num_calls: int = 0
    """Of each variant at each batch size."""


def best_of_groups(run: Run, *, by: str, target: str | None = None, where: Sequence[str] = ()) -> Ablation:
    """The groups of ``run`` and the best of each, under the spec's constraints and those in ``where``; nothing is
    measured yet. Without ``target`` it is the run's first that is measured.

    Raises:
        AblationError: ``by`` names nothing that varied, or the target is estimated.
        RunError: ``target`` is none of this run's.
        NoChoice: no complete variant fits.
        ValueError: a constraint does not parse.
    """
    target = _measured_target(run, target)
    question = Question(
        metric=run.metric,
        objectives=run.goals.objectives,
        constraints=(*run.goals.constraints, *(parse_constraint(text) for text in where)),
        target=target,
        wish="quality",
        baseline=run.baseline_quality,
    )
    groups, without = grouped([record for record in run.records if record.number >= 0], by)
    complete = [record for record in run.records if record.status == "complete" and record.target == target]
    feasible = {record.record_id for record in feasible_variants(complete, question)}
    members, left_out = [], []
    for name, records in groups.items():
        if fits := [record for record in records if record.record_id in feasible]:
            members.append(Member(group=name, num_variants=len(fits), record=best(fits, question)))
        else:
            left_out.append(f"{name}: {_why_none(records, target)}")
    if any(record.record_id in feasible for record in without):
        left_out.append(f"variants of strategies that have no {by}")
    return Ablation(
        by=by,
        target=target,
        constraints=tuple(constraint.text for constraint in question.constraints),
        members=tuple(members),
        left_out=tuple(left_out),
        rule=_rule(question),
    )


def grouped(records: Sequence[Record], by: str) -> tuple[dict[str, list[Record]], list[Record]]:
    """Records by their value of ``by``, in its order, and those that have none. A number of many values is cut into
    ranges.

    Raises:
        AblationError: nothing of this name occurs in the records.
    """
    known = groupable(records)
    if by not in known:
        raise AblationError(f"cannot group by {by!r}{nearest(by, known)}; in this run: {', '.join(known)}")
    values = {record.record_id: _value(record, by) for record in records}
    names = _names([value for value in values.values() if value is not None], by)
    groups: dict[str, list[Record]] = {name: [] for name in names.values()}
    for record in records:
        if (value := values[record.record_id]) is not None:
            groups[names[value]].append(record)
    return groups, [record for record in records if values[record.record_id] is None]


def groupable(records: Sequence[Record]) -> list[str]:
    """What ``grouped`` can group these records by."""
    return [*_ALWAYS, *sorted({name for record in records for name in record.params} - set(_ALWAYS))]


def best(records: Sequence[Record], question: Question) -> Record:
    """The one of best quality; of equals the one that costs less in the question's objectives, then in latency, size
    and training.
    """
    costs = tuple(dict.fromkeys([*question.costs, *_TIES]))

    def key(record: Record) -> tuple[float | str, ...]:
        quality = record.value(question.metric, question.metric)
        found = (record.value(name, question.metric) for name in costs)
        # What was not measured comes last.
        return (
            float("inf") if quality is None else -OBJECTIVES[question.metric].gain(quality),
            *(float("inf") if value is None else value for value in found),
            record.record_id,
        )

    return min(records, key=key)


def ablation_to_json(ablation: Ablation, *, metric: str) -> dict[str, Any]:
    """All of it as plain JSON, each record with its quality as ``metric`` and its costs."""
    plain = {
        name: value for name, value in vars(ablation).items() if name not in ("members", "constraints", "left_out")
    }
    return plain | {
        "metric": metric,
        "constraints": list(ablation.constraints),
        "left_out": list(ablation.left_out),
        "groups": [
            {
                "group": member.group,
                "num_variants": member.num_variants,
                "num_layers": member.shape.num_layers,
                **record_to_json(member.record, metric=metric),
                "batches": [{**vars(batch), "rows_per_s": batch.rows_per_s} for batch in member.batches],
            }
            for member in ablation.members
        ],
    }


def write_ablation(run: Run, ablation: Ablation) -> None:
    """Keep what was measured, as ``ablations/BY.json``, in place of an earlier one by the same."""
    run.storage.child(_FOLDER).write_json(f"{ablation.by}{_END}", ablation_to_json(ablation, metric=run.metric))


def read_ablations(run: Run) -> tuple[Ablation, ...]:
    """All that was measured in ``run``: by strategy, size and precision, then by parameters. Records come from the
    ledger: a group whose record is no longer there is left out.
    """
    folder = run.storage.child(_FOLDER)
    records = {record.record_id: record for record in run.records}
    names = [name.removesuffix(_END) for name in folder.names(_END)]
    order = [*(name for name in _ALWAYS if name in names), *sorted(set(names) - set(_ALWAYS))]
    return tuple(_from_json(folder.read_json(f"{name}{_END}"), records) for name in order)


def _from_json(plain: Mapping[str, Any], records: Mapping[str, Record]) -> Ablation:
    return Ablation(
        **{name: plain[name] for name in ("by", "target", "rule", "sequence_length", "output_tokens", "num_calls")},
        constraints=tuple(plain["constraints"]),
        left_out=tuple(plain["left_out"]),
        members=tuple(
            _member(row, records[row["record_id"]]) for row in plain["groups"] if row["record_id"] in records
        ),
    )


def _member(row: Mapping[str, Any], record: Record) -> Member:
    names = ("batch_size", "latency_ms", "latency_p95_ms")
    return Member(
        group=row["group"],
        num_variants=row["num_variants"],
        record=record,
        batches=tuple(Batch(**{name: batch[name] for name in names}) for batch in row["batches"]),
    )


def _measured_target(run: Run, target: str | None) -> str:
    measured = [name for name in run.goals.targets if name in TARGETS and TARGETS[name].measured]
    if target is not None and run.known_target(target) in measured:
        return target
    can = f"measured in this run: {', '.join(measured)}" if measured else "this run has no measured target"
    if target is not None:
        raise AblationError(f"target {target!r} is an estimate from a profile, so nothing can be timed there; {can}")
    if not measured:
        raise AblationError(f"{can}, only estimates: {', '.join(run.goals.targets)}")
    return measured[0]


def _rule(question: Question) -> str:
    fits = " and fits every constraint" if question.constraints else ""
    return (
        f"The best of each group is the variant on {question.target} that was trained to its end{fits}, with the best "
        f"{say_name(question.metric)} on the validation rows; of equals the cheaper one."
    )


def _why_none(records: Sequence[Record], target: str) -> str:
    there = sum(record.status == "complete" and record.target == target for record in records)
    if there:
        return f"no variant of it on {target}, of {there}, fits the constraints"
    return f"no variant of it on {target} was trained to its end"


def _value(record: Record, by: str) -> Any:
    """What a record is grouped by; None where it has no such parameter."""
    if by == "student_layers":
        return num_layers(record) or size_of(record)
    return getattr(record, by) if by in _ALWAYS else record.params.get(by)


def _names(values: Sequence[Any], by: str) -> dict[Any, str]:
    """The group of each value, in the order of the groups."""
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    numbers = all(isinstance(value, int | float) for value in distinct)
    if by == "student_layers":
        return {value: value if isinstance(value, str) else say_layers(value) for value in distinct}
    if not numbers or len(distinct) <= _MOST_VALUES:
        return {value: f"{value:g}" if isinstance(value, float) else str(value) for value in distinct}
    bounds = [round(part * len(distinct) / _BINS) for part in range(_BINS + 1)]
    bins = [distinct[low:high] for low, high in pairwise(bounds)]
    return {value: f"{part[0]:g}–{part[-1]:g}" for part in bins for value in part}
