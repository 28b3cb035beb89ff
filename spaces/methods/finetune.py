"""Training on the gold labels: all weights, low-rank adapters, or a student directly."""

from typing import Annotated, Literal

from pydantic import Field

from spaces.canonical import LATER, Frozen
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.plan import Plan
from spaces.ranges import Choice, Range
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Stage, Training
from spaces.strategy import Strategy

LoraTarget = Literal["all", "attention", "mlp"]


class Lora(Frozen):
    """Low-rank adaptation, ΔW = (alpha / rank) B A with B = 0 at the start. [Hu2021] Eq. 3."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target: LoraTarget = "all"
    """Which linear layers carry an adapter: all of them, or those of attention or of the feed-forward blocks only."""
    rank_stabilised: Annotated[bool, LATER] = False
    """alpha / √rank in the place of alpha / rank. [Kalajdzievski2023]"""
    decomposed: Annotated[bool, LATER] = False
    """Direction by the adapter, magnitude by a vector of its own (DoRA). [Liu2024]"""

    def say(self) -> str:
        """In words."""
        name = "DoRA" if self.decomposed else "rsLoRA" if self.rank_stabilised else "LoRA"
        where = "" if self.target == "all" else f" on {self.target}"
        return f"{name} rank {self.rank}{where}"

    def reshape(self, shape: Shape) -> Shape:
        """The shape once it is merged. Raises ``ValueError`` where it cannot be."""
        if shape.adapters:
            # Merged into a layer, an update would pass through the adapter behind it; in training it did not.
            raise ValueError(
                f"{self.say()} cannot be merged into a model with {shape.adapters.say()}; "
                "fine-tune all its weights, or begin at a model without"
            )
        return shape


class Finetune(Training):
    """Train on the gold labels; with ``lora``, only adapters and the head, merged into the weights at the end."""

    carried_out_by = "trainers.finetune:finetune"

    kind: Literal["finetune"] = "finetune"
    lora: Lora | None = None

    def reshape(self, shape: Shape) -> Shape:
        return self.lora.reshape(shape) if self.lora else shape

    def say(self) -> str:
        how = f"{self.lora.say()}, " if self.lora else ""
        return f"fine-tune ({how}{self.optimisation.say()})"


EPOCHS = Range("epochs", 2, 5, 3, "integer", summary="of the plan's main stage")
LEARNING_RATE = Range("learning_rate", 2e-5, 3e-4, 1e-4, log=True, summary="full fine-tuning")
STUDENT_LEARNING_RATE = Range(
    "student_learning_rate", 5e-5, 6e-4, 2e-4, log=True, summary="students, fine-tuned or distilled"
)
LORA_LEARNING_RATE = Range(
    "lora_learning_rate", 3e-4, 5e-3, 1e-3, log=True, summary="LoRA; about ten times that of full"
)
LORA_RANK = Range("lora_rank", 4, 64, 16, "integer", log=True, summary="rank of the low-rank adapters")
LORA_ALPHA = Range("lora_alpha", 1, 4, 2, log=True, summary="alpha of the adapters, in ranks")
LORA_TARGET = Choice("lora_target", ("all", "attention", "mlp"), summary="layers that carry an adapter")
LORA_VARIANT = Choice("lora_variant", ("lora", "rslora", "dora"), summary="scaled by rank, by its root, or DoRA")


def baseline(space: Space) -> Plan:
    """The base fine-tuned in full with the first teacher recipe: what `baseline` in a constraint means."""
    recipe = next(iter(space.teacher_recipes.values()))
    return space.plan((Finetune(optimisation=recipe),))


def _full(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    return (Finetune(optimisation=space.optimisation(chooser, LEARNING_RATE, EPOCHS)),)


def pick_lora(space: Space, chooser: Chooser, *, plain: bool = False) -> Lora:
    """Rank, alpha, target and, unless it is to be ``plain``, variant as picked."""
    rank = space.integer(chooser, LORA_RANK)
    variant = "lora" if plain else space.choice(chooser, LORA_VARIANT)
    return Lora(
        rank=rank,
        alpha=float(f"{rank * space.real(chooser, LORA_ALPHA):.3g}"),
        target=space.choice(chooser, LORA_TARGET),
        rank_stabilised=variant == "rslora",
        decomposed=variant == "dora",
    )


def _lora(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    lora = pick_lora(space, chooser)
    return (Finetune(optimisation=space.optimisation(chooser, LORA_LEARNING_RATE, EPOCHS), lora=lora),)


def _small_finetune(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    return (*cut(space, chooser), Finetune(optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS)))


FULL = Strategy(
    name="full",
    summary="fine-tune all weights at the base's size",
    build=_full,
    parameters=(LEARNING_RATE, EPOCHS),
    student=False,
    kinds=("classification", "generation"),
)
LORA = Strategy(
    name="lora",
    summary="fine-tune low-rank adapters at the base's size, merged",
    build=_lora,
    parameters=(LORA_RANK, LORA_ALPHA, LORA_TARGET, LORA_VARIANT, LORA_LEARNING_RATE, EPOCHS),
    student=False,
    kinds=("classification", "generation"),
)
SMALL_FINETUNE = Strategy(
    name="small_finetune",
    summary="fine-tune a smaller student directly",
    build=_small_finetune,
    parameters=(STUDENT_LEARNING_RATE, EPOCHS),
    kinds=("classification", "generation"),
)
