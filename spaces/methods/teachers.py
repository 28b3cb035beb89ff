"""Who teaches: the base, or the model that the user names, fine-tuned on the task by one of a few recipes."""

from spaces.choosers import Chooser
from spaces.methods.finetune import Finetune
from spaces.space import Space
from spaces.stages import Chain, Optimisation, Stage


def recipe(space: Space, chooser: Chooser) -> Optimisation:
    """One of the ways to fine-tune a teacher, as picked."""
    return space.teacher_recipes[str(chooser.categorical("teacher", tuple(space.teacher_recipes)))]


def expert(space: Space, chooser: Chooser) -> Chain:
    """A teacher: a model fine-tuned in full on the task by a picked recipe."""
    stage = Finetune(optimisation=recipe(space, chooser))
    return Chain(base=space.teacher_base or space.base, stages=(stage,))


def student_start(space: Space, teacher: Chain) -> tuple[Stage, ...]:
    """Where a student begins: at the expert itself, or at the base where another model teaches."""
    return teacher.stages if teacher.base == space.base else ()
