"""The shape of a model: what its serving cost depends on beside precision and target, and never its weights."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from spaces.canonical import LATER, Frozen

Placement = Literal["pfeiffer", "houlsby"]


class Adapters(Frozen):
    """Bottleneck adapters in every layer, part of the deployed graph."""

    placement: Placement
    """``pfeiffer``: behind the feed-forward block; ``houlsby``: behind attention as well."""
    reduction: int = Field(ge=1)
    """Hidden size over the bottleneck's."""

    def say(self) -> str:
        """In a word that may be part of a file's name."""
        return f"{self.placement}-{self.reduction}"


class Shape(Frozen):
    """A base model and what stages have made of it, as far as it changes the deployed graph."""

    base: str
    """Fingerprint of the base model."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Layers that are left; None: the base's own number."""
    vocab_size: Annotated[int | None, Field(ge=1), LATER] = None
    """Tokens that are left; None: all of the base's."""
    adapters: Annotated[Adapters | None, LATER] = None
    width: Annotated[float | None, Field(gt=0, lt=1), LATER] = None
    """Share of the base's hidden channels, heads and neurons that is left; None: all of them."""
    prefix_tokens: Annotated[int | None, Field(ge=1), LATER] = None
    """Learnt keys and values that attention reads before a text's own, in every layer; None: none."""
    reasons: Annotated[bool, LATER] = False
    """Whether a rationale is written before each response: a request then takes longer."""
    num_shots: Annotated[int, Field(ge=0), LATER] = 0
    """Demonstrations before each prompt: a request is then longer."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Shape":
        """The shape that a row of a cost table is about; an older table lacks the columns of later fields."""
        return cls(**{name: row[name] for name in cls.model_fields if name in row})

    @property
    def additions(self) -> tuple[str, ...]:
        """What was put into the layers that are left, a word each."""
        adapters = (self.adapters.say(),) if self.adapters else ()
        return (*adapters, f"prefix-{self.prefix_tokens}") if self.prefix_tokens else adapters

    @property
    def details(self) -> tuple[str, ...]:
        """What tells its costs from those of the same layers as they are, a word each."""
        rationale = ("rationale",) if self.reasons else ()
        return (*self.additions, *rationale, *([f"{self.num_shots}-shot"] if self.num_shots else []))
