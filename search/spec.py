"""The spec: what a user asks for, as YAML, checked as a whole before anything runs.

``load_spec`` reads a file and shows all that is wrong with it at once; ``space_of`` turns a spec into the space that
plans are drawn from, once the models are known.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from search.fitting import lacking_in, misfits, no_options_left, without_meaning
from search.spec_errors import Key, SpecError, dotted, explain
from search.spec_file import read_yaml, resolve_paths, set_values
from search.spec_raw import metric_of, section, texts_in
from search.spec_sections import ONE_OR_MORE, Budget, ModelSpec, Resources, SearchSpec, Section, each
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.objectives import QUALITY_METRICS, Constraint, parse_constraint
from spaces.ranges import Choice, Parameter, Range
from spaces.space import Space, Student
from spaces.stages import Optimisation
from spaces.targets import PRECISIONS, TARGETS, Precision
from spaces.task import Task, default_metric

if TYPE_CHECKING:
    from trainers.models import ModelInfo

__all__ = ["Spec", "SpecError", "load_spec", "space_of", "spec_differences", "spec_to_yaml"]

_MAY_CHANGE = ("budget", "resources", "storage")
"""Sections that do not change what a run is about: a run goes on when they differ, but for ``resources.compute``."""


class Spec(Section):
    """One search, as its user wrote it."""

    name: str = Field(max_length=100)
    """Name of the search: letters, digits, dot, dash, underscore. Its run folder is called so."""
    task: Task
    """The rows and the metric, at least `train`."""
    model: ModelSpec
    """The pretrained model, at least `base`."""
    search: SearchSpec = Field(default_factory=SearchSpec)
    """What is tried, and what for."""
    targets: Annotated[tuple[str, ...], ONE_OR_MORE, Field(min_length=1), each("target", tuple(TARGETS))] = ("cpu",)
    """Where the result must serve."""
    budget: Budget
    """When the search ends, for example {trials: 40} or {minutes: 60}."""
    resources: Resources = Resources()
    """What one trial may use, and where."""
    storage: str = Field(default="runs", min_length=1)
    """Where runs are kept: a folder, or s3://bucket/prefix."""

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"found {name!r}; expected letters, digits, '.', '-', '_', a letter or digit first")
        return name

    @model_validator(mode="before")
    @classmethod
    def _default_objectives(cls, raw: Any) -> Any:
        """The metric and latency, where the spec names no objectives."""
        if not isinstance(raw, dict):
            return raw
        search, task = raw.get("search") or {}, raw.get("task")
        if not isinstance(search, dict) or search.get("objectives") is not None:
            return raw
        metric = metric_of(task) if isinstance(task, dict) else getattr(task, "metric", None)
        known = metric if metric in QUALITY_METRICS else default_metric("classification")
        return {**raw, "search": {**search, "objectives": [known, "latency_ms"]}}

    @model_validator(mode="after")
    def _fits(self) -> "Spec":
        if problems := _conflicts(self.model_dump(mode="json")):
            raise ValueError("; ".join(f"{dotted(key)}: {problem}" for key, problem in problems))
        return self

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(parse_constraint(text) for text in self.search.constraints)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions at which trained models are deployed."""
        return tuple(known for known in PRECISIONS if known in self.search.space.quantization)

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies, `all` written out: those that fit the task and its data."""
        if "all" not in self.search.strategies:
            return self.search.strategies
        return tuple(name for name in CATALOGUE if name not in self.left_out)

    @property
    def left_out(self) -> Mapping[str, str]:
        """What `all` does not stand for here, and why."""
        return misfits(tuple(CATALOGUE), self.model_dump(mode="json")) if "all" in self.search.strategies else {}


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read, complete and check the spec in ``path``.

    ``overrides`` are ``key.path=value`` with the value in YAML, such as ``search.seed=3``. Relative paths of data and
    models are taken from the spec's folder, those of overrides as well.

    Raises:
        SpecError: all that is wrong, a line each: ``FILE: key.path: found …; expected …``.
    """
    raw = set_values(read_yaml(path), overrides, path)
    raw = resolve_paths(raw, path.absolute().parent)
    problems = [f"{dotted(key)}: {problem}" for key, problem in _conflicts(raw)]
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        problems = [*explain(error, Spec, raw), *problems]
        raise SpecError([f"{path}: {problem}" for problem in problems]) from None
    return spec


def spec_to_yaml(spec: Spec) -> str:
    """The spec with every default written out; ``load_spec`` reads it back."""
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def spec_differences(old: Spec, new: Spec) -> list[str]:
    """What differs, as ``key.path: old -> new``. Budget, resources and storage may differ: a run goes on with them."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def space_of(
    spec: Spec,
    *,
    base: "ModelInfo",
    data: str,
    teacher: "ModelInfo | None",
    domains: str | None = None,
    unlabeled: str | None = None,
    students: tuple[Student, ...] = (),
) -> Space:
    """The space that plans are drawn from.

    ``data`` is the fingerprint of the tokenised rows, ``teacher`` the model named as teacher, if any, ``domains`` the
    fingerprint of the training rows' domains, where the task names such a column, ``unlabeled`` that of the rows
    without labels, and ``students`` the models that the spec lists.

    Raises:
        SpecError: a student size is above the base's number of layers.
    """
    return Space(
        base=base.fingerprint,
        base_layers=base.num_layers,
        data=data,
        seed=spec.search.seed,
        strategies=spec.strategies,
        student_layers=_student_layers(spec, base.num_layers),
        student_widths=spec.model.student_widths,
        students=students,
        narrowed=_narrowed(spec),
        teacher_recipes={
            name: Optimisation(
                learning_rate=recipe.learning_rate, epochs=recipe.epochs, batch_size=spec.search.batch_size
            )
            for name, recipe in spec.search.teacher_recipes.items()
        },
        teacher_base=teacher.fingerprint if teacher and teacher.fingerprint != base.fingerprint else None,
        unlabeled=unlabeled,
        batch_size=spec.search.batch_size,
        domains=domains,
        lacking=lacking_in(spec.model_dump(mode="json")),
    )


def _student_layers(spec: Spec, base_layers: int) -> tuple[int, ...]:
    sizes = spec.model.student_layers
    if sizes is None and spec.model.students and spec.model.student_widths == (1.0,):
        return ()
    if sizes is None:
        usual = (1, 2, 3, *range(4, base_layers, 2))
        return tuple(size for size in usual if size < base_layers) or (base_layers,)
    if above := [size for size in sizes if size > base_layers]:
        raise SpecError(
            [
                f"model.student_layers: found {size}; {spec.model.base} has {base_layers} layers; "
                f"leave {size} out, or start from a deeper base"
                for size in above
            ]
        )
    return sizes


def _narrowed(spec: Spec) -> dict[str, Parameter]:
    wanted = {name: getattr(spec.search.space, name) for name in PARAMETERS}
    return {name: _within(PARAMETERS[name], value) for name, value in wanted.items() if value is not None}


def _within(usual: Parameter, wanted: Any) -> Parameter:
    if isinstance(usual, Choice):
        return replace(usual, options=tuple(option for option in usual.options if str(option) in wanted))
    low, high = wanted
    return replace(usual, low=low, high=high, default=_default_within(usual, low, high))


def _default_within(usual: Range, low: float, high: float) -> float:
    """The usual default, or the middle of a range that leaves it out: an edge is where the user expects the least."""
    if low <= usual.default <= high:
        return usual.default
    middle = math.sqrt(low * high) if usual.log else (low + high) / 2
    return round(middle) if usual.kind == "integer" else float(f"{middle:.3g}")


def _leaves(spec: Spec) -> Iterator[tuple[str, Any]]:
    def walk(value: Any, key: Key) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for name, item in value.items():
                yield from walk(item, (*key, name))
        else:
            yield dotted(key), value

    fixed = spec.model_dump(mode="json", exclude=set(_MAY_CHANGE))
    return walk(fixed | {"resources": {"compute": spec.resources.compute}}, ())


def _conflicts(raw: Mapping[str, Any]) -> list[tuple[Key, str]]:
    """What does not go together, in a spec that may be wrong in other ways too: those parts are passed over."""
    task, search = section(raw, "task"), section(raw, "search")
    metric = metric_of(task)
    found: list[tuple[Key, str]] = []
    if task.get("kind") == "generation" and section(raw, "model").get("vocabulary") == "task":
        problem = "found task; a model writes with its vocabulary, only classification can cut it; write full"
        found.append((("model", "vocabulary"), problem))
    found += _nothing_to_cut(section(raw, "model"))
    found += _nothing_to_forget(task, search)
    if metric in QUALITY_METRICS:
        found += _wrong_objectives(texts_in(search.get("objectives")), metric)
        found += _wrong_constraints(texts_in(search.get("constraints")), metric)
    named = [name for name in texts_in(search.get("strategies")) if name in CATALOGUE]
    for name, reason in misfits(named, raw).items():
        found.append((("search", "strategies"), f"{name} {reason}; leave {name} out, or write all"))
    space = section(search, "space")
    found += no_options_left(raw)
    found += without_meaning(raw)
    precisions = texts_in(space.get("quantization"))
    found += _wrong_targets(raw)
    found += _wrong_precisions(precisions, raw)
    if precisions and "fp32" not in precisions:
        found += _baseline_missing(texts_in(search.get("constraints")))
    return found


def _nothing_to_cut(model: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """A vocabulary that is to be cut, where all students are models of their own."""
    cut = model.get("student_layers") or model.get("student_widths") not in (None, 1, [1])
    if model.get("vocabulary") == "task" and model.get("students") and not cut:
        problem = "found task; models in model.students keep their own tokens, and no student is cut from the base"
        yield ("model", "vocabulary"), f"{problem}; name sizes in model.student_layers, or write full"


def _nothing_to_forget(task: Mapping[str, Any], search: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    if task.get("retain"):
        return
    problem = "{} is measured on rows of another kind than the task's; name labelled ones in task.retain, or drop it"
    if "forgetting" in texts_in(search.get("objectives")):
        yield ("search", "objectives"), problem.format("forgetting")
    for constraint in _parsed(texts_in(search.get("constraints"))):
        if constraint.name == "forgetting":
            yield ("search", "constraints"), problem.format(repr(constraint.text))


def _wrong_objectives(objectives: Sequence[str], metric: str) -> Iterator[tuple[Key, str]]:
    qualities = [name for name in objectives if name in QUALITY_METRICS]
    if objectives and qualities != [metric]:
        listed = ", ".join(qualities) or "no quality metric"
        yield (
            ("search", "objectives"),
            f"found {listed}; expected the task's metric, {metric}, and no other quality; "
            f"list {metric}, or change task.metric",
        )


def _wrong_constraints(texts: Sequence[str], metric: str) -> Iterator[tuple[Key, str]]:
    for constraint in _parsed(texts):
        if constraint.name in QUALITY_METRICS and constraint.name != metric:
            problem = f"{constraint.text!r} is about another metric than the task's; constrain {metric}"
            yield ("search", "constraints"), problem


def _baseline_missing(texts: Sequence[str]) -> Iterator[tuple[Key, str]]:
    for constraint in _parsed(texts):
        if constraint.relative:
            problem = f"{constraint.text!r} needs the baseline at fp32; add fp32 to search.space.quantization"
            yield ("search", "constraints"), problem


def _wrong_precisions(precisions: Sequence[str], raw: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    targets, kind = _targets(raw), str(section(raw, "task").get("kind"))
    runs = {precision for name in targets for precision in TARGETS[name].runs(kind)}
    for precision in precisions:
        if runs and precision in PRECISIONS and precision not in runs:
            served = ", ".join(known for known in PRECISIONS if known in runs)
            yield (
                ("search", "space", "quantization"),
                f"found {precision}; none of the targets {', '.join(targets)} runs it; expected {served}",
            )


def _wrong_targets(raw: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    kind = section(raw, "task").get("kind")
    for name in _targets(raw):
        if not TARGETS[name].runs(str(kind)):
            able = ", ".join(other for other, target in TARGETS.items() if target.runs(str(kind)))
            problem = f"found {name}; what writing text costs there is neither measured nor estimated; expected {able}"
            yield ("targets",), problem


def _targets(raw: Mapping[str, Any]) -> list[str]:
    return [name for name in texts_in(raw.get("targets")) or ["cpu"] if name in TARGETS]


def _parsed(texts: Sequence[str]) -> Iterator[Constraint]:
    for text in texts:
        try:
            yield parse_constraint(text)
        except ValueError:
            continue
