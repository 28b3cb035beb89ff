"""Drawing a plan from a space. Conditions need no declaration: a strategy asks only for what it uses."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Generic, TypeVar

from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.choosers import Chooser, MiddleChooser, RecordingChooser, Value
from spaces.plan import Plan, Searchable
from spaces.ranges import Choice
from spaces.shape import Shape
from spaces.space import CUT, Space
from spaces.strategy import Strategy

P = TypeVar("P", bound=Searchable, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Draw(Generic[P]):
    """A plan, and what was picked to get it."""

    strategy: str
    params: Mapping[str, Value]
    """Only the parameters that are active for the strategy."""
    plan: P

    @cached_property
    def fingerprint(self) -> str:
        """The plan's, which takes a while to compute."""
        return self.plan.fingerprint

    @cached_property
    def plan_json(self) -> str:
        """The plan as text."""
        return self.plan.to_json()

    @cached_property
    def shape(self) -> Hashable:
        """The plan's."""
        return self.plan.shape

    @cached_property
    def key(self) -> Hashable:
        """What tells draws of one space apart, without the plan's fingerprint."""
        return self.shape, self.strategy, frozenset(self.params.items())


def draw(space: Space, chooser: Chooser) -> Draw[Plan]:
    """One plan. Parameters that the picked strategy does not read are not asked for."""
    recorder = RecordingChooser(chooser)
    strategy = str(recorder.categorical("strategy", space.strategies))
    stages = CATALOGUE[strategy].build(space, recorder)
    params = {name: value for name, value in recorder.picked.items() if name != "strategy"}
    return Draw(strategy=strategy, params=params, plan=space.plan(stages))


def opening(space: Space) -> Iterator[Draw[Plan]]:
    """The first plans of a search: each strategy once at its defaults, students spread over the sizes."""
    sizes = _sizes(space)
    students = 0
    for name in space.strategies:
        defaults: dict[str, Value] = {span.name: span.default for span in {**PARAMETERS, **space.narrowed}.values()}
        defaults["strategy"] = name
        if CATALOGUE[name].student:
            defaults |= sizes[students % len(sizes)]
            students += 1
        yield draw(space, MiddleChooser(defaults))


def _sizes(space: Space) -> list[dict[str, Value]]:
    """What has to be picked for each size of a student, the deepest and widest first."""
    cuts: list[tuple[float, dict[str, Value]]] = [
        (size * width, {"student": CUT, "student_layers": size, "student_width": width})
        for size in space.student_layers
        for width in space.student_widths
    ]
    own: list[tuple[float, dict[str, Value]]] = [
        (found.num_layers, {"student": found.name}) for found in space.students
    ]
    return [picks for _, picks in sorted([*cuts, *own], key=lambda one: one[0], reverse=True)]


def shapes(space: Space) -> list[Shape]:
    """Every shape that a plan of ``space`` can end in, and the base itself (the reference); students first."""
    ends = [shape for name in space.strategies for shape in CATALOGUE[name].ends_in(space)]
    return sorted(dict.fromkeys([*ends, space.reference]), key=space.num_layers)


def restrict(space: Space, feasible: Callable[[Shape], bool]) -> Space:
    """``space`` without the sizes that are not feasible, and without strategies that could end in such a shape."""
    widths, layers = _block(space, feasible)
    own = tuple(student for student in space.students if feasible(Shape(base=student.model)))
    left = replace(space, student_layers=layers, student_widths=widths, students=own)
    for name in space.strategies:
        left = _narrow(left, CATALOGUE[name], feasible)
    names = [name for name in space.strategies if _stays(CATALOGUE[name].ends_in(left), feasible)]
    return replace(left, strategies=tuple(names))


def _block(space: Space, feasible: Callable[[Shape], bool]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The widths, and the numbers of layers that are feasible at all of these, that make the most shapes together."""

    def layers(widths: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(k for k in space.student_layers if all(feasible(space.shape(k, width)) for width in widths))

    every = space.student_widths
    blocks = [some for count in range(len(every), 0, -1) for some in combinations(every, count)]
    widths = max(blocks, key=lambda some: len(some) * len(layers(some)))
    return widths, layers(widths)


def _narrow(space: Space, strategy: Strategy, feasible: Callable[[Shape], bool]) -> Space:
    """``space`` without options of ``strategy`` by which it could end in a shape that is not feasible.

    One option after another goes, each time the one without which most of the shapes are feasible.
    """

    def share(of: Space) -> float:
        ends = strategy.ends_in(of)
        return sum(map(feasible, ends)) / len(ends) if ends else 0.0

    fewer = max(_with_fewer_options(space, strategy), key=share, default=space)
    return _narrow(fewer, strategy, feasible) if share(space) < share(fewer) else space


def _with_fewer_options(space: Space, strategy: Strategy) -> Iterator[Space]:
    for choice in strategy.parameters:
        if isinstance(choice, Choice) and len(options := space.options(choice)) > 1:
            for out in options:
                fewer = replace(choice, options=tuple(option for option in options if option != out))
                yield replace(space, narrowed={**space.narrowed, choice.name: fewer})


def _stays(ends: tuple[Shape, ...], feasible: Callable[[Shape], bool]) -> bool:
    return bool(ends) and all(feasible(shape) for shape in ends)
