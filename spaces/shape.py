"""The shape of a model: what its serving cost depends on beside precision and target, and never its weights."""

from typing import Annotated

from pydantic import Field

from spaces.canonical import Frozen


class Shape(Frozen):
    """A base model and what stages have made of it, as far as it changes the deployed graph."""

    base: str
    """Fingerprint of the base model."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Layers that are left; None: the base's own number."""
