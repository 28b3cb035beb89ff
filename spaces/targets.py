"""Where a model must serve: runtimes that are measured, and profiles that are estimated by a roofline.

Profile figures are public peaks of the named class of device, rounded; an estimate divides by them and is then
calibrated against the measured target (``trainers.cost``). Whatever comes from a profile is marked as estimated.
"""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place to serve. ``measured`` targets are timed on this machine; the others come from their profile."""

    name: str
    summary: str
    measured: bool
    precisions: tuple[Precision, ...]
    """At which it runs a classifier."""
    writes: tuple[Precision, ...] = ()
    """At which it runs a model that writes; none where that is neither measured nor estimated."""
    peak_gflops: dict[Precision, float]
    """Attainable peak, 10⁹ multiply-or-add operations a second, batch 1."""
    bandwidth_gb_s: float
    overhead_us_per_op: float
    """Fixed time per operation of the graph, microseconds."""
    pj_per_flop: float
    """Energy per operation, 10⁻¹² joules."""
    pj_per_byte: float
    """Energy per byte moved from main memory, 10⁻¹² joules."""

    def runs(self, kind: str) -> tuple[Precision, ...]:
        """Precisions at which it serves models for tasks of ``kind``."""
        return self.writes if kind == "generation" else self.precisions


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            summary="ONNX Runtime (generation: torch) on this machine, one thread, batch 1",
            measured=True,
            precisions=("fp32", "int8"),
            writes=("fp32", "bf16", "int8", "int4"),
            peak_gflops={"fp32": 60, "int8": 200},
            bandwidth_gb_s=12,
            overhead_us_per_op=2,
            pj_per_flop=30,
            pj_per_byte=60,
        ),
        Target(
            name="phone",
            summary="one big core of a recent phone (NEON, LPDDR5)",
            measured=False,
            precisions=("fp32", "int8"),
            peak_gflops={"fp32": 25, "int8": 100},
            bandwidth_gb_s=15,
            overhead_us_per_op=4,
            pj_per_flop=8,
            pj_per_byte=40,
        ),
        Target(
            name="laptop",
            summary="one core of a recent laptop (AVX2, DDR5)",
            measured=False,
            precisions=("fp32", "int8"),
            peak_gflops={"fp32": 80, "int8": 240},
            bandwidth_gb_s=25,
            overhead_us_per_op=1.5,
            pj_per_flop=20,
            pj_per_byte=50,
        ),
    )
}
