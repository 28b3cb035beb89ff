"""A plan: the chain of stages that one trial carries out, and the names under which its results are found again."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from spaces.canonical import canonical_json, fingerprint
from spaces.stages import Chain, Frozen, SelectLayers, Stage


class Shape(Frozen):
    """What serving cost depends on, beside precision and target: never on weights."""

    base: str
    """Fingerprint of the base model."""
    num_layers: int | None = None
    """Layers that are left; None: the base's own number."""


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
            if stage.trains:
                yield self.prefix(length)

    @property
    def shape(self) -> Shape:
        """The shape of the model that the plan ends in."""
        cuts = [stage for stage in self.stages if isinstance(stage, SelectLayers)]
        return Shape(base=self.base, num_layers=len(cuts[-1].layers) if cuts else None)

    def to_json(self) -> str:
        """The plan as canonical JSON; ``Plan.model_validate_json`` reads it back."""
        return canonical_json(self)


def _identity(chain: Chain) -> dict[str, Any]:
    return {"base": chain.base, "stages": [_stage_identity(stage) for stage in chain.stages]}


def _stage_identity(stage: Stage) -> dict[str, Any]:
    fields = {name: getattr(stage, name) for name in type(stage).model_fields}
    chains = {name: _identity(value) for name, value in fields.items() if isinstance(value, Chain)}
    return {**fields, **chains, "version": stage.version}
