"""Bottleneck adapters: small blocks in a frozen model, trained on the gold labels. They stay when it serves."""

from itertools import product
from typing import Literal

from spaces.choosers import Chooser
from spaces.methods.finetune import EPOCHS
from spaces.ranges import Choice, Range
from spaces.shape import Adapters, Shape
from spaces.space import Space
from spaces.stages import Stage, Training
from spaces.strategy import Strategy


class AdapterTuning(Training):
    """Put adapters into every layer, and train them and a classifier's head alone. [Houlsby2019] [Pfeiffer2021]"""

    carried_out_by = "trainers.adapters:tune_adapters"

    kind: Literal["adapter"] = "adapter"
    adapters: Adapters

    def reshape(self, shape: Shape) -> Shape:
        if shape.adapters is not None:
            raise ValueError(
                f"adapters {self.adapters.say()} cannot go into a model that has {shape.adapters.say()} already; "
                "fine-tune it as it is, or begin at a model without adapters"
            )
        return shape.model_copy(update={"adapters": self.adapters})

    def say(self) -> str:
        where = "attention and feed-forward" if self.adapters.placement == "houlsby" else "feed-forward"
        size = f"1/{self.adapters.reduction} of the width"
        return f"train adapters behind {where} ({self.adapters.placement}, {size}, {self.optimisation.say()})"


ADAPTER_PLACEMENT = Choice(
    "adapter_placement", ("pfeiffer", "houlsby"), summary="behind feed-forward blocks, or behind attention as well"
)
ADAPTER_REDUCTION = Choice("adapter_reduction", (16, 4), summary="the model's width over that of an adapter")
ADAPTER_LEARNING_RATE = Range("adapter_learning_rate", 2e-4, 5e-3, 1e-3, log=True, summary="adapters; as for LoRA")


def _adapter(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    adapters = Adapters(
        placement=space.choice(chooser, ADAPTER_PLACEMENT), reduction=space.choice(chooser, ADAPTER_REDUCTION)
    )
    return (AdapterTuning(optimisation=space.optimisation(chooser, ADAPTER_LEARNING_RATE, EPOCHS), adapters=adapters),)


def _shapes(space: Space) -> tuple[Shape, ...]:
    options = product(space.options(ADAPTER_PLACEMENT), space.options(ADAPTER_REDUCTION))
    every = [Adapters.model_validate({"placement": placement, "reduction": by}) for placement, by in options]
    return tuple(space.reference.model_copy(update={"adapters": adapters}) for adapters in every)


ADAPTER = Strategy(
    name="adapter",
    summary="train bottleneck adapters in the frozen base; they stay in the deployed model",
    build=_adapter,
    parameters=(ADAPTER_PLACEMENT, ADAPTER_REDUCTION, ADAPTER_LEARNING_RATE, EPOCHS),
    student=False,
    kinds=("classification", "generation"),
    shapes=_shapes,
)
