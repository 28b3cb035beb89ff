"""Quantised distillation: a trained student learns to answer like its teacher while computing in int8."""

from typing import Annotated, Literal

from pydantic import Field

from spaces.canonical import LATER
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA, DRAWN_TEMPERATURE, TEMPERATURE, distill_stage
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import expert, from_expert
from spaces.ranges import Range
from spaces.space import Space
from spaces.stages import Stage, Taught
from spaces.strategy import Strategy


class QuantizedDistill(Taught):
    """Train with the arithmetic of int8 serving on T² KL(teacher ‖ student); the teacher computes in full precision.

    [Liu2023], [NVIDIA2025]: full precision first, then the divergence alone at a small rate.
    Differs from the papers: the quantiser is that of what is deployed: ONNX Runtime's dynamic int8 or, for a model that
    writes, torch's int8 weights with bfloat16 values.
    """

    carried_out_by = "trainers.quantized_distill:quantized_distill"

    kind: Literal["quantized_distill"] = "quantized_distill"
    temperature: float = Field(gt=0)
    num_draws: Annotated[int | None, LATER, Field(ge=1)] = None
    """As in ``Distill``."""

    def say(self) -> str:
        loss = f"temperature {self.temperature:.3g}"
        return f"distil in int8 from {self.teacher.say_teacher()} ({loss}, {self.optimisation.say()})"


QUANTIZED_LEARNING_RATE = Range(
    "quantized_learning_rate", 5e-6, 1e-4, 3e-5, log=True, summary="the distillation in int8"
)
QUANTIZED_EPOCHS = Range("quantized_epochs", 1, 3, 1, "integer", summary="of the distillation in int8")


def _quantized_distill(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    alpha = space.real(chooser, ALPHA)
    full = distill_stage(space, chooser, teacher, alpha=alpha, alpha_end=alpha)
    quantized = QuantizedDistill(
        optimisation=space.optimisation(chooser, QUANTIZED_LEARNING_RATE, QUANTIZED_EPOCHS),
        teacher=teacher,
        temperature=full.temperature,
        num_draws=full.num_draws,
    )
    return (*from_expert(space, teacher, begin), full, quantized)


QUANTIZED_DISTILL = Strategy(
    name="quantized_distill",
    summary="as finetune_then_distill, then once more with the arithmetic of int8 serving",
    build=_quantized_distill,
    parameters=(
        ALPHA,
        TEMPERATURE,
        DRAWN_TEMPERATURE,
        STUDENT_LEARNING_RATE,
        EPOCHS,
        QUANTIZED_LEARNING_RATE,
        QUANTIZED_EPOCHS,
    ),
    kinds=("classification", "generation"),
    needs=("teacher", "int8"),
)
