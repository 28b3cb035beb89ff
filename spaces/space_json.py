"""A space as text, so that whoever reads a run can draw from it without models and data."""

from functools import cache

from pydantic import TypeAdapter

from spaces.space import Space

SPACE = "space.json"
"""Its name in a run's folder."""


def space_to_json(space: Space) -> bytes:
    """The whole space."""
    return _adapter().dump_json(space)


def space_from_json(text: bytes) -> Space:
    """The space in ``text``. Raises ``ValueError`` where it is none that this version knows."""
    return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Space]:
    return TypeAdapter(Space)
