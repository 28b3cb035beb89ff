"""When a search ends: after so many plans, so long, or so much device time, whichever comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.records import Record

if TYPE_CHECKING:
    from search.spec_sections import Budget

_BUDGET = "budget: "
"""Begins the reason of every plan that was ended by a limit."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a search has used so far, over all its sessions."""

    trials: int
    minutes: float
    device_hours: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a search may use; None: without limit."""

    trials: int | None = None
    minutes: float | None = None
    device_hours: float | None = None

    @classmethod
    def of(cls, budget: "Budget") -> "Limits":
        """Those of a spec."""
        return cls(trials=budget.trials, minutes=budget.minutes, device_hours=budget.device_hours)

    def time_is_up(self, spent: Spent) -> str | None:
        """Why plans under way are to end; None while they may go on."""
        if self.minutes is not None and spent.minutes >= self.minutes:
            return f"{_BUDGET}{self.minutes:g} minutes are over"
        if self.device_hours is not None and spent.device_hours >= self.device_hours:
            return f"{_BUDGET}{self.device_hours:g} device hours are used"
        return None

    @property
    def in_time(self) -> bool:
        """Whether time is limited: then there may be some left when every plan was had."""
        return self.minutes is not None or self.device_hours is not None

    def allows_another(self, spent: Spent) -> bool:
        """Whether one more plan may be proposed."""
        return self.time_is_up(spent) is None and (self.trials is None or spent.trials < self.trials)


def ended_by_budget(record: Record) -> bool:
    """Whether a plan was stopped because the search was over, whatever was thought of it."""
    return record.status == "stopped" and record.error.startswith(_BUDGET)


def seconds_spent(records: Sequence[Record]) -> float:
    """Training time that was really spent on one plan, from its records: each tells all of it."""
    return (records[-1].train_seconds or 0.0) - records[-1].prefix_seconds_saved
