"""What comes back of a plan that was carried out. Plain values: they travel between processes."""

from dataclasses import dataclass


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
    overhead_seconds: float
    """Of everything else: loading, deploying, evaluating, waiting for decisions."""
    host: str
