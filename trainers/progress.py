"""What a plan reports while it is carried out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report from inside a plan, at the end of an epoch."""

    stage: int
    """Which trained stage of the plan, from 0; teachers that had to be trained count."""
    num_stages: int
    kind: str
    epoch: int
    """Epochs of the stage done."""
    epochs: int
    final: bool
    """Whether it is the plan's last stage: only then quality can be compared between plans."""
    quality: float | None
    """The task's metric on the validation split, of the model as it is now."""
    train_loss: float
    seconds: float
    """Training time of the stage so far."""
    restored: bool = False
    """Whether it is told once more, of an epoch that a checkpoint holds."""

    @property
    def fidelity(self) -> float:
        """Share of the plan's last stage that is done, 0 to 1; 0 before the last stage."""
        return self.epoch / self.epochs if self.final else 0.0
