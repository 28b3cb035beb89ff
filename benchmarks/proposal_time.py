"""What a proposal takes, by the number of records, beside Optuna's TPE on the same space in the same run.

    python benchmarks/proposal_time.py [--records 100,1000,10000] [--repeats 15] [--json FILE]

The space is that of ``examples/docstrings.yaml``, with its conditions; two records a plan. Qualities and costs are made
up: nothing is trained, and the time does not depend on them. A proposal comes after one more plan than the one before,
as in a search, so that what is kept between proposals counts as it does there; TPE is asked less often, and not at all
where it would take minutes.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks import EXAMPLES

from search.foreknown import CostTableForeknown, SharesLeft, work_of
from search.goals import Goals
from search.history import Outcome
from search.sampler import Propose, make_sampler
from search.spec import load_spec, space_of
from spaces.choosers import RandomChooser
from spaces.draw import Draw, draw, shapes
from spaces.space import Space
from trainers.kinds import named_kind

_PRECISIONS = {"fp32": 1.0, "int8": 0.4}
_GOALS = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"))
_TPE_UP_TO = 1_000


def main() -> None:
    options = arguments()
    space = docstrings_space()
    rows = [measured(space, int(count), repeats=options.repeats) for count in options.records.split(",")]
    for row in rows:
        tpe = f"{row['tpe_ms']:8.0f} ms  {row['tpe_ms'] / row['known_cost_ms']:.1f}×" if row["tpe_ms"] else "not asked"
        print(f"{row['records']:6} records  known_cost {row['known_cost_ms']:6.0f} ms  tpe {tpe}")
    if options.json:
        options.json.write_text(json.dumps({"repeats": options.repeats, "rows": rows}, indent=1) + "\n")


def docstrings_space() -> Space:
    """The example's space; its data is not needed."""
    spec = load_spec(EXAMPLES / "docstrings.yaml", [])
    space = space_of(spec, base=named_kind(spec.task.kind).inspect(spec.model.base), data="0" * 64, teacher=None)
    return replace(space, width_scores="0" * 64)


def measured(space: Space, records: int, *, repeats: int) -> dict[str, float | None]:
    """Median milliseconds of a proposal after so many records."""
    past = outcomes(space, records // len(_PRECISIONS) + repeats)
    found: dict[str, float | None] = {"records": records, "tpe_ms": None}
    for name in ("known_cost", "tpe"):
        if name == "known_cost" or records <= _TPE_UP_TO:
            times = repeats if name == "known_cost" else min(repeats, 3)
            found[f"{name}_ms"] = 1e3 * statistics.median(seconds(sampler(name, space), past, records, times))
    return found


def seconds(propose: Propose, past: Sequence[Outcome], records: int, repeats: int) -> list[float]:
    """Of each of some proposals in a row; one before them is not counted."""
    found = []
    for step in range(repeats):
        told = past[: records + step * len(_PRECISIONS)]
        began = time.process_time()
        propose(told, [], len(told) // len(_PRECISIONS))
        found.append(time.process_time() - began)
    return found[1:]


def sampler(name: str, space: Space) -> Propose:
    costs = {
        (shape, precision, "cpu"): {"latency_ms": factor * space.num_layers(shape) * (shape.width or 1.0)}
        for shape in shapes(space)
        for precision, factor in _PRECISIONS.items()
    }
    share_left = SharesLeft(lambda _: False, partial(work_of, latency={}))
    foreknown = CostTableForeknown(_GOALS, costs, tuple(_PRECISIONS), share_left=share_left)
    return make_sampler(name, draw=partial(draw, space), goals=_GOALS, seed=0, foreknown=foreknown)


def outcomes(space: Space, num_plans: int) -> list[Outcome]:
    """Of random plans, with curves of four points."""
    rng, found = random.Random(0), dict[str, Draw]()
    while len(found) < num_plans:
        drawn = draw(space, RandomChooser(rng))
        found[drawn.fingerprint] = drawn
    return [
        Outcome(
            number=number,
            draw=drawn,
            precision=precision,
            values=(quality(drawn, rng), factor * space.num_layers(drawn.plan.shape)),
            curve=tuple((share, quality(drawn, rng) - 0.1 * (1 - share)) for share in (0.25, 0.5, 0.75, 1.0)),
            train_seconds=rng.uniform(10, 60),
            finished_at=float(number),
        )
        for number, drawn in enumerate(found.values())
        for precision, factor in _PRECISIONS.items()
    ]


def quality(drawn: Draw, rng: random.Random) -> float:
    rates = [value for name, value in drawn.params.items() if name.endswith("learning_rate")]
    return 0.8 - 0.02 * sum(math.log(float(rate) / 3e-4) ** 2 for rate in rates) + rng.gauss(0, 0.01)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="100,1000,10000")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
