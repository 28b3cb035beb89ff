"""The records of a run as the sampler and the scheduler look at them. Pure functions of the ledger."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from search.goals import Goals
from search.memory_ledger import Proposal
from search.records import Curve, Record, Status
from spaces.draw import Draw


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one variant of a proposal."""

    number: int
    draw: Draw
    precision: str
    values: tuple[float, ...] | None
    """The axes of ``Goals``; None where nothing complete came of it."""
    violations: Mapping[str, float] = field(default_factory=dict)
    status: Status = "complete"
    curve: Curve = ()
    """The metric at each report of the plan's last stage, the same for all of its variants."""
    curve_seconds: Sequence[float] = ()
    """Training seconds of that stage at each report; empty where they are not known."""
    train_seconds: float | None = None
    """Of every stage of the plan, as if alone; of one that was stopped, of what was trained."""
    finished_at: float = 0.0
    """Seconds since 1970."""


def outcomes(
    proposals: Sequence[Proposal], records: Sequence[Record], goals: Goals, *, baseline: float | None
) -> list[Outcome]:
    """One outcome a variant, by proposal number and precision, whatever the order in which the records came.

    A stopped plan that another proposal goes on with is left to that one.
    """
    of_proposal, resumed = defaultdict(list), {proposal.resumes for proposal in proposals}
    for record in records:
        of_proposal[record.number].append(record)
    return [
        outcome
        for proposal in sorted(proposals, key=lambda proposal: proposal.number)
        if proposal.number not in resumed
        for outcome in _variants(proposal, of_proposal[proposal.number], goals, baseline)
    ]


class History(list[Outcome]):
    """``outcomes`` of proposals that are finished, kept up to date one by one."""

    def __init__(self, goals: Goals) -> None:
        super().__init__()
        self._goals = goals
        self.plans: set[str] = set()
        """Fingerprints of their plans."""

    def add(self, proposal: Proposal, records: Sequence[Record], *, baseline: float | None) -> None:
        """Take in a proposal that is finished."""
        at = bisect_left(self, proposal.number, key=lambda outcome: outcome.number)
        self[at:at] = _variants(proposal, records, self._goals, baseline)
        self.plans.add(proposal.draw.fingerprint)

    def drop(self, number: int) -> None:
        """A proposal is gone on with under another number, which tells all that this one has told."""
        self[:] = [outcome for outcome in self if outcome.number != number]


def plans_of(outcomes: Sequence[Outcome]) -> Set[str]:
    """Fingerprints of the plans that ``outcomes`` are of."""
    return outcomes.plans if isinstance(outcomes, History) else {outcome.draw.fingerprint for outcome in outcomes}


def _variants(proposal: Proposal, records: Sequence[Record], goals: Goals, baseline: float | None) -> list[Outcome]:
    by_precision = defaultdict(list)
    for record in records:
        by_precision[record.precision].append(record)
    found = []
    for precision, group in sorted(by_precision.items()):
        complete = all(record.status == "complete" for record in group)
        values = goals.values(group) if complete else None
        misses: dict[str, float] = {}
        for record in group if values is not None else ():
            for text, miss in goals.violations(record, baseline=baseline).items():
                misses[text] = max(miss, misses.get(text, miss))
        first = group[0]
        found.append(
            Outcome(
                number=proposal.number,
                draw=proposal.draw,
                precision=precision,
                values=values,
                violations=misses,
                status=next((record.status for record in group if record.status != "complete"), "complete"),
                curve=first.curve,
                curve_seconds=first.curve_seconds,
                train_seconds=first.train_seconds,
                finished_at=max(record.finished_at for record in group),
            )
        )
    return found
