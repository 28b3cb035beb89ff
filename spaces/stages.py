"""The steps that a plan is made of: typed, validated, frozen settings. Data, no code.

A stage says *what* is done to a model. How it is done is a function in ``trainers`` with the stage's ``kind`` as its
name in ``trainers.run_stage``.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Immutable settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimisation(Frozen):
    """How weights are fitted: AdamW with a warm-up and then a linear fall to zero."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimiser step over all workers together."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps during which the rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of matrices; embeddings, norms and biases have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Zero by default: faster, and the result then does not depend on the number of workers."""


class Lora(Frozen):
    """Low-rank adaptation, ΔW = (alpha / rank) B A with B = 0 at the start. [Hu2021] Eq. 3."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target: Literal["all", "attention"] = "all"
    """Which linear layers carry an adapter: all of them, or those of attention only."""


class _Step(Frozen):
    """What every stage has."""

    @property
    def teachers(self) -> tuple["Chain", ...]:
        """The chains whose models it needs beside the one that it works on."""
        return ()


class Finetune(_Step):
    """Train on the gold labels; with ``lora``, only adapters and the head, merged into the weights at the end."""

    trains: ClassVar[bool] = True
    version: ClassVar[int] = 1
    """Raise it when the code behind the stage changes its result: old artifacts are then not found again."""

    kind: Literal["finetune"] = "finetune"
    optimisation: Optimisation
    lora: Lora | None = None


class SelectLayers(_Step):
    """Keep some transformer layers of the model so far, with its embeddings and head: how a student begins."""

    trains: ClassVar[bool] = False
    version: ClassVar[int] = 1

    kind: Literal["select_layers"] = "select_layers"
    layers: tuple[int, ...] = Field(min_length=1)
    """Which layers stay, counted from 0 at the input, rising."""

    @model_validator(mode="after")
    def _rising(self) -> "SelectLayers":
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"`layers` must be rising and not negative, but got {self.layers}")
        return self


class Distill(_Step):
    """Train on a teacher's distribution: alpha T² KL(teacher ‖ student) + (1 - alpha) CE. [Hinton2015] § 2."""

    trains: ClassVar[bool] = True
    version: ClassVar[int] = 1

    kind: Literal["distill"] = "distill"
    optimisation: Optimisation
    teacher: "Chain"
    """The model whose outputs teach: a chain of its own, trained once however many plans name it."""
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the soft loss at the first step."""
    alpha_end: float = Field(ge=0, le=1)
    """Weight of the soft loss at the last step; moves linearly. Equal to ``alpha``: it stays."""

    @property
    def teachers(self) -> tuple["Chain", ...]:
        return (self.teacher,)


Stage = Annotated[Finetune | SelectLayers | Distill, Field(discriminator="kind")]


class Chain(Frozen):
    """A base model and the stages applied to it, in order."""

    base: str = Field(min_length=1)
    """Fingerprint of the base model's content (``trainers.models.inspect_model``)."""
    stages: tuple[Stage, ...] = ()


Distill.model_rebuild()
