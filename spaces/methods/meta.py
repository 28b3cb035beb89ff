"""Meta-distillation: a teacher that goes on learning, from what its student makes of a quiz."""

from typing import Literal

from pydantic import Field

from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA, TEMPERATURE
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import expert
from spaces.ranges import Range
from spaces.space import Space
from spaces.stages import Chain, Stage, Taught
from spaces.strategy import Strategy

_QUIZ_SHARE = 0.1


class MetaDistill(Taught):
    """Train on a teacher that is itself trained to teach: at each step a pilot of the student learns a batch from it by
    one step of gradient descent, the teacher follows the gradient of the pilot's loss on a quiz batch, and only then
    the student itself learns the batch from the new teacher. [Zhou2022] Algorithm 1.
    """

    carried_out_by = "trainers.meta:meta_distill"

    kind: Literal["meta_distill"] = "meta_distill"
    teacher: Chain
    """The model that the teacher begins as."""
    teacher_learning_rate: float = Field(ge=0)
    """Peak rate of the teacher's own training, which rises and falls as the student's does. 0: it stays as it is."""
    quiz_share: float = Field(gt=0, lt=1)
    """Share of the training rows that the student never learns from; they make the quiz."""
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the soft loss."""

    @property
    def passes(self) -> float:
        # Measured, 6 layers teaching 2: 9.8 times the processor time of a step of distillation from kept outputs.
        return 9.8 * (1 - self.quiz_share) * self.optimisation.epochs

    def say(self) -> str:
        loss = f"temperature {self.temperature:.3g}, soft weight {self.alpha:.2g}"
        return f"distil from {self.teacher.say_teacher()} that goes on learning ({loss}, {self.optimisation.say()})"


META_LEARNING_RATE = Range(
    "meta_learning_rate", 1e-6, 5e-5, 1e-5, log=True, summary="of the teacher that goes on learning (meta_distill)"
)


def _meta_distill(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    stage = MetaDistill(
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
        teacher=teacher,
        teacher_learning_rate=space.real(chooser, META_LEARNING_RATE),
        quiz_share=_QUIZ_SHARE,
        temperature=space.real(chooser, TEMPERATURE),
        alpha=space.real(chooser, ALPHA),
    )
    return (*begin, stage)


META_DISTILL = Strategy(
    name="meta_distill",
    summary="student cut from the base, taught by an expert that learns to teach from the student's quizzes",
    build=_meta_distill,
    parameters=(META_LEARNING_RATE, ALPHA, TEMPERATURE, STUDENT_LEARNING_RATE, EPOCHS),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
