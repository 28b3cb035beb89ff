"""A table's columns as a problem file means them: read, checked, and every parameter within its range.

n = rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from search.simulation.problem import Param, Problem, picking_order
from search.spec_errors import SpecError
from spaces.choosers import Value
from spaces.objectives import nearest

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter over all rows."""

    name: str
    param: Param
    values: Numbers
    """n values; of a categorical one, positions in ``options``. What stands where it is not read says nothing."""
    active: Flags
    """In which of the n rows it is read."""
    options: tuple[Value, ...] = ()
    """What a categorical one may be, sorted."""

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that is read."""
        read = self.values[self.active]
        return float(read.min()), float(read.max())

    def value(self, row: int) -> Value:
        """The value in a row as a sampler would pick it."""
        found = float(self.values[row])
        if self.param.type == "categorical":
            return self.options[int(found)]
        return int(found) if self.param.type == "int" else found


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything that a problem reads of its table."""

    axes: tuple[Axis, ...]
    """Parameters in an order in which they can be picked."""
    numbers: Mapping[str, Numbers]
    """Objectives and costs; NaN where nothing stands."""
    names: Mapping[str, Sequence[Value | None]]
    """What tells rows apart: id, variants, shared beginnings."""
    num_rows: int


def read_columns(problem: Problem) -> Columns:
    """Read the table of ``problem``, which is an absolute path.

    Raises:
        SpecError: no such table, columns that are missing or hold something else than the problem says.
    """
    table = _read(problem)
    missing = [f"{key}: no column {name!r}{nearest(name, table.column_names)}"
               for name, key in problem.columns.items() if name not in table.column_names]  # fmt: skip
    _refuse(problem, missing or ([] if table.num_rows else ["found no rows; expected one for each training"]))
    problems: list[str] = []
    numbers = {name: _numbers(table[name], problem.columns[name], problems) for name in _measured(problem)}
    problems += _bad_costs(problem, numbers)
    labels = [problem.id, problem.fan_out, *problem.shared]
    names = {name: _names(table[name]) for name in labels if name is not None}
    problems += _bad_parts(problem, numbers, names)
    axes = _axes(problem, table, problems)
    _refuse(problem, problems)
    return Columns(axes=tuple(axes), numbers=numbers, names=names, num_rows=table.num_rows)


def row_of(where: Flags | NDArray[np.int64]) -> str:
    """The first of the rows that are meant, counted from 1 below the header, and how many more there are."""
    rows = np.flatnonzero(where) if where.dtype == bool else where
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"row {int(rows[0]) + 1}{more}"


def _refuse(problem: Problem, problems: Sequence[str]) -> None:
    if problems:
        raise SpecError([f"{problem.table}: {text}" for text in problems])


def _read(problem: Problem) -> pa.Table:
    try:
        if problem.table.endswith(".parquet"):
            return pq.read_table(problem.table)
        missing_is = pa_csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
        return pa_csv.read_csv(problem.table, convert_options=missing_is)
    except FileNotFoundError:
        raise SpecError([f"{problem.table}: no such file; expected the table that `table` names"]) from None
    except (pa.ArrowInvalid, OSError) as error:
        said = str(error).splitlines()[0]
        raise SpecError([f"{problem.table}: cannot be read: {said}; expected a table with a header"]) from None


def _measured(problem: Problem) -> list[str]:
    single = [name for name in (problem.fidelity, problem.train_cost) if name is not None]
    return list(dict.fromkeys([*problem.objectives, *single, *problem.shared.values()]))


def _numbers(column: pa.ChunkedArray, key: str, problems: list[str]) -> Numbers:
    """``column`` as floats, NaN where nothing stands; what is not a number is added to ``problems``."""
    try:
        found = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        problems.append(f"{key}: column holds {column.type}; expected numbers")
        return np.full(len(column), np.nan)
    return np.asarray(found, dtype=np.float64)


def _names(column: pa.ChunkedArray) -> list[Value | None]:
    """What a column holds, truth values as 0 and 1; None where nothing stands."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return [None if value != value else value for value in column.to_pylist()]


def _bad_costs(problem: Problem, numbers: Mapping[str, Numbers]) -> Iterator[str]:
    """Costs and fidelities that are needed in every row. Quality and learned costs may lack: such a training failed."""
    rules: list[tuple[str | None, str, Callable[[Numbers], Flags]]] = [
        *((name, "a finite number", np.isfinite) for name in problem.known_costs),
        (problem.fidelity, "a number above 0", lambda found: np.isfinite(found) & (found > 0)),
        (problem.train_cost, "a number of at least 0", lambda found: np.isfinite(found) & (found >= 0)),
    ]
    for name, expected, holds in rules:
        if name is not None and not (good := holds(numbers[name])).all():
            value = numbers[name][~good][0]
            yield f"{problem.columns[name]}: column {name!r} holds {value:g} in {row_of(~good)}; expected {expected}"


def _bad_parts(
    problem: Problem, numbers: Mapping[str, Numbers], names: Mapping[str, Sequence[Value | None]]
) -> Iterator[str]:
    """Shared beginnings that cost nothing known."""
    for part, cost in problem.shared.items():
        there = np.array([name is not None for name in names[part]])
        if (bad := there & ~(np.isfinite(numbers[cost]) & (numbers[cost] >= 0))).any():
            yield f"shared.{part}: column {cost!r} holds {numbers[cost][bad][0]:g} in {row_of(bad)}; expected a cost"


def _axes(problem: Problem, table: pa.Table, problems: list[str]) -> list[Axis]:
    found: dict[str, Axis] = {}
    for name in picking_order(problem.params):
        param = problem.params[name]
        active = np.ones(table.num_rows, dtype=bool)
        for other, options in param.when.items():
            active &= _holds(f"params.{name}.when.{other}", found[other], options, problems)
        axis = (_categorical if param.type == "categorical" else _numeric)(name, param, table[name], active, problems)
        found[name] = axis
    return list(found.values())


def _holds(key: str, axis: Axis, options: Sequence[Value], problems: list[str]) -> Flags:
    """In which rows ``axis`` is one of ``options``."""
    for option in options:
        if option not in axis.options:
            known = ", ".join(map(repr, axis.options))
            problems.append(f"{key}: found {option!r}, which no row has; expected some of {known}")
    at = [index for index, option in enumerate(axis.options) if option in options]
    return axis.active & np.isin(axis.values, at)


def _categorical(name: str, param: Param, column: pa.ChunkedArray, active: Flags, problems: list[str]) -> Axis:
    values = _names(column)
    read = [value for value, is_read in zip(values, active, strict=True) if is_read]
    options = tuple(sorted({value for value in read if value is not None}, key=lambda value: (str(type(value)), value)))
    positions = {option: index for index, option in enumerate(options)}
    codes = np.array([np.nan if value is None else positions.get(value, np.nan) for value in values])
    _check_read(name, active, np.isnan(codes), problems)
    return Axis(name=name, param=param, values=codes, active=active, options=options)


def _numeric(name: str, param: Param, column: pa.ChunkedArray, active: Flags, problems: list[str]) -> Axis:
    values = _numbers(column, f"params.{name}", problems)
    finite = np.isfinite(values)
    _check_read(name, active, ~finite, problems)
    if param.type == "int" and (odd := active & finite & (values != np.round(values))).any():
        value = values[odd][0]
        problems.append(f"params.{name}.type: found {value:g} in {row_of(odd)}; expected whole numbers, or type: float")
    if param.log and (low := active & finite & (values <= 0)).any():
        problems.append(f"params.{name}.log: found {values[low][0]:g} in {row_of(low)}; expected numbers above 0")
    return Axis(name=name, param=param, values=values, active=active)


def _check_read(name: str, active: Flags, lacking: Flags, problems: list[str]) -> None:
    if not active.any():
        problems.append(f"params.{name}.when: holds in no row; expected some, or leave the parameter out")
    elif (bad := active & lacking).any():
        problems.append(f"params.{name}: no value in {row_of(bad)}; expected one wherever its `when` holds")
