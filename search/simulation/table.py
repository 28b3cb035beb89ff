"""A table of recorded trainings as a space: drawn from like the space of plans, and answered by what was recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from search.pareto import Points
from search.simulation.columns import Axis, read_columns
from search.simulation.nearest import Nearest
from search.simulation.problem import Param, Problem
from search.simulation.recorded import ONLY, Training, trainings_of
from spaces.canonical import canonical_json
from spaces.choosers import Chooser, Value
from spaces.draw import Draw


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """A configuration as a plan: one that was picked, or the recorded one that answers it."""

    params: Mapping[str, Value]
    """Those that are read."""
    shape: int | None = None
    """Number of the training that answers it, which decides its known costs; None: not answered yet."""
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Its name: two trainings may have the same parameters, so an answer's has its number."""
        return repr(dict(self.params)) if self.shape is None else f"training {self.shape}"

    def to_json(self) -> str:
        """Its parameters."""
        return canonical_json(dict(self.params))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Recorded trainings, and the parameters by which they are picked."""

    problem: Problem
    trainings: Sequence[Training]
    axes: Sequence[Axis]
    """Over the trainings, in an order in which they can be picked."""

    @property
    def variants(self) -> tuple[str, ...]:
        """What comes of each training, the first being the one whose quality is seen half-way."""
        return tuple(self.trainings[0].variants)

    @cached_property
    def objectives(self) -> Points:
        """Every variant that did not fail × objectives, as the table has them."""
        rows = [
            [variant.quality, *variant.known.values(), *training.learned.values()]
            for training in self.trainings
            for variant in training.variants.values()
            if math.isfinite(variant.quality)
        ]
        return np.array(rows).reshape(-1, len(self.problem.objectives))

    def draw(self, chooser: Chooser) -> Draw[TablePlan]:
        """A configuration as ``chooser`` picks it; ``Answers`` tells the training that answers it."""
        params: dict[str, Value] = {}
        for axis in self.axes:
            if all(params.get(other) in options for other, options in axis.param.when.items()):
                params[axis.name] = _pick(chooser, axis)
        return _draw(TablePlan(params=params))

    def course(self, found: Draw[TablePlan]) -> Training:
        """The training that answers a draw."""
        assert found.plan.shape is not None, found
        return self.trainings[found.plan.shape]

    @cached_property
    def recorded(self) -> Sequence[Draw[TablePlan]]:
        """Every training as the draw that it answers best."""
        return [
            _draw(TablePlan(params=training.params, shape=number)) for number, training in enumerate(self.trainings)
        ]

    def unfolded(self) -> "Table":
        """The fan-out as one more parameter: each variant is a training of its own, paid for in full."""
        column = self.problem.fan_out
        if column is None:
            return self
        pairs = [(number, option) for number in range(len(self.trainings)) for option in self.variants]
        numbers = np.array([number for number, _ in pairs])
        axes = [replace(axis, values=axis.values[numbers], active=axis.active[numbers]) for axis in self.axes]
        return Table(
            problem=self.problem,
            trainings=[_alone(self.trainings[number], column, option) for number, option in pairs],
            axes=[*axes, _option_axis(column, self.variants, num_trainings=len(self.trainings))],
        )


def read_table(problem: Problem) -> Table:
    """The table of ``problem``.

    Raises:
        SpecError: the table does not hold what the problem says.
    """
    columns = read_columns(problem)
    trainings = trainings_of(problem, columns)
    ends = np.array([training.row for training in trainings])
    axes = [replace(axis, values=axis.values[ends], active=axis.active[ends]) for axis in columns.axes]
    return Table(problem=problem, trainings=trainings, axes=axes)


class Answers:
    """The trainings of a table that were not asked for yet."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._nearest = Nearest(table.axes)

    @property
    def num_left(self) -> int:
        """Trainings that are still to be had."""
        return self._nearest.num_left

    def settle(self, draws: Sequence[Draw[TablePlan]]) -> list[Draw[TablePlan]]:
        """The training that would answer each draw, asked for alone; what was recorded answers for itself.

        Raises ``LookupError`` where none is left.
        """
        asked = [draw.params for draw in draws if draw.plan.shape is None]
        found = iter(self._nearest.find(asked).tolist() if asked else ())
        return [self._table.recorded[next(found)] if draw.plan.shape is None else draw for draw in draws]

    def take(self, draw: Draw[TablePlan]) -> Draw[TablePlan]:
        """What answers ``draw``; it answers nothing else from now on. Raises ``LookupError`` where none is left."""
        number = draw.plan.shape
        if number is None or not self._nearest.is_left(number):
            (number,) = self._nearest.find([draw.params]).tolist()
        self._nearest.take(number)
        return self._table.recorded[number]


def _draw(plan: TablePlan) -> Draw[TablePlan]:
    return Draw(strategy=str(plan.params.get("strategy", "")), params=plan.params, plan=plan)


def _pick(chooser: Chooser, axis: Axis) -> Value:
    if axis.param.type == "categorical":
        return chooser.categorical(axis.name, axis.options)
    low, high = axis.bounds
    if axis.param.type == "int":
        return chooser.integer(axis.name, round(low), round(high), log=axis.param.log)
    return chooser.real(axis.name, low, high, log=axis.param.log)


def _alone(training: Training, column: str, option: str) -> Training:
    variant = training.variants[option]
    return replace(
        training,
        name=f"{training.name} {option}",
        params={**training.params, column: option},
        qualities=(*training.qualities[:-1], variant.quality),
        variants={ONLY: variant},
    )


def _option_axis(column: str, options: tuple[str, ...], *, num_trainings: int) -> Axis:
    return Axis(
        name=column,
        param=Param(type="categorical"),
        values=np.tile(np.arange(len(options), dtype=float), num_trainings),
        active=np.ones(num_trainings * len(options), dtype=bool),
        options=options,
    )
