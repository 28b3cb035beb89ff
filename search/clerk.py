"""What is written down of a plan: every variant's row, whatever came of it."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from search.goals import CostTable, Goals
from search.memory_ledger import MemoryLedger, Proposal
from search.records import COST_COLUMNS, Record
from search.words import say_shape
from spaces.shape import Shape
from trainers.progress import Progress
from trainers.results import Measured, Result


@dataclass
class Standing:
    """A plan under way, as far as it has reported."""

    started_at: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(fidelity, quality) of its last stage."""
    curve_seconds: list[float] = field(default_factory=list)
    """Training seconds of that stage at each point of the curve."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Training seconds by stage."""
    judged_at: float = 0.0
    """Fidelity at which the plan that it goes on with was stopped; 0: it begins anew."""
    paid_before: float = 0.0
    """Training seconds of the last stage until then, which are in that plan's record."""
    found_s: float = 0.0
    """How many of these seconds a checkpoint has saved."""

    @property
    def trained_s(self) -> float:
        """Training seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def spent_s(self) -> float:
        """Those that were spent on this trial."""
        return self.trained_s - self.found_s

    def hear(self, progress: Progress) -> None:
        """Take in a report."""
        self.seconds[progress.stage] = progress.seconds
        if progress.restored and progress.final:
            self.found_s = min(progress.seconds, self.paid_before)
        if progress.quality is not None and progress.final:
            self.curve.append((progress.fidelity, progress.quality))
            self.curve_seconds.append(progress.seconds)

    def begin_again(self) -> None:
        """Its worker died: the last stage reports from its start."""
        self.curve.clear()
        self.curve_seconds.clear()
        self.found_s = 0.0


@dataclass(frozen=True, kw_only=True)
class Clerk:
    """Writes records into the ledger."""

    ledger: MemoryLedger
    goals: Goals
    costs: CostTable
    estimated: frozenset[str]
    """Targets whose costs come from a profile."""
    base_layers: int | None
    """Of the model that plans begin with; None where they begin with none."""
    names: Mapping[str, str]
    """Of students that are models of their own, by fingerprint."""
    versions: Mapping[str, str]
    clock: Callable[[], float]

    def complete(self, proposal: Proposal, standing: Standing, result: Result) -> list[Record]:
        """A plan has been carried out: one record for each of its variants."""
        measured = {variant.precision: variant for variant in result.variants}
        return self._write(
            [
                self._record(proposal, standing, variant, _of_result(result, measured[variant[0]], standing))
                for variant in proposal.variants
            ]
        )

    def end(
        self,
        proposal: Proposal,
        standing: Standing,
        status: Literal["stopped", "failed"],
        *,
        error: str,
        fidelity: float,
        reach: float | None,
    ) -> list[Record]:
        """A plan ended without a result: one record that says why."""
        found = {
            "status": status,
            "error": error,
            "fidelity": fidelity,
            "reach": reach,
            "curve": tuple(standing.curve),
            "curve_seconds": tuple(standing.curve_seconds),
            "train_seconds": standing.trained_s,
            "prefix_seconds_saved": standing.found_s,
        }
        return self._write([self._record(proposal, standing, proposal.variants[0], found)])

    def rule_out(self, shapes: Sequence[Shape], *, began: float) -> None:
        """Record, once, every shape that the known constraints forbid at some precision and target."""
        for (shape, precision, target), costs in self.costs.items():
            if shape in shapes and (broken := self.goals.broken_known(costs)):
                name = self._name(shape)
                self.ledger.append(
                    Record(
                        record_id=f"{name}-{precision}-{target}",
                        trial_id=name,
                        number=-1,
                        strategy="",
                        plan="",
                        fingerprint="",
                        params={"size": say_shape(shape, self.base_layers, names=self.names)},
                        precision=precision,
                        target=target,
                        status="infeasible",
                        error="; ".join(broken),
                        fidelity=0.0,
                        started_at=began,
                        finished_at=self.clock(),
                        **self._cost_fields(shape, precision, target),
                    )
                )

    def _name(self, shape: Shape) -> str:
        """Of a shape's records."""
        size = f"model-{shape.base[:12]}" if shape.base in self.names else str(shape.num_layers or self.base_layers)
        width = [] if shape.width is None else [f"width{shape.width:g}"]
        tokens = [] if shape.vocab_size is None else [str(shape.vocab_size)]
        return "-".join(["shape", size, *width, *tokens, *shape.details])

    def _write(self, records: list[Record]) -> list[Record]:
        # The first variant's last: the ledger takes a plan for finished that has no result there.
        for record in reversed(records):
            self.ledger.append(record)
        return records

    def _record(
        self, proposal: Proposal, standing: Standing, variant: tuple[str, str], found: Mapping[str, Any]
    ) -> Record:
        plan, (precision, target) = proposal.draw.plan, variant
        fields = self._cost_fields(plan.shape, precision, target)
        return Record(
            **proposal.names(precision, target),
            seed=plan.seed,
            started_at=standing.started_at,
            finished_at=self.clock(),
            versions=self.versions,
            **{**fields, **found, "notes": {**fields["notes"], **found.get("notes", {})}},
        )

    def _cost_fields(self, shape: Hashable, precision: str, target: str) -> dict[str, Any]:
        costs = self.costs[(shape, precision, target)]
        others = {name: value for name, value in costs.items() if name not in COST_COLUMNS}
        columns = {name: costs.get(name) for name in COST_COLUMNS}
        return columns | {"estimated": target in self.estimated, "notes": others}


def _of_result(result: Result, variant: Measured, standing: Standing) -> dict[str, Any]:
    return _quality(variant) | {
        "curve": result.curve,
        "curve_seconds": result.curve_seconds,
        "train_seconds": result.train_seconds,
        "prefix_seconds_saved": max(0.0, result.train_seconds - result.spent_seconds + standing.found_s),
        "overhead_seconds": result.overhead_seconds,
        "train_memory_mb": result.train_memory_mb,
        "overfit": result.overfit,
        "forgetting": result.forgetting,
        "notes": result.notes,
        "host": result.host,
    }


def _quality(variant: Measured) -> dict[str, Any]:
    if not math.isfinite(variant.value):
        error = f"quality at {variant.precision} is {variant.value}; expected a number"
        return {"status": "failed", "error": error}
    return {
        "status": "complete",
        "quality": variant.value,
        "quality_low": variant.low,
        "quality_high": variant.high,
        "predictions": variant.predictions,
    }
