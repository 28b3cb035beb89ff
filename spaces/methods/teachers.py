"""Who teaches: the base, or the model that the user names, fine-tuned on the task by one of a few recipes."""

from spaces.choosers import Chooser
from spaces.methods.finetune import Finetune
from spaces.space import Space
from spaces.stages import Chain, Stage


def expert(space: Space, chooser: Chooser) -> Chain:
    """A teacher: a model fine-tuned in full on the task by a picked recipe."""
    recipe = str(chooser.categorical("teacher", tuple(space.teacher_recipes)))
    stage = Finetune(optimisation=space.teacher_recipes[recipe])
    return Chain(base=space.teacher_base or space.base, stages=(stage,))


def student_start(space: Space, teacher: Chain) -> tuple[Stage, ...]:
    """Where a student begins: at the expert itself, or at the base where another model teaches."""
    return teacher.stages if teacher.base == space.base else ()
