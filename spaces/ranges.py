"""What a parameter may be: a number within bounds, or one of some options. The user narrows it by its name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from spaces.choosers import Value
from spaces.needs import Lacking, NeedName


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
    need: NeedName | None = None
    """What it has no meaning without."""


@dataclass(frozen=True)
class Choice:
    """The options of a parameter, the first of which is its default."""

    name: str
    options: tuple[Value, ...]
    summary: str = ""
    needs: Mapping[Value, NeedName] = field(default_factory=dict, hash=False)
    """What single options need, by option."""
    need: NeedName | None = None
    """What it has no meaning without."""

    @property
    def default(self) -> Value:
        """The first option."""
        return self.options[0]

    def serves(self, option: Value, lacking: Lacking) -> bool:
        """Whether ``option`` can be picked where these needs are not met."""
        return self.needs.get(option) not in lacking

    def without(self, lacking: Lacking) -> "Choice":
        """The options that can be picked where these needs are not met; there may be none."""
        return replace(self, options=tuple(option for option in self.options if self.serves(option, lacking)))


Parameter = Range | Choice
