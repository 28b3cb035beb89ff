"""The parts of a spec: what each key may hold, what it means, and what it is when left out."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, create_model, field_validator, model_validator

from spaces.canonical import Frozen
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.objectives import OBJECTIVES, nearest, parse_constraint
from spaces.ranges import Choice, Parameter, Range
from spaces.targets import PRECISIONS


class Section(Frozen):
    """A part of the spec. The text under each key is its description in the JSON schema."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def known_words(kind: str, known: Sequence[str], words: tuple[str, ...]) -> tuple[str, ...]:
    """``words``, each one of ``known`` and none twice."""
    unknown = [f"unknown {kind} {word!r}{nearest(word, tuple(known))}" for word in words if word not in known]
    if unknown:
        raise ValueError("; ".join(unknown))
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise ValueError(f"{kind} {twice[0]!r} is listed twice; list it once")
    return words


def each(kind: str, known: Sequence[str]) -> AfterValidator:
    return AfterValidator(partial(known_words, kind, tuple(known)))


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


ONE_OR_MORE = BeforeValidator(_one_or_more)


def _bounds(value: Any) -> Any:
    """A single number stands for itself: nothing varies."""
    if isinstance(value, int | float | str):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"found {len(value)} numbers; expected [low, high], or one number to keep it fixed")
    return value


def _within(span: Range, bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap the bounds")
    if span.kind == "integer" and (low < 1 or low != int(low) or high != int(high)):
        raise ValueError(f"found [{low:g}, {high:g}]; expected whole numbers from 1 up")
    if span.log and low <= 0:
        raise ValueError(f"low {low:g} is not above 0; the range is searched by factors, start at {span.low:g} or so")
    if span.share and not 0 <= low <= high <= 1:
        raise ValueError(f"found [{low:g}, {high:g}]; it is a weight: expected bounds from 0 to 1")
    return bounds


class _Quantization(Section):
    quantization: Annotated[tuple[str, ...], ONE_OR_MORE, Field(min_length=1), each("precision", PRECISIONS)] = (
        "fp32",
        "int8",
    )
    """Precisions at which every trained model is deployed and evaluated."""


def _field(parameter: Parameter) -> Any:
    return _options_field(parameter) if isinstance(parameter, Choice) else _range_field(parameter)


def _words(value: Any) -> Any:
    """Options as texts; YAML makes numbers of some."""
    listed = value if isinstance(value, list | tuple) else (value,)
    return tuple(str(option) if isinstance(option, int) else option for option in listed)


def _options_field(choice: Choice) -> Any:
    known = tuple(str(option) for option in choice.options)
    options = Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1), each("option", known)]
    description = f"One or several of {', '.join(known)}: {choice.summary}. Otherwise all of them."
    return (options | None, Field(default=None, description=description))


def _range_field(span: Range) -> Any:
    bounds = Annotated[tuple[float, float], BeforeValidator(_bounds), AfterValidator(partial(_within, span))]
    description = f"[low, high], or one number: {span.summary}. Otherwise [{span.low:g}, {span.high:g}]."
    return (bounds | None, Field(default=None, description=description))


if TYPE_CHECKING:
    SpaceSpec = _Quantization
else:
    SpaceSpec = create_model(
        "SpaceSpec",
        __base__=_Quantization,
        __doc__="What varies, by name. What is not named varies within its usual range.",
        **{name: _field(parameter) for name, parameter in PARAMETERS.items()},
    )


class ModelSpec(Section):
    """The pretrained models. A reference is a hub id, a folder, or ``package:NAME``."""

    base: str = Field(min_length=1)
    """Pretrained encoder to start from: a hub id, a folder, or package:NAME (a Python package's folder `model`)."""
    teacher: str | None = Field(default=None, min_length=1)
    """Another model that teaches; it is fine-tuned on the task first. Otherwise the base itself, fine-tuned."""
    student_layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Sizes of students that are cut from the base, in layers. Otherwise none where `students` names models, and else
    1 2 3 4 and then every second number below the base's."""
    student_widths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], ONE_OR_MORE, Field(min_length=1)] = (
        1.0,
    )
    """Shares of the base's width (hidden channels, heads, neurons) that students keep which are cut from it."""
    students: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], ONE_OR_MORE, Field(min_length=1)] | None = None
    """Other pretrained models that may be students, such as smaller ones of the base's family."""
    vocabulary: Literal["full", "task"] = "full"
    """What students keep of the base's vocabulary: all of it, or what train and unlabeled use and a tenth more."""

    @field_validator("student_widths")
    @classmethod
    def _widest_first(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(widths), reverse=True))

    @field_validator("student_layers")
    @classmethod
    def _sizes(cls, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if sizes is None:
            return None
        if not sizes:
            raise ValueError("found no sizes; list at least one, or leave the key out")
        return tuple(sorted(set(sizes)))


class Recipe(Section):
    """One way to fine-tune a teacher."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    epochs: int = Field(ge=1)
    """Passes over the rows of train."""


def _recipes() -> dict[str, Recipe]:
    return {"standard": Recipe(learning_rate=1e-4, epochs=3), "long": Recipe(learning_rate=1e-4, epochs=5)}


class SearchSpec(Section):
    """What is tried, and what for."""

    strategies: Annotated[tuple[str, ...], ONE_OR_MORE, Field(min_length=1), each("strategy", ("all", *CATALOGUE))] = (
        "all",
    )
    """`all`, or a list of strategies."""
    objectives: Annotated[tuple[str, ...], Field(min_length=2), each("objective", tuple(OBJECTIVES))] = Field(
        default_factory=tuple
    )
    """The task's metric, and at least one cost. Otherwise the metric and latency_ms."""
    constraints: Annotated[tuple[str, ...], ONE_OR_MORE] = ()
    """Such as `size_mb <= 60` or `accuracy >= 0.95 * baseline`."""
    space: SpaceSpec = SpaceSpec()
    """What varies, by name."""
    teacher_recipes: Annotated[dict[str, Recipe], Field(min_length=1)] = Field(default_factory=_recipes)
    """Ways to fine-tune a teacher, by name. The first, on the base, is the baseline. Each is trained once a run."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimiser step over all workers together."""
    sampler: Literal["known_cost", "tpe", "nsga2", "random"] = "known_cost"
    """Who proposes plans."""
    scheduler: Literal["known_cost", "pareto_halving", "none"] = "known_cost"
    """Who stops plans early: those that are not expected to reach the front, the worse half at each rung, or none."""
    seed: int = Field(default=0, ge=0)
    """Of everything random: the same seed, data and spec, the same search."""

    @field_validator("constraints")
    @classmethod
    def _parses(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        problems = []
        for text in texts:
            try:
                parse_constraint(text)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return texts

    @field_validator("sampler")
    @classmethod
    def _is_here(cls, name: str) -> str:
        if name == "nsga2":
            raise ValueError("'nsga2' is not in this version; use known_cost, tpe or random")
        return name


class Budget(Section):
    """When a search ends: whichever comes first. Raise it to go on with a finished one."""

    trials: int | None = Field(default=None, ge=1)
    """Plans carried out."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall time."""
    device_hours: float | None = Field(default=None, gt=0)
    """Hours of training, summed over all that train at once."""
    usd: float | None = None
    """Not in this version."""

    @field_validator("usd")
    @classmethod
    def _later(cls, usd: float | None) -> float | None:
        if usd is not None:
            raise ValueError("a budget in money is not in this version; use trials, minutes or device_hours")
        return usd

    @model_validator(mode="after")
    def _ends(self) -> "Budget":
        if self.trials is None and self.minutes is None and self.device_hours is None:
            raise ValueError("found no limit; give at least one of trials, minutes, device_hours")
        return self


class Resources(Section):
    """What one trial may use, and where."""

    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPU cores of one training worker. Otherwise the cores are shared out evenly."""
    gpus_per_trial: float = Field(default=0, ge=0)
    """GPUs of one trial; a fraction shares one."""
    workers_per_trial: int = Field(default=1, ge=1)
    """Training workers of one trial; more than one train data-parallel."""
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials at a time."""
    address: str | None = None
    """Of a running Ray cluster, or `auto`. Otherwise Ray is started on this machine."""
    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto: bf16 where the processor or GPU has it."""
