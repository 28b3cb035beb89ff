"""Students that are pretrained models of their own: a chain that begins at another model than its base."""

from typing import Annotated, Literal

from pydantic import Field

from spaces.canonical import SAID
from spaces.shape import Shape
from spaces.stages import Stage


class StartFrom(Stage):
    """Begin at another pretrained model, whose own tokens it reads; always the first stage."""

    carried_out_by = "trainers.models:start_from"

    kind: Literal["start_from"] = "start_from"
    model: str = Field(min_length=1)
    """Fingerprint of its content (``trainers.models.inspect_model``)."""
    name: Annotated[str, SAID] = Field(min_length=1)
    """What people call it."""

    @property
    def start(self) -> str:
        return self.model

    @property
    def reader(self) -> str:
        return self.model

    def reshape(self, shape: Shape) -> Shape:  # noqa: ARG002
        return Shape(base=self.model)

    def say(self) -> str:
        return f"start from {self.name}"
