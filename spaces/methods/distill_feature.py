"""Feature alignment: a student first made alike to its teacher inside, then taught by the teacher's answers."""

from typing import Literal

from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA, DRAWN_TEMPERATURE, TEMPERATURE, distill_stage
from spaces.methods.features import RELATION_HEADS, Feature, pick_feature
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import expert, from_expert
from spaces.ranges import Choice, Range
from spaces.space import Space
from spaces.stages import Chain, Stage, Taught
from spaces.strategy import Strategy


class DistillFeature(Taught):
    """Train on a teacher's features alone; the head learns nothing here. [Jiao2020] § 3.1, [Wang2021] § 3."""

    carried_out_by = "trainers.distill_feature:distill_feature"

    kind: Literal["distill_feature"] = "distill_feature"
    teacher: Chain
    """The model whose features teach. It may be wider, narrower or of another family, but reads the same tokens."""
    feature: Feature

    def say(self) -> str:
        return f"align {self.feature.say()} with {self.teacher.say_teacher()} ({self.optimisation.say()})"


FEATURE = Choice("feature", ("hidden", "attention", "relation"), summary="what is aligned with the teacher")
FEATURE_LEARNING_RATE = Range("feature_learning_rate", 1e-4, 2e-3, 5e-4, log=True, summary="of the alignment")
FEATURE_EPOCHS = Range("feature_epochs", 1, 5, 2, "integer", summary="of the alignment")


def _distill_feature(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    """Features, then answers: the two steps of [Jiao2020]'s task distillation.

    Differs from the paper: the student begins with layers of the teacher where that is the fine-tuned base; one kind of
    feature at a time; gold labels stand beside the soft ones in the second step. Differs from [Wang2021]: its student
    is then fine-tuned on gold labels alone.
    """
    teacher, begin = expert(space, chooser), cut(space, chooser)
    align = DistillFeature(
        optimisation=space.optimisation(chooser, FEATURE_LEARNING_RATE, FEATURE_EPOCHS),
        teacher=teacher,
        feature=pick_feature(space, chooser, space.choice(chooser, FEATURE)),
    )
    alpha = space.real(chooser, ALPHA)
    answers = distill_stage(space, chooser, teacher, alpha=alpha, alpha_end=alpha)
    return (*from_expert(space, teacher, begin), align, answers)


DISTILL_FEATURE = Strategy(
    name="distill_feature",
    summary="student cut from the expert, aligned with it inside, then taught by its soft labels",
    build=_distill_feature,
    parameters=(
        FEATURE,
        RELATION_HEADS,
        FEATURE_LEARNING_RATE,
        FEATURE_EPOCHS,
        ALPHA,
        TEMPERATURE,
        DRAWN_TEMPERATURE,
        STUDENT_LEARNING_RATE,
        EPOCHS,
    ),
    kinds=("classification", "generation"),
    needs=("teacher", "same_tokens"),
)
