"""Prefix tuning: learnt keys and values that attention reads before a text's own, the model frozen."""

from typing import Literal

from pydantic import Field

from spaces.choosers import Chooser
from spaces.methods.finetune import EPOCHS
from spaces.ranges import Choice, Range
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage, Training
from spaces.strategy import Strategy


class PrefixTuning(Training):
    """Put keys and values before a text's own in every layer, and train them and a classifier's head alone. [Li2021]"""

    carried_out_by = "trainers.prefix:tune_prefix"

    kind: Literal["prefix"] = "prefix"
    num_tokens: int = Field(ge=1)
    """How many keys and values each layer gets."""
    projection: bool = False
    """Whether they come out of a small network while they are trained; what it gives is kept, and it is forgotten."""

    def reshape(self, shape: Shape) -> Shape:
        if shape.prefix_tokens is not None:
            raise ValueError(
                f"a prefix of {self.num_tokens} tokens cannot go before one of {shape.prefix_tokens} that is there "
                "already; fine-tune the model as it is, or begin at a model without a prefix"
            )
        return shape.model_copy(update={"prefix_tokens": self.num_tokens})

    def say(self) -> str:
        how = ", projected" if self.projection else ""
        return f"train a prefix of {self.num_tokens} tokens in every layer ({self.optimisation.say()}{how})"


PREFIX_TOKENS = Choice("prefix_tokens", (16, 32), summary="keys and values before a text's own, in every layer")
PREFIX_PROJECTION = Choice("prefix_projection", ("none", "mlp"), summary="what the prefix comes out of while it learns")
PREFIX_LEARNING_RATE = Range("prefix_learning_rate", 1e-3, 1e-2, 5e-3, log=True, summary="prefix; very sensitive")


def _prefix(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    stage = PrefixTuning(
        num_tokens=space.choice(chooser, PREFIX_TOKENS),
        projection=space.choice(chooser, PREFIX_PROJECTION) == "mlp",
        optimisation=space.optimisation(chooser, PREFIX_LEARNING_RATE, EPOCHS),
    )
    return (stage,)


def _shapes(space: Space) -> tuple[Shape, ...]:
    lengths = space.options(PREFIX_TOKENS)
    return tuple(space.reference.model_copy(update={"prefix_tokens": tokens}) for tokens in lengths)


PREFIX = Strategy(
    name="prefix",
    summary="train a prefix of keys and values in every layer of the frozen base; it stays in the deployed model",
    build=_prefix,
    parameters=(PREFIX_TOKENS, PREFIX_PROJECTION, PREFIX_LEARNING_RATE, EPOCHS),
    student=False,
    kinds=("classification", "generation"),
    needs=("prefix",),
    shapes=_shapes,
)
