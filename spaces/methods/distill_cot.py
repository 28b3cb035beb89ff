"""Chain of thought: a student learns from rationales, as a second task or as what it writes before each response."""

from typing import Any, Literal

from pydantic import Field, model_validator

from spaces.canonical import Frozen
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import recipe
from spaces.ranges import Choice, Range
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Chain, Stage, Training
from spaces.strategy import Strategy

Mode = Literal["multitask", "generate"]

PREDICT = "predict:"
EXPLAIN = "explain:"


class Written(Frozen):
    """Rationales that a teacher writes to the training rows; those that lead to the right response are kept."""

    teacher: Chain
    """Ends in a ``DistillCot`` that writes rationales."""
    num_samples: int = Field(ge=1)
    """Texts that are drawn for a row. [Li2023]"""
    temperature: float = Field(default=0.7, gt=0)

    @model_validator(mode="after")
    def _teacher_reasons(self) -> "Written":
        stage = self.teacher.last_training
        if stage is None or not stage.reasons:
            raise ValueError("the teacher must have learnt to write rationales: a chain that ends in mode generate")
        return self


class DistillCot(Training):
    """Train on responses and rationales.

    ``multitask``: two tasks, told apart by a prefix: ``predict:`` is followed by the response, ``explain:`` by the
    rationale; alpha L_response + (1 - alpha) L_rationale. Only ``predict:`` is served. [Hsieh2023]
    ``generate``: rationale and then response, both written when served. [Ho2023]
    """

    carried_out_by = "trainers.distill_cot:distill_cot"

    kind: Literal["distill_cot"] = "distill_cot"
    mode: Mode
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of the responses; of ``multitask`` alone."""
    written: Written | None = None
    """Whose rationales; None: the data's own."""

    @model_validator(mode="after")
    def _alpha_of_mode(self) -> "DistillCot":
        if (self.alpha is None) is (self.mode == "multitask"):
            raise ValueError(f"mode multitask alone takes alpha, and needs it, but got ({self.mode=}, {self.alpha=})")
        return self

    @property
    def teachers(self) -> tuple[Chain, ...]:
        return (self.written.teacher,) if self.written else ()

    @property
    def passes(self) -> float:
        num_rows = self.written.num_samples if self.written else 1
        return self.optimisation.epochs * (num_rows + (self.mode == "multitask"))

    @property
    def prefix(self) -> str:
        return PREDICT if self.mode == "multitask" else ""

    @property
    def reasons(self) -> bool:
        return self.mode == "generate"

    def reshape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"reasons": self.reasons})

    def say(self) -> str:
        whose = self.written.teacher.say_teacher() if self.written else "the data"
        if self.mode == "generate":
            return f"learn to write rationales of {whose}, then responses ({self.optimisation.say()})"
        weight = f"weight of responses {self.alpha:.2g}"
        return f"learn responses, and rationales of {whose} as a second task ({weight}, {self.optimisation.say()})"


COT_MODE = Choice(
    "cot_mode",
    ("generate", "multitask"),
    summary="rationales as a second task, or written before each response",
    needs={"generate": "texts"},
)
RATIONALES = Choice(
    "rationales",
    ("data", "teacher"),
    summary="the data's own, or right ones that an expert writes",
    needs={"teacher": "texts"},
)
NUM_RATIONALES = Range("num_rationales", 1, 4, 2, "integer", summary="texts that the expert writes to a row")
RESPONSE_WEIGHT = Range("response_weight", 0.2, 0.8, 0.5, share=True, summary="responses against rationales, multitask")


def _distill_cot(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    begin = cut(space, chooser)
    mode: Any = space.choice(chooser, COT_MODE)
    stage = DistillCot(
        mode=mode,
        alpha=space.real(chooser, RESPONSE_WEIGHT) if mode == "multitask" else None,
        written=_written(space, chooser) if space.choice(chooser, RATIONALES) == "teacher" else None,
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
    )
    return (*begin, stage)


def _written(space: Space, chooser: Chooser) -> Written:
    expert = DistillCot(mode="generate", optimisation=recipe(space, chooser))
    return Written(
        teacher=Chain(base=space.teacher_base or space.base, stages=(expert,)),
        num_samples=space.integer(chooser, NUM_RATIONALES),
    )


def _shapes(space: Space) -> tuple[Shape, ...]:
    sizes, modes = space.student_shapes, space.options(COT_MODE)
    return tuple(size.model_copy(update={"reasons": mode == "generate"}) for mode in modes for size in sizes)


DISTILL_COT = Strategy(
    name="distill_cot",
    summary="student cut from the base, trained on responses and on the rationales that lead to them",
    build=_distill_cot,
    parameters=(COT_MODE, RESPONSE_WEIGHT, RATIONALES, NUM_RATIONALES, STUDENT_LEARNING_RATE, EPOCHS),
    kinds=("generation",),
    needs=("rationales",),
    shapes=_shapes,
)
