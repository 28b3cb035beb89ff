"""What a parameter may be: a number within bounds, or one of some options. The user narrows it by its name."""

from dataclasses import dataclass
from typing import Literal

from spaces.choosers import Value


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, and its default. ``log``: spread evenly in its logarithm."""

    name: str
    low: float
    high: float
    default: float
    kind: Literal["integer", "real"] = "real"
    log: bool = False
    share: bool = False
    """Whether it is a weight or a share, so that no user can take it out of 0 to 1."""
    summary: str = ""


@dataclass(frozen=True)
class Choice:
    """The options of a parameter, the first of which is its default."""

    name: str
    options: tuple[Value, ...]
    summary: str = ""

    @property
    def default(self) -> Value:
        """The first option."""
        return self.options[0]


Parameter = Range | Choice
