"""Soft labels: a student trained on a teacher's distribution, alone or beside the gold labels."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spaces.canonical import LATER
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.features import RELATION_HEADS, Feature, pick_feature
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE, Finetune
from spaces.methods.teachers import expert, from_expert
from spaces.ranges import Choice, Range
from spaces.space import Space
from spaces.stages import Chain, Stage, Taught
from spaces.strategy import Strategy


class Distill(Taught):
    """Train on a teacher's distribution: alpha T² KL(teacher ‖ student) + (1 - alpha) CE. [Hinton2015] § 2.

    With ``feature``, gamma times the loss of that feature is added.
    """

    carried_out_by = "trainers.distill:distill"

    kind: Literal["distill"] = "distill"
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the soft loss at the first step."""
    alpha_end: float = Field(ge=0, le=1)
    """Weight of the soft loss at the last step; moves linearly. Equal to ``alpha``: it stays."""
    feature: Annotated[Feature | None, LATER] = None
    """What is taken over from inside the teacher as well."""
    gamma: Annotated[float, LATER, Field(ge=0)] = 0.0
    """Weight of the feature's loss."""
    num_draws: Annotated[int | None, LATER, Field(ge=1)] = None
    """Draws from the teacher's distribution that are kept of each position [Anshumann2025]; None: all of it."""

    @model_validator(mode="after")
    def _feature_has_a_weight(self) -> "Distill":
        if (self.feature is not None) is not (self.gamma > 0):
            raise ValueError(f"`feature` and a `gamma` above 0 come together, but got {self.feature!r}, {self.gamma}")
        return self

    def say(self) -> str:
        moving = "" if self.alpha == self.alpha_end else f" to {self.alpha_end:.2g}"
        inside = f", {self.feature.say()} weight {self.gamma:.2g}" if self.feature else ""
        kept = f", {self.num_draws} draws a token" if self.num_draws else ""
        loss = f"temperature {self.temperature:.3g}, soft weight {self.alpha:.2g}{moving}{inside}{kept}"
        return f"distil from {self.teacher.say_teacher()} ({loss}, {self.optimisation.say()})"


TEMPERATURE = Range("temperature", 1.0, 8.0, 2.0, log=True, summary="softens teacher and student alike")
DRAWN_TEMPERATURE = Choice(
    "drawn_temperature",
    (1, 2, 4),
    summary="in the place of temperature where draws of a teacher's answers are kept (large vocabularies)",
    need="writes",
)
ALPHA = Range("alpha", 0.1, 1.0, 0.5, share=True, summary="weight of the soft loss")
ALPHA_END = Range("alpha_end", 0.0, 1.0, 0.3, share=True, summary="weight of the soft loss at the end (dft)")
DFT_FEATURE = Choice(
    "dft_feature",
    ("none", "hidden", "relation"),
    summary="feature loss beside the labels (dft)",
    needs=dict.fromkeys(("hidden", "relation"), "same_tokens"),
)
GAMMA = Range("gamma", 0.1, 10, 1, log=True, summary="weight of the feature loss (dft)")
POLISH_LEARNING_RATE = Range(
    "polish_learning_rate", 1e-5, 2e-4, 5e-5, log=True, summary="the fine-tune after a distillation"
)
POLISH_EPOCHS = Range("polish_epochs", 1, 3, 1, "integer", summary="of the fine-tune after a distillation")
_DISTILL = (TEMPERATURE, DRAWN_TEMPERATURE, STUDENT_LEARNING_RATE, EPOCHS)


def _distill_soft(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    alpha = space.real(chooser, ALPHA)
    return (*begin, distill_stage(space, chooser, teacher, alpha=alpha, alpha_end=alpha))


def _finetune_then_distill(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    alpha = space.real(chooser, ALPHA)
    distill = distill_stage(space, chooser, teacher, alpha=alpha, alpha_end=alpha)
    return (*from_expert(space, teacher, begin), distill)


def _distill_then_finetune(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    distill = distill_stage(space, chooser, teacher, alpha=1.0, alpha_end=1.0)
    polish = Finetune(optimisation=space.optimisation(chooser, POLISH_LEARNING_RATE, POLISH_EPOCHS))
    return (*from_expert(space, teacher, begin), distill, polish)


def _dft(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher, begin = expert(space, chooser), cut(space, chooser)
    alpha, alpha_end = space.real(chooser, ALPHA), space.real(chooser, ALPHA_END)
    stage = distill_stage(space, chooser, teacher, alpha=alpha, alpha_end=alpha_end)
    kind = space.choice(chooser, DFT_FEATURE)
    if kind == "none":
        return (*begin, stage)
    feature = pick_feature(space, chooser, kind)
    return (*begin, stage.model_copy(update={"feature": feature, "gamma": space.real(chooser, GAMMA)}))


def distill_stage(space: Space, chooser: Chooser, teacher: Chain, *, alpha: float, alpha_end: float) -> Distill:
    """Soft labels of ``teacher`` at a picked temperature and rate."""
    return Distill(
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
        teacher=teacher,
        temperature=pick_temperature(space, chooser),
        alpha=alpha,
        alpha_end=alpha_end,
        num_draws=space.num_draws,
    )


def pick_temperature(space: Space, chooser: Chooser) -> float:
    """One of a few where draws are kept: each has its own, and students are to share them."""
    if space.num_draws is None:
        return space.real(chooser, TEMPERATURE)
    return float(space.choice(chooser, DRAWN_TEMPERATURE))


DISTILL_SOFT = Strategy(
    name="distill_soft",
    summary="student cut from the base, taught by the expert's soft labels and the gold ones",
    build=_distill_soft,
    parameters=(ALPHA, *_DISTILL),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
FINETUNE_THEN_DISTILL = Strategy(
    name="finetune_then_distill",
    summary="student cut from the expert itself, then taught by its soft labels",
    build=_finetune_then_distill,
    parameters=(ALPHA, *_DISTILL),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
DISTILL_THEN_FINETUNE = Strategy(
    name="distill_then_finetune",
    summary="student cut from the expert, soft labels alone, then gold labels",
    build=_distill_then_finetune,
    parameters=(*_DISTILL, POLISH_LEARNING_RATE, POLISH_EPOCHS),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
DFT = Strategy(
    name="dft",
    summary="student cut from the base, gold and soft labels in one stage, weight moving; features too if wanted",
    build=_dft,
    parameters=(ALPHA, ALPHA_END, *_DISTILL, DFT_FEATURE, RELATION_HEADS, GAMMA),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
