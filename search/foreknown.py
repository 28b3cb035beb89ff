"""What a cost table and an artifact store tell of a plan before it is trained."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.goals import CostTable, Goals
from search.known_cost.beliefs import Question
from spaces.draw import Draw
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.stages import Training

Vector = NDArray[np.float64]
ShareLeft = Callable[[Draw], float]
"""The share of a plan's training that is still to be done."""


def question_of(goals: Goals, *, reference: Vector | None = None) -> Question:
    """What the sampler ``known_cost`` is asked; ``reference``: as minimised, the corner of the hypervolume."""
    names = [name for name, _ in goals.axes]
    metric = names.index(goals.metric) if goals.metric in names else None
    time = next((axis for axis, name in enumerate(names) if goals.columns[name].grows), None)
    return Question(signs=np.array(goals.signs), metric=metric, time=time, reference=reference)


class CostTableForeknown:
    """Known costs by shape; what is not in the table, or breaks a known constraint, is ruled out."""

    def __init__(self, goals: Goals, costs: CostTable, variants: Sequence[str], *, share_left: ShareLeft) -> None:
        """``variants``: the precisions that every plan is deployed at."""
        self.variants = tuple(variants)
        self._goals, self._costs, self._share_left = goals, costs, share_left
        self._signs, self._of_shapes = np.array(goals.signs), dict[Any, Vector]()

    def values(self, draws: Sequence[Draw]) -> Vector:
        """Draws × variants × objectives, minimised: NaN where only training tells, inf for what is ruled out."""
        found = [self._of_shape(draw.shape) for draw in draws]
        return np.array(found).reshape(-1, len(self.variants), len(self._signs))

    def share_left(self, draws: Sequence[Draw]) -> Vector:
        """Of each plan's training."""
        return np.array([self._share_left(draw) for draw in draws])

    def _of_shape(self, shape: Any) -> Vector:
        if shape not in self._of_shapes:
            self._of_shapes[shape] = np.array([self._of_variant(shape, variant) for variant in self.variants])
        return self._of_shapes[shape]

    def _of_variant(self, shape: Any, variant: str) -> Vector:
        known = [self._costs.get((shape, variant, target)) for target in self._goals.targets]
        by_target = dict(zip(self._goals.targets, known, strict=True))
        if any(costs is None or self._goals.broken_known(costs) for costs in known):
            return np.full(len(self._signs), np.inf)
        found = [np.nan if target is None else (by_target[target] or {}).get(name) for name, target in self._goals.axes]
        if None in found:
            return np.full(len(self._signs), np.inf)
        return np.array(found, dtype=float) * self._signs


class Works:
    """The work of each part of a plan, as it is known beforehand."""

    def __init__(self, work: Callable[[Plan], float]) -> None:
        """``work`` tells that of a plan's last stage, in any unit."""
        self._work = work
        self._names: dict[Plan, str] = {}
        self._found: dict[Hashable, tuple[float, Mapping[str, float]]] = {}

    def __call__(self, draw: Draw[Plan]) -> tuple[float, Mapping[str, float]]:
        """That of the plan's own end, and of each beginning by its fingerprint."""
        if draw.key not in self._found:
            *beginnings, end = draw.plan.trained_prefixes()
            self._found[draw.key] = self._work(end), {self._name(part): self._work(part) for part in beginnings}
        return self._found[draw.key]

    def _name(self, beginning: Plan) -> str:
        """The fingerprint of a beginning: there are few of them, and each takes a while to compute."""
        if beginning not in self._names:
            self._names[beginning] = beginning.fingerprint
        return self._names[beginning]


class SharesLeft:
    """The share of a plan's training that no artifact spares, by the work of its parts."""

    def __init__(self, is_there: Callable[[str], bool], work: Callable[[Plan], float]) -> None:
        """``is_there`` tells whether an artifact is, ``work`` as for ``Works``."""
        self._is_there, self._works = is_there, Works(work)

    def __call__(self, draw: Draw[Plan]) -> float:
        """Between 0 and 1; the plan's own end is never there."""
        own, beginnings = self._works(draw)
        left = own + sum(work for part, work in beginnings.items() if not self._is_there(part))
        return left / (own + sum(beginnings.values()) or 1.0)


def work_of(plan: Plan, latency: Mapping[Shape, float]) -> float:
    """Of the plan's last stage, for a training row, in the unit of ``latency``: that of a request, by shape.

    A training step counts as three forward passes.
    """
    stage = plan.stages[-1]
    assert isinstance(stage, Training)
    return 3 * latency.get(plan.shape, max(latency.values(), default=1.0)) * stage.passes
