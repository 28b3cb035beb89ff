"""Proposals and records of a search, in memory: as they are looked at, whether or not they are also written down."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.records import Record
from spaces.draw import Draw


class LedgerError(Exception):
    """A file of the ledger cannot be read; names it and the way out."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan under its number, and the variants that are to come of it."""

    number: int
    draw: Draw
    variants: tuple[tuple[str, str], ...]
    """(precision, target) of every record that completes it."""
    resumes: int | None = None
    """Number of the proposal, stopped early, that this one goes on with."""

    @property
    def trial_id(self) -> str:
        """Name of the trial that carries it out."""
        return _trial_id(self.number)

    @property
    def resumed_id(self) -> str:
        """Name of the trial that it goes on with; empty: it begins anew."""
        return "" if self.resumes is None else _trial_id(self.resumes)

    def names(self, precision: str, target: str) -> dict[str, Any]:
        """The fields of a record that say which plan, and which variant, it is of."""
        return {
            "record_id": self.record_id(precision, target),
            "trial_id": self.trial_id,
            "number": self.number,
            "strategy": self.draw.strategy,
            "plan": self.draw.plan_json,
            "fingerprint": self.draw.fingerprint,
            "params": dict(self.draw.params),
            "precision": precision,
            "target": target,
            "resumes": self.resumed_id,
        }

    def record_id(self, precision: str, target: str) -> str:
        """Name of the record of one variant."""
        return f"{self.trial_id}-{precision}-{target}"


class MemoryLedger:
    """Proposals and records. None of them ever changes, and none goes."""

    def __init__(self, *, proposals: Iterable[Proposal] = (), records: Iterable[Record] = ()) -> None:
        self._records = {record.record_id: record for record in records}
        self._in_order = sorted(self._records.values(), key=_finished)
        self._of_number: dict[int, list[Record]] = {}
        for record in self._in_order:
            self._of_number.setdefault(record.number, []).append(record)
        self._proposals = {proposal.number: proposal for proposal in proposals}
        self._numbers = sorted(self._proposals)
        self._open = {number for number in self._numbers if not self.is_finished(self._proposals[number])}
        self.num_resumed = sum(proposal.resumes is not None for proposal in self._proposals.values())
        """Proposals that go on with one that was stopped."""

    def __contains__(self, record_id: str) -> bool:
        """Whether there is a record of this name."""
        return record_id in self._records

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they were finished; without their predictions."""
        return list(self._in_order)

    def records_of(self, number: int) -> Sequence[Record]:
        """Those of one proposal, in the order in which they were finished."""
        return self._of_number.get(number, [])

    @property
    def proposals(self) -> list[Proposal]:
        """All proposals, by number."""
        return [self._proposals[number] for number in self._numbers]

    @property
    def num_trials(self) -> int:
        """How many plans were proposed: to go on with one that was stopped is no other plan."""
        return len(self._proposals) - self.num_resumed

    @property
    def next_number(self) -> int:
        """One past the last: a file of the ledger may have been deleted, and its number must not come back."""
        return self._numbers[-1] + 1 if self._numbers else 0

    def unfinished(self) -> list[Proposal]:
        """Proposals whose records are not all there, by number."""
        return [self._proposals[number] for number in sorted(self._open)]

    def is_finished(self, proposal: Proposal) -> bool:
        """Whether a proposal has the records of all its variants, or the one that says why it has not.

        That one stands in the place of the first variant, whose record is written last.
        """
        found = [self._records.get(proposal.record_id(*variant)) for variant in proposal.variants]
        return all(found) or (found[0] is not None and found[0].status != "complete")

    def propose(self, proposal: Proposal) -> None:
        """Take in a proposal. It must be new."""
        self._check_new(proposal)
        self._proposals[proposal.number] = proposal
        self._numbers.insert(bisect_left(self._numbers, proposal.number), proposal.number)
        self.num_resumed += proposal.resumes is not None
        if not self.is_finished(proposal):
            self._open.add(proposal.number)

    def append(self, record: Record) -> None:
        """Take in a record. One that is there already stays as it is."""
        if record.record_id in self._records:
            return
        kept = replace(record, predictions=()) if record.predictions else record
        self._records[record.record_id] = kept
        insort(self._in_order, kept, key=_finished)
        insort(self._of_number.setdefault(record.number, []), kept, key=_finished)
        if record.number in self._open and self.is_finished(self._proposals[record.number]):
            self._open.remove(record.number)

    def _check_new(self, proposal: Proposal) -> None:
        if proposal.number in self._proposals:
            raise LedgerError(f"proposal {proposal.number} is there already; a number is given once")


def _trial_id(number: int) -> str:
    return f"t{number:05d}"


def _finished(record: Record) -> tuple[float, str]:
    return record.finished_at, record.record_id
