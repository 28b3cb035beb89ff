"""A strategy: a named shape of plan, for the tasks that it fits, and the parameters that it opens."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from spaces.choosers import Chooser
from spaces.ranges import Parameter
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage

Build = Callable[[Space, Chooser], tuple[Stage, ...]]
TaskKind = Literal["classification", "generation"]
Need = Literal["teacher", "same_tokens", "unlabeled", "rationales", "int8"]
"""What a strategy needs beside labelled rows. A teacher is trained on them where the spec names none; that it reads the
same tokens as the student is known when the rows are tokenised."""

_ABSENT = {
    "unlabeled": "task.unlabeled names no rows",
    "rationales": "task.rationale names no column",
    "int8": "search.space.quantization leaves int8 out",
}


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
    needs: tuple[Need, ...] = ()
    shapes: Callable[[Space], tuple[Shape, ...]] | None = None
    """Every shape that it can end in, where these are not the sizes of students, or the base's own."""

    def misfit(self, *, kind: str, has: Collection[str]) -> str | None:
        """Why it cannot serve a task of ``kind`` that ``has`` these needs; None where it can."""
        if kind not in self.kinds:
            return f"is for {' and '.join(self.kinds)}, and the task is {kind}"
        absent = [_ABSENT[need] for need in self.needs if need in _ABSENT and need not in has]
        return f"needs {self.needs_in_words}, but {' and '.join(absent)}" if absent else None

    @property
    def needs_in_words(self) -> str:
        """a teacher, unlabeled texts; empty where labelled rows are enough."""
        words = {
            "teacher": "a teacher",
            "same_tokens": "one tokenizer for it and the student",
            "unlabeled": "unlabeled texts",
            "rationales": "rationales",
            "int8": "int8 among the precisions",
        }
        return " and ".join(words[need] for need in self.needs)

    def ends_in(self, space: Space) -> tuple[Shape, ...]:
        """Every shape that its plans can end in."""
        if self.shapes is not None:
            return self.shapes(space)
        return tuple(space.shape(size) for size in space.student_layers) if self.student else (space.reference,)
