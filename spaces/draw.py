"""Drawing a plan from a space. Conditions need no declaration: a strategy asks only for what it uses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from spaces.choosers import Chooser, MiddleChooser, RecordingChooser, Value
from spaces.plan import Plan, Shape
from spaces.space import Space
from spaces.strategies import CATALOGUE


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A plan, and what was picked to get it."""

    strategy: str
    params: Mapping[str, Value]
    """Only the parameters that are active for the strategy."""
    plan: Plan


def draw(space: Space, chooser: Chooser) -> Draw:
    """One plan. Parameters that the picked strategy does not read are not asked for."""
    recorder = RecordingChooser(chooser)
    strategy = str(recorder.categorical("strategy", space.strategies))
    stages = CATALOGUE[strategy].build(space, recorder)
    params = {name: value for name, value in recorder.picked.items() if name != "strategy"}
    return Draw(strategy=strategy, params=params, plan=space.plan(stages))


def opening(space: Space) -> Iterator[Draw]:
    """The first plans of a search: each strategy once at its defaults, students spread over the sizes."""
    sizes = sorted(space.student_layers, reverse=True)
    students = 0
    for name in space.strategies:
        defaults: dict[str, Value] = {parameter: span.default for parameter, span in space.ranges.items()}
        defaults["strategy"] = name
        if CATALOGUE[name].student:
            defaults["student_layers"] = sizes[students % len(sizes)]
            students += 1
        yield draw(space, MiddleChooser(defaults))


def restrict(space: Space, feasible: Callable[[Shape], bool]) -> Space:
    """``space`` without the sizes, and so the strategies, that are not feasible."""
    layers = tuple(k for k in space.student_layers if feasible(space.shape(k)))
    fits = {False: feasible(space.shape(space.base_layers)), True: bool(layers)}
    names = tuple(name for name in space.strategies if fits[CATALOGUE[name].student])
    return replace(space, student_layers=layers, strategies=names)
