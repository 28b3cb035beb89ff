"""How numbers and plans are said to people: one wording for the terminal, the report and the reasons of a choice."""

from collections.abc import Mapping, Sequence

from spaces.methods.start_from import StartFrom
from spaces.objectives import OBJECTIVES, QUALITY_METRICS
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space

_SHORT = {
    "latency_ms": "latency",
    "latency_p95_ms": "latency p95",
    "size_mb": "size",
    "memory_mb": "memory",
    "energy_j": "energy",
    "train_seconds": "training",
    "train_memory_mb": "training memory",
    "macro_f1": "macro F1",
    "rouge_l": "ROUGE-L",
    "first_token_ms": "first token",
    "token_ms": "each later token",
}
_SHARES = ("accuracy", "exact_match")


def say_name(name: str) -> str:
    """A column's name without its unit."""
    return _SHORT.get(name, name.replace("_", " "))


def say(name: str, value: float | None) -> str:
    """The value of column ``name`` with its unit; a dash where there is none."""
    if value is None:
        return "–"
    if name in _SHARES:
        return f"{100 * value:.1f} %"
    if name in QUALITY_METRICS:
        return _quality(name, value)
    if name.endswith("seconds"):
        return say_duration(value)
    if name in ("forgetting", "overfit"):
        return f"{value:+.3f}"
    unit = OBJECTIVES[name].unit if name in OBJECTIVES else ""
    return f"{_three_digits(value)} {unit}".strip()


def say_interval(name: str, low: float | None, high: float | None) -> str:
    """A 95 % interval, both ends in the unit of ``name``; empty where there is none."""
    if low is None or high is None:
        return ""
    if name in _SHARES:
        return f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{_quality(name, low)}–{_quality(name, high)}"


def say_duration(seconds: float) -> str:
    """A time span: 0.4 s, 48 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say_layers(num_layers: int | None) -> str:
    """The size of a model in layers; None is the base's own number."""
    if num_layers is None:
        return "all layers"
    return "1 layer" if num_layers == 1 else f"{num_layers} layers"


def say_size(shape: Shape, base_layers: int | None = None, *, names: Mapping[str, str] | None = None) -> str:
    """The name of a student that is a model of its own, where ``names`` has it by fingerprint; else the size of the
    model in layers, of which all are ``base_layers``, if that is known, and its share of the base's width.
    """
    width = "" if shape.width is None else f" at {shape.width:g} of the width"
    return (names or {}).get(shape.base) or say_layers(shape.num_layers or base_layers) + width


def say_shape(shape: Shape, base_layers: int | None = None, *, names: Mapping[str, str] | None = None) -> str:
    """As ``say_size``, and how many tokens are left where the vocabulary is cut, and what was added to the layers."""
    tokens = "" if shape.vocab_size is None else f", {shape.vocab_size:,} tokens"
    return " + ".join([say_size(shape, base_layers, names=names) + tokens, *shape.details])


def say_students(space: Space) -> str:
    """The students of a space: 1, 2 layers at 1, 0.5 of the width and bert-tiny."""
    widths = f" at {', '.join(f'{width:g}' for width in space.student_widths)} of the width"
    cut = f"{', '.join(map(str, space.student_layers))} layers{widths if space.student_widths != (1.0,) else ''}"
    return say_list([*([cut] if space.student_layers else []), *(student.name for student in space.students)])


def student_names(plan: Plan) -> Mapping[str, str]:
    """The name of the model of its own that a plan begins at, by fingerprint; nothing where it begins at the base."""
    return {stage.model: stage.name for stage in plan.stages if isinstance(stage, StartFrom)}


def say_plan(plan: Plan) -> str:
    """A plan in words, stage after stage."""
    return " → ".join(stage.say() for stage in plan.stages)


def say_list(items: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _quality(name: str, value: float) -> str:
    # A perplexity has no upper end.
    return f"{value:.4g}" if name == "perplexity" else f"{value:.3f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
