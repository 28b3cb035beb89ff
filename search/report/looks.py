"""The colours and shapes by which the report tells things apart."""

from dataclasses import dataclass
from typing import Any

from spaces.catalogue import CATALOGUE

MUTED = "#8b8f98"
COLOURS = ("#3b7dd8", "#e0702e", "#8d63c9", "#2a9d74", "#c2477f", "#b8901a", "#3aa0b5", "#8a6d5a")
"""Tell apart with any colour vision in pairs that matter, and readable on white and on near-black."""
_SHAPES = (("circle", "solid"), ("diamond", "dash"), ("square", "dot"))
"""plotly's symbol, and the dash of a line through such."""
_FILLINGS = {"fp32": "", "int8": "-open", "bf16": "-dot", "int4": "-open-dot"}
"""What a precision adds to plotly's symbol."""
_DOT = "#ffffff"


@dataclass(frozen=True)
class Look:
    """How one of several things is drawn."""

    colour: str
    shape: str
    """circle, diamond, square; cross of what is none of the several."""
    dash: str

    @property
    def line(self) -> dict[str, Any]:
        """A line of its colour and dash, as plotly's own data."""
        return {"color": self.colour, "dash": self.dash, "width": 2}

    @property
    def marker(self) -> dict[str, Any]:
        """A point on such a line."""
        return {"color": self.colour, "symbol": self.shape, "size": 9}

    def symbol(self, precision: str) -> str:
        """plotly's symbol of its shape at a precision."""
        return f"{self.shape}{_FILLINGS.get(precision, '')}"

    def edge(self, precision: str) -> str:
        """The colour of the symbol's edge, with which plotly draws the dot in a filled one as well."""
        return _DOT if _FILLINGS.get(precision) == "-dot" else self.colour


UNKNOWN = Look(MUTED, "cross", "solid")


def numbered(number: int) -> Look:
    """The look of the thing with this number, from 0: the colours in one shape, then in the next."""
    shape, dash = _SHAPES[number // len(COLOURS) % len(_SHAPES)]
    return Look(COLOURS[number % len(COLOURS)], shape, dash)


def look(strategy: str) -> Look:
    """The strategy's own, the same in every plot and table."""
    names = list(CATALOGUE)
    return numbered(names.index(strategy)) if strategy in names else UNKNOWN
