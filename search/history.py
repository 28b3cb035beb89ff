"""The records of a run as the sampler and the scheduler look at them. Pure functions of the ledger."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.goals import Goals
from search.ledger import Proposal
from search.records import Record
from spaces.draw import Draw


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one variant of a proposal; ``values`` is None where nothing complete did."""

    number: int
    draw: Draw
    precision: str
    values: tuple[float, ...] | None
    violations: Mapping[str, float] = field(default_factory=dict)


def outcomes(
    proposals: Sequence[Proposal], records: Sequence[Record], goals: Goals, *, baseline: float | None
) -> list[Outcome]:
    """One outcome a variant, by proposal number and precision, whatever the order in which the records came."""
    of_proposal = defaultdict(list)
    for record in records:
        of_proposal[record.number].append(record)
    return [
        outcome
        for proposal in sorted(proposals, key=lambda proposal: proposal.number)
        for outcome in _variants(proposal, of_proposal[proposal.number], goals, baseline)
    ]


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
        found.append(
            Outcome(number=proposal.number, draw=proposal.draw, precision=precision, values=values, violations=misses)
        )
    return found
