"""A spec's file: YAML read strictly, values set from the command line, paths made independent of the folder."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.spec_errors import SpecError
from spaces.task import BUILTIN

_SOURCES = ("train", "validation", "test", "unlabeled", "retain")
_MODELS = ("base", "teacher", "students")


def read_yaml(path: Path, *, wanted: str = "a spec in YAML (see examples/)") -> dict[str, Any]:
    """The mapping in ``path``, which is ``wanted`` of it.

    Raises:
        SpecError: no such file, not UTF-8, not YAML (with the line), a key given twice, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError([f"{path}: no such file; expected {wanted}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read: {error}; expected {wanted}, UTF-8"]) from None
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise SpecError([f"{path}: found {type(raw).__name__}; expected keys with values, such as `name: …` (YAML)"])
    return raw


def set_values(raw: Mapping[str, Any], overrides: Sequence[str], path: Path) -> dict[str, Any]:
    """A copy of ``raw`` in which each ``key.path=value`` (the value in YAML) is set.

    Raises:
        SpecError: an override without ``=``, one whose value is not YAML, or one that goes below a plain value.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(raw))
    for override in overrides:
        key, mark, text = override.partition("=")
        parts = key.strip().split(".")
        if not mark or not all(parts):
            raise SpecError([f"--set {override}: expected key.path=value, such as search.seed=3"])
        section = changed
        for depth, part in enumerate(parts[:-1], 1):
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise SpecError([f"--set {override}: {'.'.join(parts[:depth])} in {path} holds a value, no keys"])
        section[parts[-1]] = _parse(text, f"--set {override}")
    return changed


def resolve_paths(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of ``raw`` with the paths of rows and models absolute, taken from ``folder``.

    URIs, built-in data and hub ids stay. A model is a path if it starts with ``.``, ``/`` or ``~``, or lies in
    ``folder``.
    """
    resolved: dict[str, Any] = dict(raw)
    for section, names in (("task", _SOURCES), ("model", _MODELS)):
        if isinstance(raw.get(section), dict):
            values = dict(raw[section])
            resolved[section] = values | {
                name: _resolved(values[name], section, folder) for name in names if name in values
            }
    return resolved


def _resolved(value: Any, section: str, folder: Path) -> Any:
    """A reference, or those in a list; anything else as it is."""
    if isinstance(value, list):
        return [_resolved(item, section, folder) for item in value]
    if isinstance(value, str) and _is_path(value, section, folder):
        return str((folder / Path(value).expanduser()).resolve())
    return value


def _is_path(value: str, section: str, folder: Path) -> bool:
    if not value or "://" in value or value.startswith((BUILTIN, "package:")):
        return False
    return section == "task" or value.startswith((".", "/", "~")) or (folder / value).is_dir()


class _Loader(yaml.SafeLoader):
    """YAML that also takes ``1e-4`` for a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError([f"{source}: {where}{error.problem or error}; expected YAML"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError([f"{source}: {' '.join(str(error).split())}; expected YAML"]) from None
