"""A problem file: which table of recorded trainings a simulated search is answered by, and what its columns mean."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from search.spec_errors import SpecError, explain
from search.spec_file import read_yaml
from spaces.canonical import Frozen
from spaces.choosers import Value
from spaces.objectives import Direction, nearest

FORMATS = (".csv", ".csv.gz", ".parquet")


class _Section(Frozen):
    """A part of a problem file. The text under each key is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else value


Options = Annotated[tuple[Value, ...], BeforeValidator(_one_or_more), Field(min_length=1)]


class Param(_Section):
    """A column that a sampler picks. What it may be is what the table holds."""

    type: Literal["float", "int", "categorical"]
    """float, int or categorical."""
    log: bool = False
    """Whether its factors matter, not its differences."""
    when: dict[str, Options] = Field(default_factory=dict)
    """Other parameters, categorical ones, with the options at which this one is read; otherwise always."""


class Quality(_Section):
    """What is learned by training alone."""

    column: str = Field(min_length=1)
    """The column of it."""
    direction: Direction
    """max or min."""


class Problem(_Section):
    """One problem: a table, and what its columns mean."""

    table: str = Field(min_length=1)
    """The table: .csv, .csv.gz or .parquet, relative to the problem file."""
    id: str | None = None
    """Column whose equal values are one configuration, at rising fidelity. Otherwise each row is a configuration."""
    params: dict[str, Param] = Field(min_length=1)
    """What a sampler picks, by column."""
    fidelity: str | None = None
    """Column that says how far a row's configuration was trained; its last row is its end. Otherwise all are ends."""
    quality: Quality
    """What is searched for."""
    known_costs: tuple[str, ...] = ()
    """Columns that are known before training, minimised."""
    learned_costs: tuple[str, ...] = ()
    """Columns that are seen only when a configuration is trained to its end, minimised."""
    train_cost: str | None = None
    """Column of the cost of training so far. Otherwise each training costs 1, in equal steps."""
    reference: dict[str, float] = Field(default_factory=dict)
    """Objectives with the value beyond which nothing counts. Otherwise a tenth beyond the table's worst."""
    fan_out: str | None = None
    """Column in which the last rows of one configuration differ that come of one training, such as precision."""
    shared: dict[str, str] = Field(default_factory=dict)
    """Columns that name a beginning several configurations share, each with the column of its cost. Whoever comes
    first pays for it; train_cost does not contain it."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Columns that are optimised: quality first."""
        return (self.quality.column, *self.known_costs, *self.learned_costs)

    @property
    def columns(self) -> dict[str, str]:
        """Every column that the file names, with the key that names it first."""
        single = {"id": self.id, "fidelity": self.fidelity, "fan_out": self.fan_out, "train_cost": self.train_cost}
        named = [
            *((name, f"params.{name}") for name in self.params),
            (self.quality.column, "quality.column"),
            *((name, "known_costs") for name in self.known_costs),
            *((name, "learned_costs") for name in self.learned_costs),
            *((name, key) for key, name in single.items() if name is not None),
            *((name, f"shared.{part}") for part, cost in self.shared.items() for name in (part, cost)),
        ]
        return dict(reversed(named))


def load_problem(path: Path) -> Problem:
    """Read and check the problem file at ``path``; its table becomes absolute.

    Raises:
        SpecError: all that is wrong, a line each: ``FILE: key: found …; expected …``.
    """
    raw = read_yaml(path, wanted="a problem in YAML (see docs/simulate.md)")
    try:
        problem = Problem.model_validate(raw)
    except ValidationError as error:
        raise SpecError([f"{path}: {text}" for text in explain(error, Problem, raw)]) from None
    if problems := [*_conflicts(problem), *_conditions(problem.params)]:
        raise SpecError([f"{path}: {text}" for text in problems])
    return problem.model_copy(update={"table": str(path.absolute().parent / problem.table)})


def _conflicts(problem: Problem) -> Iterator[str]:
    if not problem.table.endswith(FORMATS):
        yield f"table: found {problem.table!r}; expected a file that ends in {', '.join(FORMATS)}"
    if problem.id is None:
        for key in ("fidelity", "fan_out"):
            if getattr(problem, key) is not None:
                yield f"{key}: found without `id`; name the column that tells which rows are one configuration"
    yield from _doubled(problem)
    if len(problem.objectives) == 1:
        yield "known_costs: found no cost; name at least one column in known_costs or learned_costs"
    for name in problem.reference:
        if name not in problem.objectives:
            yield f"reference.{name}: no objective{nearest(name, problem.objectives)}"
    missing = [name for name in problem.objectives if name not in problem.reference]
    if problem.reference and missing:
        yield f"reference: found no {', '.join(missing)}; give every objective, or none"


def _doubled(problem: Problem) -> Iterator[str]:
    """Columns with two meanings. A known cost may be a parameter as well, and training's cost an objective."""
    single = [name for name in (problem.id, problem.fidelity, problem.fan_out) if name is not None]
    for names in (problem.objectives, (*problem.params, problem.quality.column, *problem.learned_costs, *single)):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{problem.columns[name]}: column {name!r} has {count} meanings in this file; expected one"


def _conditions(params: Mapping[str, Param]) -> Iterator[str]:
    for name, param in params.items():
        if param.log and param.type == "categorical":
            yield f"params.{name}.log: found on a categorical parameter; expected on float or int only"
        for other in param.when:
            where = f"params.{name}.when.{other}"
            if other not in params:
                yield f"{where}: no parameter{nearest(other, list(params))}"
            elif params[other].type != "categorical":
                yield f"{where}: found a parameter of type {params[other].type}; expected a categorical one"
    if not _in_order(params):
        yield "params: found conditions (`when`) that go round in a circle; expected an order in which to pick"


def _in_order(params: Mapping[str, Param]) -> bool:
    return len(picking_order(params)) == len(params)


def picking_order(params: Mapping[str, Param]) -> list[str]:
    """Names, each after those that it depends on, otherwise as in the file; those in a circle are left out."""
    found: list[str] = []
    while ready := [
        name
        for name, param in params.items()
        if name not in found and all(other in found or other not in params for other in param.when)
    ]:
        found.append(ready[0])
    return found
