"""The catalogue: every strategy by name, and the chain of stages that it stands for.

A new strategy is a function here that picks its settings through the chooser, and a line in ``CATALOGUE``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from spaces.choosers import Chooser
from spaces.space import Space
from spaces.stages import Chain, Distill, Finetune, Lora, Stage

Build = Callable[[Space, Chooser], tuple[Stage, ...]]


@dataclass(frozen=True)
class Strategy:
    """A named shape of plan."""

    name: str
    summary: str
    build: Build
    student: bool = True
    """Whether it ends in a student of a searched size, not in a model of the base's size."""


def _full(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    return (Finetune(optimisation=space.optimisation(chooser, "learning_rate")),)


def _lora(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    rank = space.integer(chooser, "lora_rank")
    optimisation = space.optimisation(chooser, "lora_learning_rate")
    return (Finetune(optimisation=optimisation, lora=Lora(rank=rank, alpha=2 * rank)),)


def _small_finetune(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    cut = space.cut(space.student_size(chooser))
    return (*cut, Finetune(optimisation=space.optimisation(chooser, "student_learning_rate")))


def _distill_soft(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher = space.expert(chooser)
    cut = space.cut(space.student_size(chooser))
    alpha = space.real(chooser, "alpha")
    return (*space.student_start(teacher), *cut, _distill(space, chooser, teacher, alpha=alpha, alpha_end=alpha))


def _distill_then_finetune(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher = space.expert(chooser)
    cut = space.cut(space.student_size(chooser))
    distill = _distill(space, chooser, teacher, alpha=1.0, alpha_end=1.0)
    polish = Finetune(optimisation=space.optimisation(chooser, "polish_learning_rate", "polish_epochs"))
    return (*space.student_start(teacher), *cut, distill, polish)


def _dft(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    teacher = space.expert(chooser)
    cut = space.cut(space.student_size(chooser))
    alpha, alpha_end = space.real(chooser, "alpha"), space.real(chooser, "alpha_end")
    return (*cut, _distill(space, chooser, teacher, alpha=alpha, alpha_end=alpha_end))


def _distill(space: Space, chooser: Chooser, teacher: Chain, *, alpha: float, alpha_end: float) -> Distill:
    return Distill(
        optimisation=space.optimisation(chooser, "student_learning_rate"),
        teacher=teacher,
        temperature=space.real(chooser, "temperature"),
        alpha=alpha,
        alpha_end=alpha_end,
    )


CATALOGUE: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("full", "fine-tune all weights at the base's size", _full, student=False),
        Strategy("lora", "fine-tune low-rank adapters at the base's size, merged", _lora, student=False),
        Strategy("small_finetune", "fine-tune a student of fewer layers directly", _small_finetune),
        Strategy("distill_soft", "student cut from the expert, taught by its soft labels", _distill_soft),
        Strategy(
            "distill_then_finetune",
            "student cut from the expert, soft labels alone, then gold labels",
            _distill_then_finetune,
        ),
        Strategy("dft", "student cut from the base, gold and soft labels in one stage, weight moving", _dft),
    )
}
