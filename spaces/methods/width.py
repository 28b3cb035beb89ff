"""Students by width: a share of a model's hidden channels, attention heads and feed-forward neurons."""

from typing import Literal

from pydantic import Field

from spaces.shape import Shape
from spaces.stages import Stage


class SelectWidth(Stage):
    """Keep the part of every layer's width that matters the most. Heads keep their size. [Muralidharan2024]"""

    carried_out_by = "trainers.width:cut"

    kind: Literal["select_width"] = "select_width"
    share: float = Field(gt=0, lt=1)
    """Of hidden channels, of attention heads and of neurons alike."""
    scores: str = Field(min_length=1)
    """Fingerprint of what each part of the base's width matters to the rows (``trainers.width_scores``)."""

    def reshape(self, shape: Shape) -> Shape:
        if shape.width is not None or shape.num_layers is not None or shape.additions:
            raise ValueError(f"`{self.say()}` must come before layers are taken out or put in, and only once")
        return shape.model_copy(update={"width": self.share})

    def say(self) -> str:
        return f"keep {self.share:g} of the width"
