"""Pseudo-labels: a teacher answers what nobody has answered; the student learns from what it is sure of."""

from typing import Literal

from pydantic import Field

from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import expert
from spaces.ranges import Range
from spaces.space import Space
from spaces.stages import Stage, Taught
from spaces.strategy import Strategy


class PseudoLabel(Taught):
    """Train on the gold rows and on those unlabeled ones that the teacher is sure of, with its label [Lee2013], or with
    the response that it writes [Kim2016].

    The share of rows that is kept is reported with the trained model.
    """

    carried_out_by = "trainers.pseudo_label:pseudo_label"

    kind: Literal["pseudo_label"] = "pseudo_label"
    unlabeled: str = Field(min_length=1)
    """Fingerprint of the unlabeled rows."""
    confidence: float = Field(ge=0, le=1)
    """Least probability that the teacher gives its label, for a row to be kept; of a response the geometric mean of the
    probabilities of its tokens."""

    def say(self) -> str:
        labelled = f"unlabeled rows answered by {self.teacher.say_teacher()}, confidence {self.confidence:.2g} or more"
        return f"fine-tune on gold rows and {labelled} ({self.optimisation.say()})"


CONFIDENCE = Range("confidence", 0.3, 0.95, 0.7, share=True, summary="least confidence of an answer that is kept")


def _pseudo_label(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    assert space.unlabeled is not None, "the strategy needs unlabeled rows"
    teacher, begin = expert(space, chooser), cut(space, chooser)
    stage = PseudoLabel(
        teacher=teacher,
        unlabeled=space.unlabeled,
        confidence=space.real(chooser, CONFIDENCE),
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
    )
    return (*begin, stage)


PSEUDO_LABEL = Strategy(
    name="pseudo_label",
    summary="student cut from the base, fine-tuned on gold rows and on unlabeled ones that an expert answers",
    build=_pseudo_label,
    parameters=(CONFIDENCE, STUDENT_LEARNING_RATE, EPOCHS),
    kinds=("classification", "generation"),
    needs=("teacher", "unlabeled"),
)
