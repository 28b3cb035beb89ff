"""In-context tuning: a student learns to answer behind demonstrations, rows with their responses, as a teacher does."""

from typing import Any, Literal

from pydantic import Field, model_validator

from spaces.canonical import Frozen
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA, DRAWN_TEMPERATURE, TEMPERATURE, pick_temperature
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE
from spaces.methods.teachers import recipe
from spaces.ranges import Choice, Range
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Chain, Optimisation, Stage, Taught, Training
from spaces.strategy import Strategy


class Episodes(Frozen):
    """Which demonstrations stand before which rows of train, those with the same prompt never among them.

    ``multitask``: any rows. ``meta``: each episode is a small task of its own, a few labels (distinct responses), of
    which the row's is one; demonstrations are rows of these, as many of each as can be. [Huang2022] [Min2022]
    """

    mode: Literal["multitask", "meta"]
    num_demonstrations: int = Field(ge=1)
    """Rows that stand before each prompt: k."""
    num_episodes: int = Field(default=1, ge=1)
    """Episodes of each row."""
    unseen_labels: float = Field(default=0.0, ge=0, le=1)
    """``meta``: share of the labels that no episode has, two or more; the trained model is asked about them."""

    @model_validator(mode="after")
    def _meta_compares_labels(self) -> "Episodes":
        if self.mode == "meta" and self.num_demonstrations < 2:
            raise ValueError("mode meta shows two labels or more, so `num_demonstrations` must be 2 or more, but got 1")
        if self.mode == "multitask" and self.unseen_labels > 0:
            raise ValueError(f"mode meta alone keeps labels unseen, but got multitask and {self.unseen_labels=}")
        return self


class InContext(Training):
    """A stage that trains on episodes; its model is asked behind demonstrations, always the same."""

    episodes: Episodes
    prompt_weight: float = Field(default=0.0, ge=0)
    """Weight of the language-model loss, over all of the prompt: beta."""

    @property
    def passes(self) -> float:
        return self.optimisation.epochs * self.episodes.num_episodes

    @property
    def num_shots(self) -> int:
        return self.episodes.num_demonstrations

    def reshape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"num_shots": self.num_shots})

    def _say_episodes(self) -> str:
        labels = ", few labels at a time" if self.episodes.mode == "meta" else ""
        return f"behind {self.num_shots} demonstrations{labels}"


class TuneInContext(InContext):
    """Train on gold responses behind demonstrations, CE + beta CE of the prompt: how a teacher begins. [Min2022]"""

    carried_out_by = "trainers.distill_in_context:tune_in_context"

    kind: Literal["tune_in_context"] = "tune_in_context"

    def say(self) -> str:
        return f"fine-tune {self._say_episodes()} ({self.optimisation.say()})"


class DistillInContext(InContext, Taught):
    """Train on a teacher's distribution for the same prompts: L_response + beta L_prompt, each of them
    alpha T² KL(teacher ‖ student) + (1 - alpha) CE. [Huang2022]
    """

    carried_out_by = "trainers.distill_in_context:distill_in_context"

    kind: Literal["distill_in_context"] = "distill_in_context"
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the soft loss."""
    num_draws: int | None = Field(default=None, ge=1)
    """As in ``Distill``."""

    @model_validator(mode="after")
    def _teacher_knows_the_episodes(self) -> "DistillInContext":
        stage = self.teacher.last_training
        if not isinstance(stage, InContext) or stage.episodes != self.episodes:
            # Had it seen other ones, the student would hear of labels that it must not know.
            raise ValueError("the teacher must be tuned on the student's episodes: a chain that ends in the same ones")
        return self

    def say(self) -> str:
        loss = f"temperature {self.temperature:.3g}, soft weight {self.alpha:.2g}"
        whose = self.teacher.say_teacher()
        return f"distil {self._say_episodes()} from {whose} ({loss}, {self.optimisation.say()})"


NUM_DEMONSTRATIONS = Choice("num_demonstrations", (2, 4), summary="rows with responses before each prompt (in context)")
IN_CONTEXT_MODE = Choice(
    "in_context_mode",
    ("multitask", "meta"),
    summary="demonstrations of all rows, or of few labels at a time",
    needs={"meta": "labels"},
)
NUM_EPISODES = Range("num_episodes", 1, 4, 2, "integer", summary="of each row, with other demonstrations (in context)")
UNSEEN_LABELS = Range("unseen_labels", 0.2, 0.2, 0.2, share=True, summary="labels kept for the unseen test (meta)")
PROMPT_WEIGHT = Choice("prompt_weight", (0, 0.2), summary="of the language-model loss over prompts (in context)")


def _distill_in_context(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    begin, teacher_recipe = cut(space, chooser), recipe(space, chooser)
    shared: dict[str, Any] = {
        "episodes": _episodes(space, chooser),
        "prompt_weight": float(space.choice(chooser, PROMPT_WEIGHT)),
    }
    stage = DistillInContext(
        teacher=_expert(space, teacher_recipe, shared),
        temperature=pick_temperature(space, chooser),
        alpha=space.real(chooser, ALPHA),
        num_draws=space.num_draws,
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
        **shared,
    )
    return (*begin, stage)


def _episodes(space: Space, chooser: Chooser) -> Episodes:
    mode: Any = space.choice(chooser, IN_CONTEXT_MODE)
    return Episodes(
        mode=mode,
        num_demonstrations=space.choice(chooser, NUM_DEMONSTRATIONS),
        num_episodes=space.integer(chooser, NUM_EPISODES),
        unseen_labels=space.real(chooser, UNSEEN_LABELS) if mode == "meta" else 0.0,
    )


def _expert(space: Space, optimisation: Optimisation, shared: dict[str, Any]) -> Chain:
    return Chain(base=space.teacher_base or space.base, stages=(TuneInContext(optimisation=optimisation, **shared),))


def _shapes(space: Space) -> tuple[Shape, ...]:
    sizes, shots = space.student_shapes, space.options(NUM_DEMONSTRATIONS)
    return tuple(size.model_copy(update={"num_shots": count}) for count in shots for size in sizes)


DISTILL_IN_CONTEXT = Strategy(
    name="distill_in_context",
    summary="student cut from the base, trained behind demonstrations on responses and on an expert's answers there",
    build=_distill_in_context,
    parameters=(
        IN_CONTEXT_MODE,
        NUM_DEMONSTRATIONS,
        NUM_EPISODES,
        UNSEEN_LABELS,
        PROMPT_WEIGHT,
        ALPHA,
        TEMPERATURE,
        DRAWN_TEMPERATURE,
        STUDENT_LEARNING_RATE,
        EPOCHS,
    ),
    kinds=("generation",),
    needs=("teacher",),
    shapes=_shapes,
)
