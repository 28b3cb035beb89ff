"""What a search looks at: quality metrics and costs, their direction and unit, and constraints on them.

A constraint is a comparison written as text, ``latency_ms <= 5`` or ``accuracy >= 0.98 * baseline``. It is parsed by
the grammar below and never evaluated as code.
"""

import difflib
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]
_LEAST = 1e-12
"""Below what is measured of anything, so that every value has a logarithm."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A column of the ledger that can be optimised or constrained."""

    name: str
    direction: Direction
    unit: str
    known: bool
    """Whether shape, precision and target alone decide it, so that it is known before training."""
    summary: str
    by_factor: bool = True
    """Whether it is above zero always, so that its logarithm tells how far two values are apart."""

    grows: bool = False
    """Whether it is the time of training, and so rises with it."""

    def gain(self, value: float) -> float:
        """``value`` so that more is better: itself, or its negative where less is."""
        return value if self.direction == "max" else -value

    def score(self, value: float) -> float:
        """``gain`` on a scale where equal steps matter alike: what is to be small, and is told by its factor, enters by
        its logarithm.
        """
        by_log = self.direction == "min" and self.by_factor
        return self.gain(math.log(max(value, _LEAST)) if by_log else value)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(name="accuracy", direction="max", unit="", known=False, summary="share of right labels"),
        Objective(name="macro_f1", direction="max", unit="", known=False, summary="mean F1 over the labels"),
        Objective(name="exact_match", direction="max", unit="", known=False, summary="share of right answers"),
        Objective(name="rouge_l", direction="max", unit="", known=False, summary="longest common subsequence, F1"),
        Objective(name="perplexity", direction="min", unit="", known=False, summary="of the right responses' tokens"),
        Objective(name="latency_ms", direction="min", unit="ms", known=True, summary="median time of one request"),
        Objective(name="latency_p95_ms", direction="min", unit="ms", known=True, summary="95th percentile of it"),
        Objective(
            name="first_token_ms", direction="min", unit="ms", known=True, summary="generation: to the first token"
        ),
        Objective(name="token_ms", direction="min", unit="ms", known=True, summary="generation: each later token"),
        Objective(name="size_mb", direction="min", unit="MB", known=True, summary="size on disk, 10⁶ bytes"),
        Objective(name="memory_mb", direction="min", unit="MB", known=True, summary="memory of the serving process"),
        Objective(name="energy_j", direction="min", unit="J", known=True, summary="energy of one request, estimated"),
        Objective(
            name="train_seconds", direction="min", unit="s", known=False, summary="training, as if alone", grows=True
        ),
        Objective(name="train_memory_mb", direction="min", unit="MB", known=False, summary="peak memory of training"),
        Objective(
            name="forgetting",
            direction="min",
            unit="",
            known=False,
            summary="accuracy lost on the rows of task.retain",
            by_factor=False,
        ),
        Objective(
            name="overfit",
            direction="min",
            unit="",
            known=False,
            summary="train metric minus validation metric",
            by_factor=False,
        ),
    )
}
QUALITY_METRICS = ("accuracy", "macro_f1", "exact_match", "rouge_l", "perplexity")

_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONSTRAINT = re.compile(
    rf"\s*(?P<name>[A-Za-z_]\w*)\s*(?P<op><=|>=|<|>)\s*(?:(?P<number>{_NUMBER})\s*(?P<times>\*\s*baseline)?|(?P<bare>baseline))\s*"
)


@dataclass(frozen=True)
class Constraint:
    """``name op bound``, or ``name op bound * baseline`` with the quality of the base model fine-tuned in full."""

    text: str
    name: str
    op: str
    bound: float
    relative: bool

    @property
    def known(self) -> bool:
        """Whether it can be decided before training."""
        return OBJECTIVES[self.name].known and not self.relative

    def limit(self, baseline: float | None) -> float | None:
        """The number on the right; None while it needs a baseline that is not known yet."""
        if not self.relative:
            return self.bound
        return None if baseline is None else self.bound * baseline

    def holds(self, row: Mapping[str, float | None], *, baseline: float | None = None) -> bool | None:
        """Whether ``row`` satisfies it; None where the value or the baseline is not known."""
        value, limit = row.get(self.name), self.limit(baseline)
        if value is None or limit is None:
            return None
        return bool(_COMPARISONS[self.op](value, limit))


def parse_constraint(text: str) -> Constraint:
    """Read one constraint.

    Raises:
        ValueError: it does not parse, or names no known column; says what would.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a constraint; write NAME <= NUMBER, for example 'latency_ms <= 5' "
            "or 'accuracy >= 0.95 * baseline' (with <=, >=, < or >)"
        )
    name = match["name"]
    if name not in OBJECTIVES:
        raise ValueError(f"{text!r}: unknown column {name!r}{nearest(name, OBJECTIVES)}")
    bound = float(match["number"]) if match["number"] else 1.0
    relative = match["number"] is None or match["times"] is not None
    if relative and name not in QUALITY_METRICS:
        raise ValueError(f"{text!r}: `baseline` is a quality; compare it with one of {', '.join(QUALITY_METRICS)}")
    return Constraint(text.strip(), name, match["op"], bound, relative)


def nearest(word: str, known: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    """The end of an error about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
