"""The steps that a plan is made of: typed, validated, frozen settings. Data, no code.

A stage says *what* is done to a model and names the function in ``trainers`` that does it. The stages themselves stand
in ``spaces.methods``, each with the strategies that are built from it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from spaces.canonical import Frozen
from spaces.shape import Shape


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

    def say(self) -> str:
        """In words: epochs and peak rate."""
        return f"{'1 epoch' if self.epochs == 1 else f'{self.epochs} epochs'}, rate {_say_rate(self.learning_rate)}"


class Stage(Frozen):
    """One step on a model. A subclass gives ``kind`` a default: the name under which it is read back."""

    carried_out_by: ClassVar[str]
    """``module:function`` that does it: ``function(model, job)`` where it trains, else ``function(model, stage,
    context=…)``."""
    version: ClassVar[int] = 1
    """Raise it when the code behind the stage changes its result: old artifacts are then not found again."""

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if isinstance(name := cls.model_fields["kind"].default, str):
            _KINDS[name] = cls

    @property
    def teachers(self) -> tuple["Chain", ...]:
        """The chains whose models it needs beside the one that it works on."""
        return ()

    @property
    def start(self) -> str | None:
        """Fingerprint of the pretrained model at which a chain begins that has this for its first stage; None: at its
        base.
        """
        return None

    @property
    def reader(self) -> str | None:
        """Fingerprint of the vocabulary by which the model reads after the stage; None: by the one before."""
        return None

    def reshape(self, shape: Shape) -> Shape:
        """The shape of the model after the stage. Raises ``ValueError`` where the stage cannot follow."""
        return shape

    def say(self) -> str:
        """In a few words, for people."""
        raise NotImplementedError(f"{type(self).__name__} has no words for people; give it a `say`")


class Training(Stage):
    """A stage that fits weights; its result is published and found again."""

    optimisation: Optimisation

    @property
    def passes(self) -> float:
        """About how often it goes over all training rows, forward and back: by this its time is foreseen."""
        return self.optimisation.epochs

    @property
    def prefix(self) -> str:
        """Generation: what stands before each prompt that the trained model is asked."""
        return ""

    @property
    def reasons(self) -> bool:
        """Generation: whether the trained model writes a rationale before its response."""
        return False

    @property
    def num_shots(self) -> int:
        """Generation: how many rows of train, with their responses, stand before each prompt that it is asked."""
        return 0


_KINDS: dict[str, type[Stage]] = {}


def _read(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"unknown stage {kind!r}; known: {', '.join(sorted(_KINDS))}")
    return _KINDS[kind].model_validate(value)


AnyStage = Annotated[SerializeAsAny[Stage], BeforeValidator(_read)]
"""Any stage, read back from JSON by its ``kind``."""


class Chain(Frozen):
    """A base model and the stages applied to it, in order."""

    base: str = Field(min_length=1)
    """Fingerprint of the base model's content (``trainers.models.inspect_model``)."""
    stages: tuple[AnyStage, ...] = ()

    @model_validator(mode="after")
    def _follow(self) -> "Chain":
        # Asked for what it raises: a stage that cannot follow those before it.
        _ = self.shape
        if late := [stage for stage in self.stages[1:] if stage.start is not None]:
            raise ValueError(f"`{late[0].say()}` must be the first stage, or what comes before it is lost")
        return self

    @property
    def start(self) -> str:
        """Fingerprint of the pretrained model whose weights the first stage is given."""
        own = self.stages[0].start if self.stages else None
        return self.base if own is None else own

    @property
    def shape(self) -> Shape:
        """The shape of the model that the chain ends in."""
        shape = Shape(base=self.base)
        for stage in self.stages:
            shape = stage.reshape(shape)
        return shape

    @property
    def last_training(self) -> Training | None:
        """The stage that says how the chain's model is asked; None where nothing is trained."""
        return next((stage for stage in reversed(self.stages) if isinstance(stage, Training)), None)

    @property
    def reader(self) -> str:
        """What tells whose tokens the model reads: the fingerprint of a pretrained model, or of a cut vocabulary."""
        return next((stage.reader for stage in reversed(self.stages) if stage.reader is not None), self.base)

    def say_teacher(self) -> str:
        """In words, as the one that teaches."""
        epochs = sum(stage.optimisation.epochs for stage in self.stages if isinstance(stage, Training))
        return f"a teacher fine-tuned for {epochs} epochs" if epochs else "the base as it is"


class Taught(Training):
    """A stage with one teacher."""

    teacher: Chain
    """The model that teaches: a chain of its own, trained once however many plans name it."""

    @property
    def teachers(self) -> tuple[Chain, ...]:
        return (self.teacher,)


def _say_rate(rate: float) -> str:
    """1e-4, 7.1e-5: without the zero that Python writes before a small exponent."""
    digits, _, exponent = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
