"""A mixture of experts as the teacher: adapters on one frozen base, each trained on a part of the rows."""

from typing import Any, Literal

from pydantic import Field, model_validator

from spaces.canonical import Frozen
from spaces.choosers import Chooser
from spaces.methods.cut import cut
from spaces.methods.distill import ALPHA, ALPHA_END, TEMPERATURE
from spaces.methods.finetune import EPOCHS, STUDENT_LEARNING_RATE, Lora
from spaces.methods.teachers import recipe
from spaces.ranges import Choice, Range
from spaces.space import Space
from spaces.stages import Chain, Optimisation, Stage, Training
from spaces.strategy import Strategy

ExpertSplit = Literal["cluster", "seed", "domain"]
ExpertWeights = Literal["gate", "camkd", "uniform"]

_LORA = Lora(rank=16, alpha=32.0)
_LORA_RATE = 10
"""The best rate of adapters is about ten times that of full fine-tuning, whatever their rank."""
_GATE = Optimisation(learning_rate=1e-2, epochs=20, batch_size=256)
_BALANCE = 0.1
"""As much as in [Shazeer2017]."""


class Part(Frozen):
    """Which of the training rows an expert learns from."""

    split: ExpertSplit
    """``cluster``: rows that are alike to the frozen base. ``seed``: all of them, in an order of the expert's own.
    ``domain``: those of some of the task's domains."""
    index: int = Field(ge=0)
    """Which part, from 0."""
    num_parts: int | None = Field(default=None, ge=1)
    """Of how many. None for ``seed``, where an expert is the same however many there are beside it."""
    domains: str | None = None
    """Fingerprint of the rows' domains, where these tell the parts apart."""

    @model_validator(mode="after")
    def _is_one_of_the_parts(self) -> "Part":
        if (self.num_parts is None) is not (self.split == "seed"):
            raise ValueError(f"`num_parts` is for splits of the rows, not for seed, but got {self!r}")
        if self.num_parts is not None and self.index >= self.num_parts:
            raise ValueError(f"`index < num_parts` must hold, but got ({self.index=}, {self.num_parts=})")
        if (self.domains is None) is (self.split == "domain"):
            raise ValueError(f"`domains` are for the split by domain, which needs them, but got {self!r}")
        return self

    def say(self) -> str:
        """In words, counted from 1."""
        return f"part {self.index + 1}{f' of {self.num_parts}' if self.num_parts else ''} by {self.split}"


class Expert(Training):
    """Train adapters and a head on a part of the rows. What is kept are these alone: the base is everyone's."""

    carried_out_by = "trainers.experts.adapters:expert"

    kind: Literal["expert"] = "expert"
    lora: Lora
    part: Part

    @property
    def passes(self) -> float:
        return self.optimisation.epochs / (self.part.num_parts or 1)

    def say(self) -> str:
        return f"expert ({self.lora.say()}, {self.part.say()}, {self.optimisation.say()})"


class Gate(Training):
    """Learn which expert to listen to at which row: softmax of a linear map of the frozen base's pooled features.

    Trained on the cross-entropy of the mixture, plus ``balance`` · CV² of how much each expert is used.
    """

    carried_out_by = "trainers.experts.gate:gate"

    kind: Literal["gate"] = "gate"
    experts: tuple[Chain, ...] = Field(min_length=1)
    temperature: float = Field(gt=0)
    """That of the mixture."""
    balance: float = Field(ge=0)

    @property
    def teachers(self) -> tuple[Chain, ...]:
        return self.experts

    @property
    def passes(self) -> float:
        # Its time goes into the features: one pass forward, which is a third of one forward and back.
        return 1 / 3

    def say(self) -> str:
        return f"gate over {len(self.experts)} experts ({self.optimisation.say()})"


class DistillExperts(Training):
    """Train on a mixture of experts: (1 - alpha) CE + alpha T² KL(p̄ ‖ student), p̄ = Σ_k w_k(row) softmax(z_k / T)."""

    carried_out_by = "trainers.experts.mixture:distill_experts"

    kind: Literal["distill_experts"] = "distill_experts"
    experts: tuple[Chain, ...] = Field(min_length=1)
    """Chains that end in an ``Expert`` each, on one base."""
    weights: ExpertWeights
    """``gate``: learned from the features of a row. ``camkd``: by how well an expert knows the row's label.
    [Zhang2022]. ``uniform``."""
    gate: Chain | None = None
    """Ends in the ``Gate``, where that gives the weights."""
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0, le=1)
    """Weight of the soft loss at the first step."""
    alpha_end: float = Field(ge=0, le=1)
    """At the last step; it moves linearly."""

    @model_validator(mode="after")
    def _has_the_gate_it_needs(self) -> "DistillExperts":
        if (self.weights == "gate") is (self.gate is None):
            raise ValueError(f"a gate must be there where it gives the weights, and only there, but got {self.weights}")
        if len({chain.base for chain in self.experts}) > 1:
            raise ValueError("experts must share one base, but got several")
        return self

    @property
    def teachers(self) -> tuple[Chain, ...]:
        return (*self.experts, *((self.gate,) if self.gate else ()))

    def say(self) -> str:
        last = self.experts[-1].stages[-1]
        split = f" by {last.part.split}" if isinstance(last, Expert) else ""
        loss = f"temperature {self.temperature:.3g}, soft weight {self.alpha:.2g} to {self.alpha_end:.2g}"
        how = f"weighted by {self.weights} ({loss}, {self.optimisation.say()})"
        return f"distil from {len(self.experts)} experts{split}, {how}"


NUM_EXPERTS = Range("num_experts", 2, 4, 2, "integer", summary="experts of a mixture")
EXPERT_SPLIT = Choice(
    "expert_split",
    ("cluster", "seed", "domain"),
    summary="what tells the experts' rows apart",
    needs={"domain": "domains"},
)
EXPERT_WEIGHTS = Choice("expert_weights", ("gate", "camkd", "uniform"), summary="how much each expert counts at a row")


def _moe_dft(space: Space, chooser: Chooser) -> tuple[Stage, ...]:
    experts = _experts(space, chooser)
    begin = cut(space, chooser)
    weights, temperature = space.choice(chooser, EXPERT_WEIGHTS), space.real(chooser, TEMPERATURE)
    gate = Gate(optimisation=_GATE, experts=experts, temperature=temperature, balance=_BALANCE)
    distill = DistillExperts(
        optimisation=space.optimisation(chooser, STUDENT_LEARNING_RATE, EPOCHS),
        experts=experts,
        weights=weights,
        gate=Chain(base=experts[0].base, stages=(gate,)) if weights == "gate" else None,
        temperature=temperature,
        alpha=space.real(chooser, ALPHA),
        alpha_end=space.real(chooser, ALPHA_END),
    )
    return (*begin, distill)


def _experts(space: Space, chooser: Chooser) -> tuple[Chain, ...]:
    """As many as picked, each by the picked teacher's recipe, at a rate for adapters."""
    full = recipe(space, chooser)
    optimisation = full.model_copy(update={"learning_rate": _LORA_RATE * full.learning_rate})
    stages = (Expert(optimisation=optimisation, lora=_LORA, part=part) for part in _parts(space, chooser))
    return tuple(Chain(base=space.teacher_base or space.base, stages=(stage,)) for stage in stages)


def _parts(space: Space, chooser: Chooser) -> list[Part]:
    split: Any = space.choice(chooser, EXPERT_SPLIT)
    count = space.integer(chooser, NUM_EXPERTS)
    return [
        Part(
            split=split,
            index=index,
            num_parts=None if split == "seed" else count,
            domains=space.domains if split == "domain" else None,
        )
        for index in range(count)
    ]


MOE_DFT = Strategy(
    name="moe_dft",
    summary="student cut from the base, taught by a weighted mixture of low-rank experts and the gold labels",
    build=_moe_dft,
    parameters=(
        NUM_EXPERTS,
        EXPERT_SPLIT,
        EXPERT_WEIGHTS,
        ALPHA,
        ALPHA_END,
        TEMPERATURE,
        STUDENT_LEARNING_RATE,
        EPOCHS,
    ),
    kinds=("classification", "generation"),
    needs=("teacher",),
)
