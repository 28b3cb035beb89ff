"""``builtin:docstrings``: real text with natural labels on every machine, nothing downloaded.

Which library is a docstring from? The texts are first paragraphs of docstrings in libraries that are installed
wherever this package is. Their source is parsed, never imported, and names of libraries in the texts are masked.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spaces.canonical import fingerprint
from trainers.readers import DataError, Pairs
from trainers.storage import Storage, StorageError

LIBRARIES = ("networkx", "pandas", "ray", "scipy", "sympy", "torch", "transformers")
TEXTS_PER_LIBRARY = 600
"""At most; what occurs in two libraries is left out of both."""
WORDS = (4, 32)
"""Shortest and longest text."""
MASK = "library"

_VERSION = 1
_TEXTS_PER_FILE = 8
_SPARE = 1.1
"""Texts gathered for each that is wanted: some are dropped as occurring in two libraries."""
_NOT_OWN = frozenset({"test", "tests", "testing", "thirdparty", "thirdparty_files", "_vendor", "externals"})
_SHARES = (("train", 0.70), ("validation", 0.85), ("test", 1.0))
"""Splits and where, in [0, 1), the place of their texts ends."""
_NAMES = (
    r"(?:py)?torch[a-z]*",
    r"hugging[ _]?face|transformers|🤗",
    r"ray|rllib|raylet|anyscale",
    r"networkx|nx|pandas|pd|sympy|numpy|np|scipy|sklearn|scikit[- ]?learn|tensorflow|tf|keras|jax|flax",
)
_MASKED = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_NAMES)})(?![A-Za-z0-9])(?:[\w.]*\w)?", re.IGNORECASE)


def docstring_rows() -> Mapping[str, Pairs]:
    """(text, library) by split: train, validation, test. From the cache, or harvested in some seconds.

    The cache is in ``DISTUNE_CACHE``, else ``~/.cache/distune``; it is made anew for other versions of the libraries.

    Raises:
        DataError: a library is not installed.
    """
    storage = Storage(cache_folder())
    name = f"docstrings-{_key()[:16]}.parquet"
    with contextlib.suppress(OSError, StorageError, pa.ArrowException):
        return _by_split(pq.read_table(io.BytesIO(storage.read(name))))
    table = harvest()
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with contextlib.suppress(StorageError):  # without a cache it is harvested again, no more
        storage.write(name, buffer.getvalue())
    return _by_split(table)


def cache_folder() -> Path:
    """The user's folder for what can always be made again."""
    return Path(os.environ.get("DISTUNE_CACHE") or Path.home() / ".cache" / "distune")


def harvest() -> pa.Table:
    """Columns ``text``, ``label``, ``split``, sorted by the hash of the text."""
    texts = {library: set(_library_texts(_folder(library))) for library in LIBRARIES}
    everywhere = Counter(text for found in texts.values() for text in found)
    rows = [
        (_place(text), text, library)
        for library, found in texts.items()
        for text in sorted((text for text in found if everywhere[text] == 1), key=_place)[:TEXTS_PER_LIBRARY]
    ]
    rows.sort()
    return pa.table(
        {
            "text": [text for _, text, _ in rows],
            "label": [library for _, _, library in rows],
            "split": [_split(text) for _, text, _ in rows],
        }
    )


def clean(docstring: str) -> str | None:
    """First paragraph on one line, library names masked; None where it is too short or too long."""
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=1)[0]
    text = _MASKED.sub(MASK, " ".join(paragraph.split()))
    return text if WORDS[0] <= len(text.split()) <= WORDS[1] else None


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of the functions and classes in a file's ``source``; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text


def _library_texts(folder: Path) -> Iterator[str]:
    """Distinct texts of a library, from its files in the order of a hash, until there are enough."""
    seen: set[str] = set()
    files = sorted(_source_files(folder), key=lambda path: _place(path.relative_to(folder).as_posix()))
    for path in files:
        if len(seen) >= TEXTS_PER_LIBRARY * _SPARE:
            return
        found = {text for docstring in docstrings(path.read_text(errors="replace")) if (text := clean(docstring))}
        for text in sorted(found - seen, key=_place)[:_TEXTS_PER_FILE]:
            seen.add(text)
            yield text


def _source_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.py") if not _NOT_OWN & set(path.relative_to(folder).parts))


def _folder(library: str) -> Path:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise DataError([f"builtin:docstrings: {library} is not installed; pip install {library}"])
    return Path(next(iter(spec.submodule_search_locations)))


def _key() -> str:
    versions = {}
    for library in LIBRARIES:
        _folder(library)
        versions[library] = importlib.metadata.version(library)
    settings = [TEXTS_PER_LIBRARY, WORDS, _TEXTS_PER_FILE, _VERSION]
    return fingerprint({"versions": versions, "settings": settings})


def _place(text: str, purpose: str = "order") -> float:
    """A place in [0, 1) that depends on the text alone, another for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{text}".encode(errors="replace")).digest()[:6], "big") / 2**48


def _split(text: str) -> str:
    # Another hash than the one that picks texts: those picked have low places in it.
    return next(name for name, end in _SHARES if _place(text, "split") < end)


def _by_split(table: pa.Table) -> dict[str, Pairs]:
    rows: dict[str, Pairs] = {name: [] for name, _ in _SHARES}
    columns = (table.column(name).to_pylist() for name in ("text", "label", "split"))
    for text, label, split in zip(*columns, strict=True):
        rows[split].append((text, label))
    return rows
