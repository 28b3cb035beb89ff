"""The space: what the user lets vary, and the parts that strategies build their plans from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spaces.choosers import Chooser
from spaces.plan import Plan, Shape
from spaces.stages import Chain, Finetune, Optimisation, SelectLayers, Stage


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, and its default. ``log``: spread evenly in its logarithm."""

    low: float
    high: float
    default: float
    kind: Literal["integer", "real"] = "real"
    log: bool = False
    summary: str = ""


PARAMETERS: dict[str, Range] = {
    "learning_rate": Range(2e-5, 3e-4, 1e-4, log=True, summary="full fine-tuning"),
    "lora_learning_rate": Range(3e-4, 5e-3, 1e-3, log=True, summary="LoRA; about ten times that of full"),
    "student_learning_rate": Range(5e-5, 6e-4, 2e-4, log=True, summary="students, fine-tuned or distilled"),
    "polish_learning_rate": Range(1e-5, 2e-4, 5e-5, log=True, summary="the fine-tune after a distillation"),
    "epochs": Range(2, 5, 3, "integer", summary="of the plan's main stage"),
    "polish_epochs": Range(1, 3, 1, "integer", summary="of the fine-tune after a distillation"),
    "lora_rank": Range(4, 64, 16, "integer", log=True, summary="rank of the low-rank adapters"),
    "temperature": Range(1.0, 8.0, 2.0, log=True, summary="softens teacher and student alike"),
    "alpha": Range(0.1, 1.0, 0.5, summary="weight of the soft loss"),
    "alpha_end": Range(0.0, 1.0, 0.3, summary="weight of the soft loss at the end (dft)"),
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """Everything that may be tried, resolved: models and data by fingerprint, ranges, sizes, strategies."""

    base: str
    """Fingerprint of the base model."""
    base_layers: int
    data: str
    seed: int
    strategies: tuple[str, ...]
    student_layers: tuple[int, ...]
    """Sizes of students, in layers."""
    ranges: Mapping[str, Range] = field(default_factory=lambda: dict(PARAMETERS))
    teacher_recipes: Mapping[str, Optimisation]
    """How a teacher may be fine-tuned, by name. Few, so that plans share a teacher; the first is the baseline."""
    teacher_base: str | None = None
    """Fingerprint of another model that teaches; None: the fine-tuned base teaches, and students start from it."""
    batch_size: int = 32

    def baseline(self) -> Plan:
        """The base model fine-tuned in full with the first teacher recipe: what `baseline` in a constraint means."""
        recipe = next(iter(self.teacher_recipes.values()))
        return self.plan((Finetune(optimisation=recipe),))

    def plan(self, stages: tuple[Stage, ...]) -> Plan:
        """``stages`` on this space's base, data and seed."""
        return Plan(base=self.base, stages=stages, data=self.data, seed=self.seed)

    def shape(self, num_layers: int) -> Shape:
        """The shape of a student of ``num_layers``."""
        return Shape(base=self.base, num_layers=None if num_layers == self.base_layers else num_layers)

    def shapes(self) -> list[Shape]:
        """Every shape that a plan of this space can end in, and the base itself (the reference), smallest first."""
        return [self.shape(k) for k in sorted({*self.student_layers, self.base_layers})]

    # What strategies are built from ---------------------------------------------------------------------------

    def real(self, chooser: Chooser, name: str) -> float:
        """Ask ``chooser`` for the number called ``name``, in this space's range."""
        span = self.ranges[name]
        return chooser.real(name, span.low, span.high, log=span.log)

    def integer(self, chooser: Chooser, name: str) -> int:
        """Ask ``chooser`` for the whole number called ``name``, in this space's range."""
        span = self.ranges[name]
        return chooser.integer(name, round(span.low), round(span.high), log=span.log)

    def optimisation(self, chooser: Chooser, rate: str, epochs: str = "epochs") -> Optimisation:
        """Learning rate and epochs as picked, the rest at its defaults."""
        return Optimisation(
            learning_rate=self.real(chooser, rate),
            epochs=self.integer(chooser, epochs),
            batch_size=self.batch_size,
        )

    def student_size(self, chooser: Chooser) -> int:
        """A number of layers for the student."""
        return int(chooser.categorical("student_layers", self.student_layers))

    def cut(self, num_layers: int) -> tuple[Stage, ...]:
        """The stage that leaves ``num_layers`` of the base's layers; nothing at full depth."""
        if num_layers == self.base_layers:
            return ()
        return (SelectLayers(layers=spread(self.base_layers, num_layers)),)

    def expert(self, chooser: Chooser) -> Chain:
        """A teacher: a model fine-tuned in full on the task by one of the recipes."""
        recipe = str(chooser.categorical("teacher", tuple(self.teacher_recipes)))
        return Chain(base=self.teacher_base or self.base, stages=(Finetune(optimisation=self.teacher_recipes[recipe]),))

    def student_start(self, teacher: Chain) -> tuple[Stage, ...]:
        """Where a student begins: at the expert itself, or at the base where another model teaches."""
        return teacher.stages if teacher.base == self.base else ()


def spread(total: int, kept: int) -> tuple[int, ...]:
    """``kept`` of ``total`` layers, evenly spaced, first and last included. [Sanh2019]: 6 of 12 are 0 2 4 7 9 11."""
    if not 1 <= kept <= total:
        raise ValueError(f"`1 <= kept <= total` must hold, but got ({kept=}, {total=})")
    if kept == 1:
        return (0,)
    return tuple((2 * i * (total - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept))
