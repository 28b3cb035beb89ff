"""Students that are pretrained models of their own, as the spec lists them: found, checked, named."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from search.spec import Spec
from search.spec_errors import SpecError
from search.words import say_layers, say_list
from spaces.catalogue import CATALOGUE
from spaces.space import CUT, Space, Student
from trainers.kinds import Kind
from trainers.model_files import ModelError
from trainers.models import ModelInfo, layer_parameters
from trainers.width import check_width


def find_students(spec: Spec, kind: Kind, *, base: ModelInfo) -> list[ModelInfo]:
    """The models of ``model.students``, checked without loading their weights.

    Raises:
        ModelError: one is missing or cannot be handled.
        SpecError: one is the base, or another one again.
    """
    found: dict[str, ModelInfo] = {}
    for reference in spec.model.students or ():
        student = kind.inspect(reference)
        if same := {base.fingerprint: base, **found}.get(student.fingerprint):
            key = "base" if same is base else "students"
            raise SpecError(
                [f"model.students: found {reference}; it is the model in model.{key}, {same.reference}; leave it out"]
            )
        found[student.fingerprint] = student
    return list(found.values())


def check_widths(spec: Spec, base: ModelInfo) -> None:
    """Raises ``SpecError`` where the base cannot be cut to a width of ``model.student_widths``; says what would do."""
    for share in spec.model.student_widths:
        try:
            check_width(base, share)
        except ModelError as error:
            raise SpecError([f"model.student_widths: found {share:g}; {error}; or leave the key out"]) from error


def named(students: Sequence[ModelInfo]) -> tuple[Student, ...]:
    """The students under the shortest names that tell them apart: of a folder its last part, if no other has it."""
    short = [short_reference(student.reference) for student in students]
    return tuple(
        Student(
            name=student.reference if short.count(name) > 1 or name == CUT else name,
            model=student.fingerprint,
            num_layers=student.num_layers,
        )
        for student, name in zip(students, short, strict=True)
    )


def short_reference(reference: str) -> str:
    """A reference to a model or to rows, without the folders of this machine."""
    return Path(reference).name if Path(reference).is_absolute() else reference


def names_of(students: Sequence[Student]) -> Mapping[str, str]:
    """Their names by fingerprint."""
    return {student.model: student.name for student in students}


def compare_sizes(
    space: Space,
    *,
    base: ModelInfo,
    teacher: ModelInfo | None,
    students: Sequence[ModelInfo],
    say: Callable[[str], None],
) -> None:
    """Warn of a teacher that is smaller than students; embeddings do not count, which are a matter of vocabulary."""
    taught = [CATALOGUE[name] for name in space.strategies if "teacher" in CATALOGUE[name].needs]
    teaches = teacher or base
    each, its = layer_parameters(base) // base.num_layers, layer_parameters(teaches)
    ends = {shape for strategy in taught for shape in strategy.ends_in(space)}
    sizes = {space.num_layers(shape) for shape in ends if shape.base == space.base and shape.width is None}
    warning = f"teacher: {teaches.reference} has {its:,} parameters in its layers, fewer than"
    limited = "what it can teach them is limited: name a larger teacher, or"
    if larger := sorted(size for size in sizes if size * each > its):
        count = f"students of {say_layers(larger[0])} or more ({larger[0] * each:,})"
        say(f"{warning} {count}; {limited} leave model.teacher out")
    own = {student.reference: layer_parameters(student) for student in students if taught}
    if wide := [f"{reference} ({count:,})" for reference, count in own.items() if count > its]:
        say(f"{warning} {say_list(wide)}; {limited} leave them out of model.students")
