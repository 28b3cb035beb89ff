"""Students by layers: some of a model's transformer layers, with its head and embeddings. How a student begins."""

from typing import Literal

from pydantic import Field, model_validator

from spaces.choosers import Chooser
from spaces.methods.start_from import StartFrom
from spaces.methods.width import SelectWidth
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage


class SelectLayers(Stage):
    """Keep some transformer layers of the model so far."""

    carried_out_by = "trainers.models:cut"

    kind: Literal["select_layers"] = "select_layers"
    layers: tuple[int, ...] = Field(min_length=1)
    """Which layers stay, counted from 0 at the input, rising."""

    @model_validator(mode="after")
    def _rising(self) -> "SelectLayers":
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"`layers` must be rising and not negative, but got {self.layers}")
        return self

    def reshape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"num_layers": len(self.layers)})

    def say(self) -> str:
        count = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return f"keep {count} ({', '.join(map(str, self.layers))})"


def cut(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    """How a student begins: with a picked number of the base's layers, a share of its width and the part of its
    vocabulary that the space names, without a stage where that is all of it; or at a picked model of its own.
    """
    if (own := space.own_student(chooser)) is not None:
        return (StartFrom(model=own.model, name=own.name),)
    num_layers, width = space.student_size(chooser), space.student_width(chooser)
    begin: tuple[Stage, ...] = () if space.vocabulary is None else (space.vocabulary,)
    if width < 1:
        assert space.width_scores is not None, "scored with the rows, before the first draw"
        begin = (*begin, SelectWidth(share=width, scores=space.width_scores))
    if num_layers == space.base_layers:
        return begin
    return (*begin, SelectLayers(layers=spread(space.base_layers, num_layers)))


def spread(total: int, kept: int) -> tuple[int, ...]:
    """``kept`` of ``total`` layers, evenly spaced, first and last included. [Sanh2019]: 6 of 12 are 0 2 4 7 9 11."""
    if not 1 <= kept <= total:
        raise ValueError(f"`1 <= kept <= total` must hold, but got ({kept=}, {total=})")
    if kept == 1:
        return (0,)
    return tuple((2 * i * (total - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept))
