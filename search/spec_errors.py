"""What is wrong with a spec, told to the person who wrote it: one line a problem, with its key and the way out."""

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from spaces.objectives import nearest

Key = tuple[str | int, ...]
"""Where a value stands in the file, from the outside in."""


class SpecError(ValueError):
    """A spec that cannot be run: every problem found, one a line. ``problems`` has them apart."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


def explain(error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any]) -> list[str]:
    """The problems in ``error`` as ``key.path: found …; expected …; way out``, each key once."""
    found: dict[Key, list[Any]] = {}
    for problem in error.errors(include_url=False):
        if not problem["loc"] and problem["type"] == "value_error":
            continue  # about how parts fit together: those who check that say it themselves
        found.setdefault(_key(problem["loc"], raw), []).append(problem)
    return [f"{dotted(key)}: {_sentence(key, problems, model)}" for key, problems in found.items()]


def dotted(key: Key) -> str:
    """A key as it is written for ``--set``: ``search.space.lora_rank``."""
    return ".".join(str(part) for part in key) or "(the whole file)"


def _key(location: Key, raw: Any) -> Key:
    """``location`` without the names that pydantic adds for the members of a union."""
    key: list[str | int] = []
    for index, part in enumerate(location):
        inside = isinstance(raw, Mapping) or (isinstance(raw, list | tuple) and isinstance(part, int))
        if not inside or part == "[key]":
            break
        key.append(part)
        try:
            raw = raw[part]
        except (KeyError, IndexError):
            if index + 1 < len(location):
                continue
            break
    return tuple(key)


def _sentence(key: Key, problems: Sequence[Any], model: type[BaseModel]) -> str:
    first = problems[0]
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key{_elsewhere(key, model)}"
    if first["type"] == "missing":
        return f"missing; expected {_description(key, model)}"
    own = [str(problem["ctx"]["error"]) for problem in problems if problem["type"] == "value_error"]
    if own:
        return own[0]
    expected = dict.fromkeys(_expected(problem) for problem in problems)
    return f"found {_short(first['input'])}; expected {' or '.join(expected)}"


def _expected(problem: Any) -> str:
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return "keys with values below it"
    lowered = problem["msg"][:1].lower() + problem["msg"][1:]
    for start in ("input should be ", "input should ", "value should ", "string should "):
        if lowered.startswith(start):
            return lowered.removeprefix(start).removeprefix("have ")
    return lowered


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _elsewhere(key: Key, model: type[BaseModel]) -> str:
    """Where an unknown key was probably meant to go."""
    name = str(key[-1])
    for path in _paths(model):
        if path[-1] == name:
            return f"; move it to {dotted(path)}"
    section = _model_at(key[:-1], model)
    return nearest(name, list(section.model_fields)) if section else ""


def _description(key: Key, model: type[BaseModel]) -> str:
    section = _model_at(key[:-1], model)
    field = section.model_fields.get(str(key[-1])) if section else None
    text = (field.description if field else None) or f"a value; add {dotted(key)}"
    text = " ".join(text.split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _model_at(key: Key, model: type[BaseModel]) -> type[BaseModel] | None:
    current: Any = model
    for part in key:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif typing.get_origin(current) in (dict, tuple, Mapping):
            current = typing.get_args(current)[-1]
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _paths(model: type[BaseModel], start: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*start, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, (*start, name))
