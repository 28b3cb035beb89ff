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

from pydantic import BaseModel

_BLOCK_BYTES = 1 << 20


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
        return {name: _plain(getattr(value, name), f"{where}.{name}") for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}; keys must be strings")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form; give it one in spaces/canonical.py")
