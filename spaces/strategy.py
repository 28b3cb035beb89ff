"""A strategy: a named shape of plan, for the tasks that it fits, and the parameters that it opens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spaces.choosers import Chooser
from spaces.needs import NEEDS, Lacking, NeedName
from spaces.ranges import Parameter
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage

Build = Callable[[Space, Chooser], tuple[Stage, ...]]
TaskKind = Literal["classification", "generation"]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A named shape of plan."""

    name: str
    summary: str
    build: Build
    parameters: tuple[Parameter, ...]
    """All that it may ask for; sizes of students and recipes of teachers aside, which the model section gives."""
    student: bool = True
    """Whether it ends in a student of a searched size, not in a model of the base's size."""
    kinds: tuple[TaskKind, ...] = ("classification",)
    needs: tuple[NeedName, ...] = ()
    """What it cannot do without beside labelled rows; what single options need stands at their parameter."""
    shapes: Callable[[Space], tuple[Shape, ...]] | None = None
    """Every shape that it can end in, where these are not the sizes of students, or the base's own."""

    def misfit(self, *, kind: str, lacking: Lacking) -> str | None:
        """Why it cannot serve a task of ``kind`` where these needs are not met; None where it can."""
        if kind not in self.kinds:
            return f"is for {' and '.join(self.kinds)}, and the task is {kind}"
        absent = [lacking[need] for need in self.needs if need in lacking]
        return f"needs {self.needs_in_words}, but {' and '.join(absent)}" if absent else None

    @property
    def needs_in_words(self) -> str:
        """a teacher and unlabeled texts; empty where labelled rows are enough."""
        return " and ".join(NEEDS[need].words for need in self.needs)

    def ends_in(self, space: Space) -> tuple[Shape, ...]:
        """Every shape that its plans can end in."""
        if self.shapes is not None:
            return self.shapes(space)
        return space.student_shapes if self.student else (space.reference,)
