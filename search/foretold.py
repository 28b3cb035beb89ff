"""What a search would take, for several numbers of workers: gathered from simulations, and said to people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.budget import Limits
from search.scheduler import NeverStop
from search.simulation.foretell import MOST, Foreseen, Outlook, prospect
from search.words import say_duration

Span = tuple[float, float]
"""The least and the most: with plans stopped as the scheduler does, and with none stopped, in either order."""

_LIMITS = {"trials": "plans", "minutes": "minutes", "device_hours": "device hours", "space": "the space"}


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """A search with so many workers."""

    workers: int
    is_here: bool
    """Whether that is as many as there would be now."""
    ends_by: tuple[str, ...]
    """The limit that ends it; two where that depends on how many plans are stopped."""
    num_plans: Span
    minutes: Span
    device_hours: Span
    usd: Span | None
    """For all workers as long as the search takes; None where no price is given."""
    plans_until: Mapping[str, Span]
    """How many plans it would have begun when each limit of the budget is reached, were there no other one."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def foretell(foreseen: Foreseen, *, workers: Sequence[int], here: int, usd_per_hour: float | None) -> list[Foretold]:
    """For each number of ``workers``; there would be ``here`` now. ``usd_per_hour``: of one device."""
    return [_foretold(foreseen, count, here=here, usd_per_hour=usd_per_hour) for count in workers]


def numbers_of_workers(most: int | str, *, here: int) -> list[int]:
    """1, 2, 4, 8 and on up to ``most``, where that is a number, and ``here``."""
    most = most if isinstance(most, int) else max(8, here)
    powers = (2**power for power in range(most.bit_length()))
    return sorted({*powers, most, here})


def table(found: Sequence[Foretold], limits: Limits) -> list[str]:
    """A line for each number of workers, below a head."""
    said = _said(limits)
    timed = [name for name in said if name != "trials" and len(said) > 1]
    paid = found[0].usd is not None
    head = ["workers", "plans", "wall time", "device hours", *(["usd"] if paid else [])]
    rows = [[*head, *(f"plans by {said[name]}" for name in timed), "ends after"]]
    for one in found:
        cells = [f"{'here ' if one.is_here else ''}{one.workers}", _span(one.num_plans, ".0f"), _minutes(one.minutes)]
        cells += [_span(one.device_hours, ".2f"), *([_span(one.usd, ".2f")] if one.usd is not None else [])]
        cells += [_span(one.plans_until[name], ".0f") if name in one.plans_until else "all" for name in timed]
        rows.append([*cells, " or ".join(said.get(name, "the whole space") for name in one.ends_by)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def explained(foreseen: Foreseen) -> tuple[str, ...]:
    """What the figures rest on, a sentence each."""
    paced = f"as serving latency and rows tell, at the median pace of the {foreseen.num_timed} plans that this run has"
    rough = "rough: as serving latency and rows tell, on a processor"
    spans = "With the plans stopped early that the scheduler would stop, and with none."
    return (
        "Foretold by simulation of the search itself, from its beginning.",
        f"Training times are {paced if foreseen.num_timed else rough}.",
        "How good plans become is not known before: quality is assumed to rise with latency, else to be chance.",
        "No plan is stopped early." if isinstance(foreseen.scheduler, NeverStop) else spans,
        f"At most {MOST} plans are simulated; more are taken to go on at their pace.",
    )


def _foretold(foreseen: Foreseen, workers: int, *, here: int, usd_per_hour: float | None) -> Foretold:
    kinds = [prospect(foreseen, workers=workers, stopping=False)]
    if not isinstance(foreseen.scheduler, NeverStop):
        kinds.append(prospect(foreseen, workers=workers, stopping=True))
    ends = [kind.end for kind in kinds]
    minutes = _range([end.minutes for end in ends])
    by_limit: dict[str, list[Outlook]] = {}
    for outlook in (outlook for kind in kinds for outlook in kind.alone):
        by_limit.setdefault(outlook.limit, []).append(outlook)
    paid = None if usd_per_hour is None else usd_per_hour * workers * foreseen.setup.devices_per_trial / 60
    return Foretold(
        workers=workers,
        is_here=workers == here,
        ends_by=tuple(dict.fromkeys(end.limit for end in ends)),
        num_plans=_range([end.num_plans for end in ends]),
        minutes=minutes,
        device_hours=_range([end.device_hours for end in ends]),
        usd=None if paid is None else (paid * minutes[0], paid * minutes[1]),
        plans_until={name: _range([o.num_plans for o in several]) for name, several in by_limit.items()},
    )


def _range(values: Sequence[float]) -> Span:
    return min(values), max(values)


def _said(limits: Limits) -> dict[str, str]:
    return {name: f"{value:g} {_LIMITS[name]}" for name, value in asdict(limits).items() if value is not None}


def _span(span: Span, form: str) -> str:
    low, high = (format(value, form) for value in span)
    return low if low == high else f"{low}–{high}"


def _minutes(minutes: Span) -> str:
    low, high = (say_duration(60 * value) for value in minutes)
    return low if low == high else f"{low} to {high}"
