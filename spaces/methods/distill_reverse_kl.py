"""Other divergences than the forward KL: from mass-covering to mode-seeking, and the skewed forms between."""

from typing import Annotated, Literal

from pydantic import Field

from spaces.canonical import LATER
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import expert
from spaces.ranges import Choice, Range
from spaces.space import Space
from spaces.stages import Stage, Taught
from spaces.strategy import Strategy

Divergence = Literal["jsd", "skewed_kl", "skewed_reverse_kl"]


class DistillDivergence(Taught):
    """Train on alpha T² D(teacher, student) + (1 - alpha) CE, where D is a divergence of the reverse family.

    Generation: on the student's own text the loss is T² D alone. [Agarwal2024] § 3
    """

    carried_out_by = "trainers.distill_divergence:distill_divergence"

    kind: Literal["distill_divergence"] = "distill_divergence"
    divergence: Divergence
    """Generalised Jensen–Shannon [Agarwal2024], or the forward or reverse KL to a mixture [Ko2024]."""
    mix: float = Field(ge=0, le=1)
    """jsd: beta, from 0 (forward KL) to 1 (reverse KL). Skewed: share of the first distribution in the second."""
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the divergence, where the responses are gold."""
    lmbda: Annotated[float, LATER, Field(ge=0, le=1)] = 0.0
    """Generation: share of the batches whose responses the student writes itself."""

    def say(self) -> str:
        names = {"jsd": "JSD, beta", "skewed_kl": "skewed KL", "skewed_reverse_kl": "skewed reverse KL"}
        loss = f"{names[self.divergence]} {self.mix:.2g}, temperature {self.temperature:.3g}, weight {self.alpha:.2g}"
        if self.lmbda:
            loss += f", {self.lmbda:.0%} of the text its own"
        return f"distil from {self.teacher.say_teacher()} ({loss}, {self.optimisation.say()})"


DIVERGENCE = Choice(
    "divergence", ("jsd", "skewed_kl", "skewed_reverse_kl"), summary="between forward and reverse KL, or skewed"
)
BETA = Range("beta", 0.0, 1.0, 0.5, share=True, summary="of jsd: 0 is the forward KL, 1 the reverse KL")
SKEW = Range("skew", 0.0, 0.5, 0.1, share=True, summary="share of one distribution in the other (skewed divergences)")
SOFTENING = Range("divergence_temperature", 1.0, 4.0, 1.0, log=True, summary="softens teacher and student alike")
LMBDA = Range(
    "lmbda", 0.0, 1.0, 0.5, share=True, need="writes", summary="share of batches whose text the student writes itself"
)


def _distill_reverse_kl(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    divergence = space.choice(chooser, DIVERGENCE)
    lmbda = space.real(chooser, LMBDA) if space.opens(LMBDA) else 0.0
    stage = DistillDivergence(
        teacher=teacher,
        divergence=divergence,
        mix=space.real(chooser, BETA if divergence == "jsd" else SKEW),
        # What a student draws is judged by the teacher's distribution as it is. Without gold text there is one loss.
        temperature=1.0 if lmbda else space.real(chooser, SOFTENING),
        alpha=1.0 if lmbda == 1 else space.real(chooser, ALPHA),
        lmbda=lmbda,
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
    )
    return (*begin, stage)


DISTILL_REVERSE_KL = Strategy(
    name="distill_reverse_kl",
    summary="student cut from the base, taught by a divergence that seeks the teacher's modes",
    build=_distill_reverse_kl,
    parameters=(DIVERGENCE, BETA, SKEW, LMBDA, SOFTENING, ALPHA, STUDENT_LEARNING_RATE, EPOCHS),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
