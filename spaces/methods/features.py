"""What a student takes over from inside its teacher, beside or before the teacher's answers."""

from typing import Literal

from pydantic import Field, model_validator

from spaces.canonical import Frozen
from spaces.choosers import Chooser
from spaces.ranges import Choice
from spaces.space import Space

FeatureKind = Literal["hidden", "attention", "relation"]
_WORDS: dict[FeatureKind, str] = {
    "hidden": "hidden states",
    "attention": "attention",
    "relation": "relations between tokens",
}


class Feature(Frozen):
    """One kind of feature, compared token by token: the teacher has to read the student's tokens."""

    kind: FeatureKind
    """``hidden``: the states of all layers and of the embeddings, the student's under a learned projection.
    ``attention``: the attention of all layers. ``relation``: how queries, keys and values of the last layer relate."""
    num_relation_heads: int | None = Field(default=None, ge=1)
    """Of ``relation``: into how many heads queries, keys and values are split anew; where that does not divide a width,
    the next smaller number that divides all of them."""

    @model_validator(mode="after")
    def _heads_of_relations(self) -> "Feature":
        if (self.num_relation_heads is not None) is not (self.kind == "relation"):
            raise ValueError(f"`num_relation_heads` belongs to `relation` alone, but got {self!r}")
        return self

    def say(self) -> str:
        """In words."""
        return _WORDS[self.kind]


RELATION_HEADS = Choice("relation_heads", (48, 24, 12), summary="heads in which relations between tokens are compared")


def pick_feature(space: Space, chooser: Chooser, kind: FeatureKind) -> Feature:
    """A feature of ``kind``, its own settings picked."""
    heads = space.choice(chooser, RELATION_HEADS) if kind == "relation" else None
    return Feature(kind=kind, num_relation_heads=heads)
