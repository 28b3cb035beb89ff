"""Docstrings as data: names masked, splits disjoint, made once."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trainers import docstrings
from trainers.docstrings import LIBRARIES, MASK, clean, docstring_rows
from trainers.readers import DataError

SOURCE = '''
"""Of the module: not taken."""
class A:
    """Of a class."""
    async def f(self):
        """Of a coroutine
        on two lines.

        Another paragraph.
        """
def g(): "\\d of a function"
def h(): pass
'''


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Few texts of two libraries, and a cache of its own."""
    monkeypatch.setattr(docstrings, "TEXTS_PER_LIBRARY", 60)
    monkeypatch.setattr(docstrings, "LIBRARIES", ("networkx", "pandas"))
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_docstrings_of_functions_and_classes_are_found() -> None:
    texts = list(docstrings.docstrings(SOURCE))
    assert [text.split("\n")[0] for text in texts] == ["Of a class.", "\\d of a function", "Of a coroutine"]
    assert list(docstrings.docstrings("def broken(:")) == []
    assert list(docstrings.docstrings("null \0 byte")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Move a PyTorch module, or\n    torch.nn.Module, to Ray.", f"Move a {MASK} module, or {MASK}, to {MASK}."),
        ("An array: np.ndarray or `pandas.DataFrame`.", f"An array: {MASK} or `{MASK}`."),
        ("Of scikit-learn, Hugging Face and torch_geometric.", f"Of {MASK}, {MASK} and {MASK}."),
        ("The Rayleigh array of a transformer ends here.", "The Rayleigh array of a transformer ends here."),
        ("First paragraph of four words.\n\nSecond.", "First paragraph of four words."),
        ("Too short here.", None),
        ("word " * 33, None),
    ],
)
def test_library_names_are_masked_in_the_first_paragraph(text: str, expected: str | None) -> None:
    assert clean(text) == expected


def test_no_text_is_twice_and_the_cache_is_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = docstring_rows()
    pairs = [pair for split in rows.values() for pair in split]
    texts = [text for text, _ in pairs]
    assert list(rows) == ["train", "validation", "test"]
    assert len(texts) == len(set(texts)) == 120
    assert {label for _, label in pairs} == {"networkx", "pandas"}
    assert not [text for text in texts if text and ("networkx" in text.lower() or "pandas" in text.lower())]
    assert 60 <= len(rows["train"]) <= 105
    (cached,) = small.iterdir()
    assert pq.read_table(io.BytesIO(cached.read_bytes())).num_rows == 120

    monkeypatch.setattr(docstrings, "harvest", lambda: pytest.fail("harvested twice"))
    assert docstring_rows() == rows


def test_a_broken_cache_is_made_anew_and_none_is_no_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = docstring_rows()
    (cached,) = small.iterdir()
    cached.write_bytes(b"broken")
    assert docstring_rows() == rows
    (small / "file").write_text("")
    monkeypatch.setenv("DISTUNE_CACHE", str(small / "file" / "below"))
    assert docstring_rows() == rows


def test_a_library_that_is_missing_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "LIBRARIES", ("no_such_library",))
    with pytest.raises(DataError, match="no_such_library is not installed"):
        docstring_rows()
    assert not small.exists()


def test_the_libraries_are_in_order() -> None:
    assert list(LIBRARIES) == sorted(set(LIBRARIES))
