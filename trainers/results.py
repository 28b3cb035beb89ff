"""What comes back of a plan that was carried out. Plain values: they travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One deployed variant as a worker measured it."""

    precision: str
    value: float
    """The task's metric."""
    low: float
    high: float
    """Ends of the 95 % interval."""
    predictions: tuple[int, ...]
    """Label index of each row."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a worker returns of a plan."""

    variants: tuple[Measured, ...]
    curve: tuple[tuple[float, float], ...]
    """(fidelity, quality) at each epoch of the plan's last stage."""
    train_seconds: float
    """Of all stages, as if alone."""
    spent_seconds: float
    """Of the stages that this plan had to train itself."""
    train_memory_mb: float
    """The largest peak of memory among the stages, 10⁶ bytes."""
    overfit: float
    """Train metric minus validation metric, before deployment."""
    forgetting: float | None
    """What was lost on the task's `retain` rows (``trainers.forgetting``); None without such rows."""
    overhead_seconds: float
    """Of everything else: loading, deploying, evaluating, waiting for decisions."""
    host: str
    curve_seconds: tuple[float, ...] = ()
    """Training seconds of the last stage at each point of the curve."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What the plan's stages had to say of themselves, by name."""
