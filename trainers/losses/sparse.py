"""Forward KL to a teacher of whose distributions only a part was kept.

Shapes: P = positions (any leading dimensions), C = classes or vocabulary, K = kept classes, N = distinct drawn classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.losses.divergences import forward_kl
from trainers.losses.reduction import NEVER, kl, log_softmax, mean, widen


@dataclass(frozen=True)
class TopKTargets:
    """A teacher's likeliest classes, and all others as one."""

    ids_PK: Tensor
    """Classes, int64, none twice."""
    log_probs_PK: Tensor
    log_tail_P: Tensor
    """Log-probability of all classes that are not in ``ids_PK`` together."""
    temperature: float
    """At which the teacher answered, and the student must."""

    def to(self, device: torch.device) -> "TopKTargets":
        """The same on ``device``."""
        return replace(
            self,
            ids_PK=self.ids_PK.to(device),
            log_probs_PK=self.log_probs_PK.to(device),
            log_tail_P=self.log_tail_P.to(device),
        )


@dataclass(frozen=True)
class SampledTargets:
    """Classes drawn from a teacher's distribution, with replacement."""

    ids_PN: Tensor
    """Classes that were drawn, int64, none twice; a position with fewer of them is filled up with any."""
    counts_PN: Tensor
    """How often each was drawn; 0 where filled up."""
    temperature: float
    """At which the teacher answered, and the student must."""

    def to(self, device: torch.device) -> "SampledTargets":
        """The same on ``device``."""
        return replace(self, ids_PN=self.ids_PN.to(device), counts_PN=self.counts_PN.to(device))


Targets = Tensor | TopKTargets | SampledTargets
"""What is known of a teacher's distributions: all of them, as logits or log-probabilities P × C, or a part."""


def kept_forward_kl(
    student_PC: Tensor, teacher: Targets, mask_P: Tensor, *, temperature: float, count: float | None = None
) -> Tensor:
    """KL(p ‖ q) at ``temperature``, from as much as was kept of p.

    Raises:
        ValueError: what was kept is of another temperature.
    """
    if isinstance(teacher, Tensor):
        return forward_kl(student_PC, teacher, mask_P, temperature=temperature, count=count)
    if teacher.temperature != temperature:
        raise ValueError(
            f"the teacher's outputs were kept at temperature {teacher.temperature:g} and cannot teach at "
            f"{temperature:g}; distil at {teacher.temperature:g}, or keep them anew or in full"
        )
    if isinstance(teacher, TopKTargets):
        return top_k_forward_kl(student_PC, teacher, mask_P, count=count)
    return sampled_forward_kl(student_PC, teacher, mask_P, count=count)


def top_k_forward_kl(student_PC: Tensor, teacher: TopKTargets, mask_P: Tensor, *, count: float | None = None) -> Tensor:
    """KL(p ‖ q) with all classes outside the teacher's top k taken together as one.

    Never more than the KL over all classes; 0 also where the two differ only within the tail. Without that bucket, the
    best student would be p renormalised over the top k.
    """
    log_q = log_softmax(student_PC, temperature=teacher.temperature)
    # Not -inf: where every class was kept, the tail's gradient would be NaN.
    log_tail = log_q.scatter(-1, teacher.ids_PK, NEVER).logsumexp(dim=-1)
    student = _beside(log_q.gather(-1, teacher.ids_PK), log_tail)
    # Kept with all digits of a float32, the parts add up to 1 but for 1e-7.
    kept = _beside(widen(teacher.log_probs_PK), widen(teacher.log_tail_P)).to(student.dtype).log_softmax(dim=-1)
    return mean(kl(kept, student), mask_P, count)


def sampled_forward_kl(
    student_PC: Tensor, teacher: SampledTargets, mask_P: Tensor, *, count: float | None = None
) -> Tensor:
    """KL(t ‖ q), where t is the share of the draws that fell on each class. [Anshumann2025].

    The gradient's expectation over the draws is that of KL(p ‖ q). The value is larger than it by a constant that does
    not depend on the student: t is more peaked than p.
    """
    log_q = log_softmax(student_PC, temperature=teacher.temperature).gather(-1, teacher.ids_PN)
    counts = teacher.counts_PN.to(log_q.dtype)
    share = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return mean(kl(share.log(), log_q), mask_P, count)


def _beside(log_probs_PK: Tensor, log_tail_P: Tensor) -> Tensor:
    return torch.cat([log_probs_PK, log_tail_P.unsqueeze(-1)], dim=-1)
