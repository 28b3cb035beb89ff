"""Where the training time of a search went, and what of it was saved: by shared beginnings, by stopping early."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.budget import ended_by_budget, seconds_spent
from search.records import Record


@dataclass(frozen=True, kw_only=True)
class StrategyTime:
    """Training seconds of the plans of one strategy."""

    strategy: str
    spent: float
    shared: float
    """Saved, because a beginning was there already."""
    stopped: float
    """Saved, because the scheduler stopped plans: what they would still have taken at their pace."""
    num_stopped: int
    """Plans that the scheduler stopped."""


def by_strategy(records: Sequence[Record]) -> tuple[StrategyTime, ...]:
    """Each strategy's share, what takes most in all first."""
    trials: dict[str, dict[int, Record]] = {}
    for record in records:
        if record.number >= 0:
            trials.setdefault(record.strategy, {})[record.number] = record
    found = (_of(strategy, list(plans.values())) for strategy, plans in trials.items())
    return tuple(sorted(found, key=lambda time: (-(time.spent + time.shared + time.stopped), time.strategy)))


def _of(strategy: str, plans: Sequence[Record]) -> StrategyTime:
    stopped = [plan for plan in plans if plan.status == "stopped" and not ended_by_budget(plan)]
    return StrategyTime(
        strategy=strategy,
        spent=sum(seconds_spent([plan]) for plan in plans),
        shared=sum(plan.prefix_seconds_saved for plan in plans),
        stopped=sum(map(_left, stopped)),
        num_stopped=len(stopped),
    )


def _left(plan: Record) -> float:
    """What the last stage would have taken from its last report on, at its pace until then."""
    if not plan.curve or not plan.curve_seconds:
        return 0.0
    (fidelity, _), seconds = plan.curve[-1], plan.curve_seconds[-1]
    return seconds * (1 / fidelity - 1)
