"""One text for one value, and its fingerprint.

Fingerprints decide what is reused, so they hold what *is* (settings, content hashes) and never what is merely
*pulled* (paths, hosts, worker counts). A type without an agreed form raises: hashing ``str(o)`` would give one
object two names, or two objects one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

_BLOCK_BYTES = 1 << 20


class _Later:
    """See ``LATER``."""


LATER = _Later()
"""Marks a field that came after models of its kind had been fingerprinted: ``Annotated[bool, LATER] = False``.

While it has its default it is left out, so that what was made before it came is still found.
"""


class _Said:
    """See ``SAID``."""


SAID = _Said()
"""Marks a field of a stage that is for people alone: it is written down, but no part of the plan's fingerprint."""


class Frozen(BaseModel):
    """Immutable settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: keys sorted, no spaces, floats in Python's shortest exact form.

    Takes pydantic models, mappings with string keys, lists, tuples, strings, booleans, integers, finite floats, None.

    Raises:
        TypeError: another type, or a key that is not a string; the place in the value is named.
        ValueError: a float that is NaN or infinite.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """SHA-256 of ``canonical_json(value)``, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def identifying_fields(model: BaseModel) -> dict[str, Any]:
    """The fields of ``model`` that tell it from others, by name: all but those marked ``LATER`` at their default."""
    return {
        name: value
        for name, field in type(model).model_fields.items()
        if (value := getattr(model, name)) != field.default or LATER not in field.metadata
    }


def is_said(model: BaseModel, name: str) -> bool:
    """Whether the field called ``name`` is for people alone."""
    return SAID in type(model).model_fields[name].metadata


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form; a fingerprint needs a finite number")
        return value + 0.0  # -0.0 and 0.0 are one value
    if isinstance(value, BaseModel):
        return {name: _plain(item, f"{where}.{name}") for name, item in identifying_fields(value).items()}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}; keys must be strings")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form; give it one in spaces/canonical.py")
