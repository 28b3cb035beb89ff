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


def from_expert(space: Space, teacher: Chain, begin: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """How a student begins that is cut from the expert itself: its training, then ``begin``. That alone where student
    and teacher come from different models.
    """
    apart = teacher.base != space.base or any(stage.start is not None for stage in begin)
    return begin if apart else (*teacher.stages, *begin)
