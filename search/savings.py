"""Where the training time of a search went, and what of it was saved: by shared beginnings, by stopping early."""

from collections.abc import Mapping, Sequence
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
    plans = list({record.number: record for record in records if record.number >= 0}.values())
    trials = {plan.trial_id: plan for plan in plans}
    gone_on = {plan.resumes: trials[plan.resumes] for plan in plans if plan.resumes in trials}
    of_strategy: dict[str, list[Record]] = {}
    for plan in plans:
        of_strategy.setdefault(plan.strategy, []).append(plan)
    found = (_of(strategy, own, gone_on) for strategy, own in of_strategy.items())
    return tuple(sorted(found, key=lambda time: (-(time.spent + time.shared + time.stopped), time.strategy)))


def _of(strategy: str, plans: Sequence[Record], gone_on: Mapping[str, Record]) -> StrategyTime:
    """``gone_on``: by trial, the stopped plans whose rest came later."""
    stopped = [plan for plan in plans if plan.status == "stopped" and not ended_by_budget(plan)]
    stopped = [plan for plan in stopped if plan.trial_id not in gone_on]
    return StrategyTime(
        strategy=strategy,
        spent=sum(seconds_spent([plan]) for plan in plans),
        shared=sum(_shared(plan, gone_on.get(plan.resumes)) for plan in plans),
        stopped=sum(map(_left, stopped)),
        num_stopped=len(stopped),
    )


def _shared(plan: Record, before: Record | None) -> float:
    """What beginnings saved; not what a plan goes on from, which it has paid for itself ``before``."""
    own = before.curve_seconds[-1] if before is not None and before.curve_seconds else 0.0
    return max(0.0, plan.prefix_seconds_saved - own)


def _left(plan: Record) -> float:
    """What the last stage would have taken from its last report on, at its pace until then."""
    if not plan.curve or not plan.curve_seconds:
        return 0.0
    (fidelity, _), seconds = plan.curve[-1], plan.curve_seconds[-1]
    return seconds * (1 / fidelity - 1)
