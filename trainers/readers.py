"""Rows of texts from files: JSON lines, CSV, TSV, Parquet, globs of them, object stores, the Hugging Face hub.

What cannot be read is named by file and line, all of it at once.
"""

import difflib
import io
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from spaces.objectives import nearest
from trainers.storage import Storage, StorageError

Pairs = list[tuple[str | None, str | None]]
"""(text, label) of each row; None where it is missing."""
Values = tuple[str | None, ...]
"""What a row has in each of the columns that were asked for; None where it is missing."""

_SHOWN = 5
"""Problems of one kind that are shown before the rest is only counted."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".json", ".ndjson")
_PARQUET = (".parquet", ".pq")
_WILD = frozenset("*?[")


class DataError(ValueError):
    """Rows that cannot be used: every problem found, one a line. ``problems`` has them apart."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column to read."""

    key: str
    """The key below ``task`` that names it."""
    name: str
    """Its name in the data."""
    parse: Callable[[Any], str | None]
    """From a value to its text; None where it is missing. Raises ``ValueError`` for what it does not take."""
    optional: bool = False
    """Whether the data may do without it: every row then lacks it."""


def read_rows(source: str, columns: Sequence[Column], *, folder: Path) -> list[Values]:
    """The rows of a file, a glob or a URI, each its values in ``columns``; relative paths start at ``folder``.

    Raises:
        DataError: all that cannot be read, with file and line.
    """
    if source.startswith("hf://"):
        return _from_table(read_hub(source), source, columns)
    rows: list[Values] = []
    problems: list[str] = []
    for name in [source] if "://" in source else _find_files(source, folder):
        try:
            rows += _read_file(name, _read_bytes(name), columns)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return rows


def read_hub(source: str) -> pa.Table:
    """A split of a data set on the hub, from the Parquet files that the hub keeps of every public one.

    ``source`` is ``hf://owner/name/split``, or ``hf://owner/name/config/split`` where there are several configurations.
    """
    from huggingface_hub import HfFileSystem

    parts = source.removeprefix("hf://").strip("/").split("/")
    if len(parts) not in (3, 4) or not all(parts):
        raise DataError([f"{source}: expected hf://owner/name/split or hf://owner/name/config/split"])
    owner, name, config, split = parts if len(parts) == 4 else (*parts[:2], "*", parts[2])
    files = HfFileSystem()
    try:
        found = sorted(files.glob(f"datasets/{owner}/{name}@~parquet/{config}/{split}/*.parquet"))
        configs = sorted({str(path).split("/")[-3] for path in found})
        if not found:
            raise DataError([f"{source}: the hub has no Parquet files of such a split; check the name and the split"])
        if len(configs) > 1:
            raise DataError([f"{source}: has several configurations, {', '.join(configs)}; write {source} with one"])
        return pa.concat_tables([pq.read_table(io.BytesIO(files.read_bytes(path))) for path in found])
    except DataError:
        raise
    except Exception as error:
        # Client, server, proxy and offline mode each raise classes of their own.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError([f"{source}: cannot be read: {reason}; without the hub, name files on this machine"]) from error


def meant(word: str, known: Sequence[str]) -> str:
    """The end of an error about an unknown word: the nearest known one, if one is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def label_name(value: Any) -> str | None:
    """The name of the class ``value``; None where it is missing.

    Raises:
        ValueError: it is neither text, a whole number nor a truth value.
    """
    if _is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | str):
        return str(value).strip() or None
    raise ValueError(f"label is {reprlib.repr(value)}; expected text, a whole number, true or false")


def text_value(key: str) -> Callable[[Any], str | None]:
    """What reads a column of texts as they are, blank ones as missing; ``key`` is for the errors."""

    def parse(value: Any) -> str | None:
        if _is_missing(value):
            return None
        if not isinstance(value, str):
            raise ValueError(f"{key} is {reprlib.repr(value)}; expected text")
        return value if value.strip() else None

    return parse


def answer_value(key: str) -> Callable[[Any], str | None]:
    """What reads a column of texts or numbers, without the white space around them; ``key`` is for the errors."""

    def parse(value: Any) -> str | None:
        if _is_missing(value):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{key} is {reprlib.repr(value)}; expected text or a number")
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value) if whole else value).strip() or None

    return parse


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _find_files(source: str, folder: Path) -> list[str]:
    path = folder / Path(source).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        raise DataError([f"{path}: is a folder; expected a file, or a glob such as {path}/*.jsonl"])
    if not _WILD & set(source):
        raise DataError([f"{path}: no such file{_beside(path)}"])
    path = path.absolute()
    found = sorted(str(item) for item in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if item.is_file())
    if not found:
        raise DataError([f"{path}: no file matches"])
    return found


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    names = sorted(item.name for item in path.parent.iterdir() if item.is_file())
    return nearest(path.name, names[:50]) if names else f"; {path.parent} is empty"


def _read_bytes(name: str) -> bytes:
    try:
        if "://" not in name:
            return Path(name).read_bytes()
        parent, _, file = name.rpartition("/")
        return Storage(parent).read(file)
    except (OSError, StorageError) as error:
        raise DataError([f"{name}: cannot be read: {error}"]) from error


def _read_file(name: str, content: bytes, columns: Sequence[Column]) -> list[Values]:
    suffix = Path(name).suffix.lower()
    if not content.strip():
        wanted = " and ".join(repr(column.name) for column in columns if not column.optional)
        raise DataError([f"{name}: is empty; expected rows with columns {wanted}"])
    if suffix in _JSON:
        rows = _read_json(name, _decode(name, content), columns)
    elif suffix in _DELIMITERS:
        rows = _read_csv(name, content, columns, delimiter=_DELIMITERS[suffix])
    elif suffix in _PARQUET:
        try:
            table = pq.read_table(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise DataError([f"{name}: is no whole Parquet file: {error}"]) from error
        rows = _from_table(table, name, columns)
    else:
        known = ", ".join([*_JSON, *_DELIMITERS, *_PARQUET])
        raise DataError([f"{name}: found a file of type {suffix or 'none'!r}; expected one of {known}"])
    if not rows:
        raise DataError([f"{name}: has no rows"])
    return rows


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Behind a byte order mark positions are counted from after it; a mark has no line end, so lines are right.
        start = content.startswith(b"\xef\xbb\xbf") * 3 + error.start
        line = content.count(b"\n", 0, start) + 1
        problem = f"line {line}: byte 0x{content[start]:02x} is not UTF-8; save the file as UTF-8"
        raise DataError([f"{name}: {problem}"]) from error


def _read_json(name: str, content: str, columns: Sequence[Column]) -> list[Values]:
    problems: list[str] = []
    objects = list(_json_objects(content, problems))
    if problems:
        raise _too_many(name, problems)
    _require_columns(name, list(dict.fromkeys(key for _, row in objects for key in row)), columns)
    return _check(name, columns, ((f"line {line}", [row.get(c.name) for c in columns]) for line, row in objects))


def _json_objects(content: str, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, object) of each line; problems are added to ``problems``."""
    # Not splitlines(): it also ends lines at characters that JSON strings may hold, such as U+2028.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: broken JSON: {error}; expected one object a line")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(f"line {number}: found {type(row).__name__}; expected one object a line, {{…}}")


def _read_csv(name: str, content: bytes, columns: Sequence[Column], *, delimiter: str) -> list[Values]:
    _decode(name, content)
    ragged: list[str] = []

    def note(row: Any) -> str:
        # Rows are not lines where values hold line ends.
        line = content.count(b"\n", 0, max(0, content.find(row.text.encode()))) + 1
        ragged.append(f"line {line}: found {row.actual_columns} columns; expected {row.expected_columns}")
        return "skip"

    # One block, so that a text of any length fits; one thread, so that rows have numbers.
    reading = pacsv.ReadOptions(use_threads=False, block_size=len(content) + 1)
    parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)
    types = {column.name: pa.string() for column in columns}
    strings = pacsv.ConvertOptions(column_types=types, strings_can_be_null=False)
    try:
        table = pacsv.read_csv(
            io.BytesIO(content), read_options=reading, parse_options=parsing, convert_options=strings
        )
    except pa.ArrowException as error:
        raise DataError([f"{name}: is no CSV that can be read: {error}"]) from error
    _require_columns(name, table.column_names, columns)
    if ragged:
        raise _too_many(name, [f"{problem}; put quotes around values that hold a {delimiter!r}" for problem in ragged])
    return _from_table(table, name, columns)


def _from_table(table: pa.Table, name: str, columns: Sequence[Column]) -> list[Values]:
    _require_columns(name, table.column_names, columns)
    nothing = [None] * table.num_rows
    lists = [table.column(c.name).to_pylist() if c.name in table.column_names else nothing for c in columns]
    return _check(name, columns, ((f"row {row}", values) for row, values in enumerate(zip(*lists, strict=True), 1)))


def _require_columns(name: str, found: list[str], columns: Sequence[Column]) -> None:
    wanted = list(dict.fromkeys(column.name for column in columns))
    others = [column for column in found if column not in wanted]
    problems = [
        f"{name}: no column {column.name!r} (task.{column.key}); found are {', '.join(found)}"
        f"{meant(column.name, others)}"
        for column in columns
        if column.name not in found and not column.optional
    ]
    problems += [
        f"{name}: column {column!r} is there twice; rename one of them" for column in wanted if found.count(column) > 1
    ]
    if problems:
        raise DataError(problems)


def _check(name: str, columns: Sequence[Column], rows: Iterable[tuple[str, Sequence[Any]]]) -> list[Values]:
    parsed: list[Values] = []
    problems = []
    for place, values in rows:
        try:
            parsed.append(tuple(column.parse(value) for column, value in zip(columns, values, strict=True)))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise _too_many(name, problems)
    return parsed


def _too_many(name: str, problems: Sequence[str]) -> DataError:
    more = [f"{name}: … and {len(problems) - _SHOWN} more lines"] if len(problems) > _SHOWN else []
    return DataError([*(f"{name}: {problem}" for problem in problems[:_SHOWN]), *more])
