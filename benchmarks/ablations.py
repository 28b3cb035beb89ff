"""Ours without one idea each, for ``search_quality.py``: what each of them is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search.known_cost.sampler import KnownCostSampler
from search.sampler import Propose
from search.simulation.problem import Problem
from search.simulation.samplers import known_cost
from search.simulation.simulate import Given, Maker
from search.simulation.study import SINGLE, Competitor


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Ours without one idea."""

    idea: str
    competitor: Competitor
    sampler: Maker


def full_scheduler(problem: Problem) -> str:
    """Of ours with all its ideas."""
    return "known_cost" if problem.fidelity else "none"


def ablations(problem: Problem) -> list[Ablation]:
    """Those whose idea ``problem`` has a use for."""
    scheduler = full_scheduler(problem)
    every = [
        (problem.known_costs, "known costs", "without_known_costs", without_known_costs, scheduler),
        (problem.fan_out, "fan-out", f"without_fan_out{SINGLE}", known_cost, scheduler),
        (problem.fidelity, "early stopping", "known_cost", known_cost, "none"),
        (problem.shared, "sharing", "without_sharing", without_sharing, scheduler),
        (problem.train_cost, "cost-awareness", "without_cost_awareness", without_cost_awareness, scheduler),
    ]
    return [
        Ablation(idea=idea, competitor=Competitor(sampler=name, scheduler=of), sampler=maker)
        for is_used, idea, name, maker, of in every
        if is_used
    ]


def without_known_costs(given: Given) -> Propose:
    """Ours, to which all objectives are told by training alone."""
    return _changed(given, values=lambda known: np.where(np.isinf(known), np.inf, np.nan))


def without_cost_awareness(given: Given) -> Propose:
    """Ours, by gain for a plan and not for a second."""
    ours = known_cost(given)
    assert isinstance(ours, KnownCostSampler)
    return replace(ours, question=replace(ours.question, per_second=False))


def without_sharing(given: Given) -> Propose:
    """Ours, which does not know what beginnings are there. They are still computed once."""
    return _changed(given, share_left=np.ones_like)


class _Changed:
    """Knows what another knows, with changes."""

    def __init__(self, foreknown: Any, **changes: Any) -> None:
        self.variants, self._foreknown, self._changes = foreknown.variants, foreknown, changes

    def values(self, draws: Sequence[Any]) -> Any:
        known = self._foreknown.values(draws)
        return self._changes["values"](known) if "values" in self._changes else known

    def share_left(self, draws: Sequence[Any]) -> Any:
        left = self._foreknown.share_left(draws)
        return self._changes["share_left"](left) if "share_left" in self._changes else left


def _changed(given: Given, **changes: Any) -> Propose:
    ours = known_cost(given)
    assert isinstance(ours, KnownCostSampler)
    return replace(ours, foreknown=_Changed(ours.foreknown, **changes))
