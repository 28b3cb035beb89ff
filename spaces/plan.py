"""A plan: the chain of stages that one trial carries out, and the names under which its results are found again."""

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from pydantic import Field

from spaces.canonical import canonical_json, fingerprint, identifying_fields, is_said
from spaces.stages import Chain, Stage, Training


class Searchable(Protocol):
    """What a search has to know of a plan, whoever carries it out."""

    @property
    def fingerprint(self) -> str:
        """Its name."""

    @property
    def shape(self) -> Hashable:
        """What its serving costs depend on."""

    @property
    def seed(self) -> int:
        """Of all that is random in it."""

    def to_json(self) -> str:
        """All of it, as text."""


class Plan(Chain):
    """A chain of stages on a base model, the data it is trained on, and the seed of all that is random in it."""

    data: str = Field(min_length=1)
    """Fingerprint of the tokenised training and validation data (``trainers.tokens``)."""
    seed: int = Field(default=0, ge=0)

    def prefix(self, length: int) -> "Plan":
        """The plan's first ``length`` stages."""
        return self.model_copy(update={"stages": self.stages[:length]})

    @property
    def fingerprint(self) -> str:
        """The name of the artifact that this plan ends in. Independent of host, path and number of workers."""
        return fingerprint(_identity(self) | {"data": self.data, "seed": self.seed})

    def on_same_data(self, chain: Chain) -> "Plan":
        """The plan that carries out ``chain``, a teacher of one of the stages, on the same data with the same seed."""
        return Plan(base=chain.base, stages=chain.stages, data=self.data, seed=self.seed)

    def trained_prefixes(self) -> Iterator["Plan"]:
        """Every prefix that ends in training, teachers' before those that need them; the last one is what is deployed.

        One prefix may come more than once (a student that starts from its own teacher).
        """
        for length, stage in enumerate(self.stages, 1):
            for teacher in stage.teachers:
                yield from self.on_same_data(teacher).trained_prefixes()
            if isinstance(stage, Training):
                yield self.prefix(length)

    def to_json(self) -> str:
        """The plan as canonical JSON; ``Plan.model_validate_json`` reads it back."""
        return canonical_json(self)


def _identity(chain: Chain) -> dict[str, Any]:
    return {"base": chain.base, "stages": [_stage_identity(stage) for stage in chain.stages]}


def _stage_identity(stage: Stage) -> dict[str, Any]:
    fields = {
        name: _chains_by_identity(value)
        for name, value in identifying_fields(stage).items()
        if not is_said(stage, name)
    }
    return {**fields, "version": stage.version}


def _chains_by_identity(value: Any) -> Any:
    """A chain, or several, as what identifies it; anything else as it is."""
    if isinstance(value, Chain):
        return _identity(value)
    if isinstance(value, tuple) and value and all(isinstance(item, Chain) for item in value):
        return [_identity(item) for item in value]
    return value
