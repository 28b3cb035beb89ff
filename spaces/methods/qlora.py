"""QLoRA: low-rank adapters over a frozen base in four bits."""

from typing import Literal

from spaces.choosers import Chooser
from spaces.methods.finetune import (
    EPOCHS,
    LORA_ALPHA,
    LORA_LEARNING_RATE,
    LORA_RANK,
    LORA_TARGET,
    Lora,
    pick_lora,
)
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage, Training
from spaces.strategy import Strategy


class Qlora(Training):
    """Keep the base's matrices as NF4 with double quantisation while adapters are trained beside them. [Dettmers2023]

    The adapters are merged into the dequantised base; how that is packed for serving is a matter of its precision.
    """

    carried_out_by = "trainers.qlora:qlora"

    kind: Literal["qlora"] = "qlora"
    lora: Lora

    def reshape(self, shape: Shape) -> Shape:
        return self.lora.reshape(shape)

    def say(self) -> str:
        return f"fine-tune over a base in four bits ({self.lora.say()}, {self.optimisation.say()})"


def _qlora(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    lora = pick_lora(space, chooser, plain=True)
    return (Qlora(optimisation=space.optimisation(chooser, LORA_LEARNING_RATE, EPOCHS), lora=lora),)


QLORA = Strategy(
    name="qlora",
    summary="as lora, the frozen base kept in four bits while training",
    build=_qlora,
    parameters=(LORA_RANK, LORA_ALPHA, LORA_TARGET, LORA_LEARNING_RATE, EPOCHS),
    student=False,
    kinds=("generation",),
)
