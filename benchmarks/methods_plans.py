"""The plans that ``methods.py`` trains: drawn from each strategy's own ranges, as many steps for every student."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from search.prepare import Prepared
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.choosers import Chooser, MiddleChooser, RandomChooser, Value
from spaces.draw import draw
from spaces.methods.distill import Distill
from spaces.methods.pseudo_label import PseudoLabel
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.plan import Plan
from spaces.ranges import Choice
from spaces.stages import Training

COSTLY = ("meta_distill",)
"""A step takes several times that of the others."""
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Value]]] = {
    "moe_dft": {"gate": {"expert_weights": "gate"}, "uniform": {"expert_weights": "uniform"}},
    "distill_cot": {"generate": {"cot_mode": "generate"}, "multitask": {"cot_mode": "multitask"}},
    "distill_reverse_kl": {"offline": {"lmbda": 0.0}, "on-policy": {"lmbda": 0.5}},
}
"""Choices that are compared with all else as in the strategy's best plan; of those, the ones that the task has."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train."""

    strategy: str
    params: Mapping[str, Value]
    plan: Plan

    @property
    def precision(self) -> str:
        """At which it is tuned: what is trained for int8 is not judged by anything else."""
        return "int8" if "int8" in CATALOGUE[self.strategy].needs else "fp32"


def drawn_plan(prepared: Prepared, name: str, number: int, *, passes: int) -> Candidate:
    """The strategy's defaults, and from number 1 on a draw from its ranges."""
    if number == 0:
        return built(prepared, name, MiddleChooser(defaults(prepared)), passes=passes)
    return built(prepared, name, RandomChooser(random.Random(f"{name} {number}")), passes=passes)


def variants(prepared: Prepared, best: Candidate, *, passes: int) -> Iterator[tuple[str, Candidate]]:
    """The strategy's variants, by name."""
    space, opened = prepared.space, CATALOGUE[best.strategy].parameters
    known = {parameter.name: parameter for parameter in opened if space.opens(parameter)}
    for variant, changes in VARIANTS.get(best.strategy, {}).items():
        ((name, value),) = changes.items()
        parameter = known.get(name)
        if parameter and (not isinstance(parameter, Choice) or value in space.options(parameter)):
            chooser = MiddleChooser({**defaults(prepared), **best.params, **changes})
            yield variant, built(prepared, best.strategy, chooser, passes=passes)
    last = best.plan.stages[-1]
    if isinstance(last, QuantizedDistill):
        # The same stage in full precision, to be quantised afterwards.
        plain = Distill(**{**dict(last), "kind": "distill"}, alpha=1.0, alpha_end=1.0)
        plan = best.plan.model_copy(update={"stages": (*best.plan.stages[:-1], plain)})
        yield "post-training", replace(best, plan=plan)


def defaults(prepared: Prepared) -> dict[str, Value]:
    return {span.name: span.default for span in {**PARAMETERS, **prepared.space.narrowed}.values()}


def built(prepared: Prepared, name: str, chooser: Chooser, *, passes: int) -> Candidate:
    """A plan of the strategy whose student sees the rows as often as everyone's."""
    found = draw(replace(prepared.space, strategies=(name,)), chooser)
    return Candidate(strategy=name, params=found.params, plan=with_epochs(found.plan, passes))


def with_epochs(plan: Plan, passes: float) -> Plan:
    """The plan whose student sees the rows ``passes`` times, shared out to its stages as in ``plan``.

    Each is trained for an epoch at least. What cannot be had in whole epochs is made up for by the longest stage.
    """
    shares = {length - 1: rows_seen(plan.stages[length - 1]) for length in own_stages(plan)}
    seen = {place: plan.stages[place].optimisation.epochs * share for place, share in shares.items()}
    epochs = {place: max(1, round(of * passes / sum(seen.values()) / shares[place])) for place, of in seen.items()}
    longest = max(seen, key=lambda place: seen[place])
    others = sum(epochs[place] * shares[place] for place in epochs if place != longest)
    epochs[longest] = max(1, round((passes - others) / shares[longest]))
    stages = list(plan.stages)
    for place, count in epochs.items():
        optimisation = stages[place].optimisation.model_copy(update={"epochs": count})
        stages[place] = stages[place].model_copy(update={"optimisation": optimisation})
    return plan.model_copy(update={"stages": tuple(stages)})


def rows_seen(stage: Training) -> float:
    """In an epoch, as a share of the training rows."""
    if stage.kind in COSTLY:
        return 1.0  # What it passes over more often are the same rows.
    if isinstance(stage, PseudoLabel):
        return 2.0  # The benchmark brings as many rows without labels as with; those that are not kept are few.
    return stage.passes / stage.optimisation.epochs


def own_stages(plan: Plan) -> list[int]:
    """Lengths of the prefixes that end in a training of the student itself, not in that of its teacher."""
    taught = {plan.on_same_data(chain).fingerprint for stage in plan.stages for chain in stage.teachers}
    lengths = range(1, len(plan.stages) + 1)
    trains = [length for length in lengths if isinstance(plan.stages[length - 1], Training)]
    return [length for length in trains if plan.prefix(length).fingerprint not in taught]
