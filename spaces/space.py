"""The space: what the user lets vary, and the models and data that plans are built on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spaces.choosers import Chooser, Value
from spaces.methods.vocabulary import KeepVocabulary
from spaces.needs import NEEDS, Lacking
from spaces.plan import Plan
from spaces.ranges import Choice, Parameter, Range
from spaces.shape import Shape
from spaces.stages import Optimisation, Stage

CUT = "cut"
"""In the place of a model's name: the student is cut from the base."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A pretrained model that may be a student."""

    name: str
    """What people call it; no other student's, and not ``CUT``."""
    model: str
    """Fingerprint of its content."""
    num_layers: int


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
    """Sizes of students that are cut from the base, in layers."""
    student_widths: tuple[float, ...] = (1.0,)
    """Shares of the base's width that students keep which are cut from it."""
    width_scores: str | None = None
    """Fingerprint of what each part of the base's width matters; None: students keep all of it."""
    students: tuple[Student, ...] = ()
    """Students that are models of their own."""
    narrowed: Mapping[str, Parameter] = field(default_factory=dict)
    """The parameters that the user changed, by name; all others vary as their strategy says."""
    teacher_recipes: Mapping[str, Optimisation]
    """How a teacher may be fine-tuned, by name. Few, so that plans share a teacher; the first is the baseline."""
    teacher_base: str | None = None
    """Fingerprint of another model that teaches; None: the fine-tuned base teaches, and students start from it."""
    unlabeled: str | None = None
    """Fingerprint of rows without labels; None where there are none."""
    batch_size: int = 32
    domains: str | None = None
    """Fingerprint of the training rows' domains; None: the task names no such column."""
    lacking: Lacking = field(default_factory=dict)
    """Needs that spec, models or machine do not meet: no option that has one is picked."""
    num_draws: int | None = None
    """Draws that are kept of a teacher's answer at each position, where not all of it is."""
    vocabulary: KeepVocabulary | None = None
    """The part of the base's vocabulary that students begin with; None: all of it."""

    def plan(self, stages: tuple[Stage, ...]) -> Plan:
        """``stages`` on this space's base, data and seed."""
        return Plan(base=self.base, stages=stages, data=self.data, seed=self.seed)

    def shape(self, num_layers: int, width: float = 1.0) -> Shape:
        """The shape of a student of ``num_layers`` and this share of the base's width."""
        shape = Shape(
            base=self.base,
            num_layers=None if num_layers == self.base_layers else num_layers,
            width=None if width == 1 else width,
        )
        return self.vocabulary.reshape(shape) if self.vocabulary else shape

    @property
    def student_shapes(self) -> tuple[Shape, ...]:
        """Every shape in which a student may begin."""
        cut = (self.shape(size, width) for width in self.student_widths for size in self.student_layers)
        return (*cut, *(Shape(base=student.model) for student in self.students))

    def num_layers(self, shape: Shape) -> int:
        """The number of layers of a shape of this space."""
        own = {student.model: student.num_layers for student in self.students}
        return shape.num_layers or own.get(shape.base, self.base_layers)

    @property
    def reference(self) -> Shape:
        """The shape of the base itself."""
        return Shape(base=self.base)

    # What strategies ask with ---------------------------------------------------------------------------------

    def real(self, chooser: Chooser, parameter: Range) -> float:
        """Ask ``chooser`` for a number, in this space's range."""
        span = self.range(parameter)
        return chooser.real(span.name, span.low, span.high, log=span.log)

    def integer(self, chooser: Chooser, parameter: Range) -> int:
        """Ask ``chooser`` for a whole number, in this space's range."""
        span = self.range(parameter)
        return chooser.integer(span.name, round(span.low), round(span.high), log=span.log)

    def choice(self, chooser: Chooser, parameter: Choice) -> Any:
        """Ask ``chooser`` for one of the options that this space leaves."""
        return chooser.categorical(parameter.name, self.options(parameter))

    def opens(self, parameter: Parameter) -> bool:
        """Whether the parameter has a meaning here."""
        return parameter.need not in self.lacking

    def range(self, parameter: Range) -> Range:
        """The range as the user wants it."""
        found = self.narrowed.get(parameter.name, parameter)
        assert isinstance(found, Range), parameter.name
        return found

    def options(self, parameter: Choice) -> tuple[Value, ...]:
        """The options as the user wants them, without those that need what is lacking."""
        found = self.narrowed.get(parameter.name, parameter)
        assert isinstance(found, Choice), parameter.name
        absent: Lacking = {} if self.domains else {"domains": NEEDS["domains"].absent}
        return found.without({**self.lacking, **absent}).options

    def optimisation(self, chooser: Chooser, rate: Range, epochs: Range) -> Optimisation:
        """Learning rate and epochs as picked, the rest at its defaults."""
        return Optimisation(
            learning_rate=self.real(chooser, rate),
            epochs=self.integer(chooser, epochs),
            batch_size=self.batch_size,
        )

    def own_student(self, chooser: Chooser) -> Student | None:
        """A pretrained model for the student; None: it is cut from the base. Nothing is asked where no model may be."""
        if not self.students:
            return None
        by_name = {student.name: student for student in self.students}
        options = (*([CUT] if self.student_layers else []), *by_name)
        return by_name.get(str(chooser.categorical("student", options)))

    def student_size(self, chooser: Chooser) -> int:
        """A number of layers for a student that is cut from the base."""
        return int(chooser.categorical("student_layers", self.student_layers))

    def student_width(self, chooser: Chooser) -> float:
        """A share of the base's width for a student that is cut from it. Nothing is asked where that is always all."""
        if self.student_widths == (1.0,):
            return 1.0
        return float(chooser.categorical("student_width", self.student_widths))
