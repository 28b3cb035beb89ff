"""How far the search got, and what its time went into."""

from bisect import bisect_left
from collections.abc import Mapping
from html import escape
from typing import Any

from search.report.build import Report, TargetView, TimeUse
from search.report.pieces import plot, section
from search.words import say_duration


def progress_section(report: Report, plots: Mapping[str, Any]) -> str:
    """Hypervolume against training, beside what random searches would have reached."""
    if "over-time" not in plots:
        return ""
    texts = [
        "The hypervolume after each trial. Objectives are scaled to their range in this run, costs by their "
        "logarithm; where the line is flat, more trials found nothing better.",
        *_by_chance(report),
    ]
    return section("Progress of the search", _paragraphs(texts) + plot("over-time", plots))


def time_section(report: Report, plots: Mapping[str, Any]) -> str:
    """Time spent and saved."""
    time = report.time
    lines = [
        f"{say_duration(time.wall)} from the first trial's start to the last one's end.",
        f"{say_duration(time.overhead)} beside training: deployment, evaluation, waiting.",
        *say_training(time),
    ]
    listed = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    return section("Time", listed + plot("time", plots))


def say_training(time: TimeUse) -> list[str]:
    """Training that was spent, and what was saved, a sentence each."""
    spent = f"{say_duration(time.spent)} of training was spent."
    if not time.shared and not time.num_stopped:
        return [f"{spent} None was saved: no two plans began alike, and none was stopped early."]
    found = [spent]
    if time.shared:
        alone = say_duration(time.spent + time.shared)
        found.append(
            f"{say_duration(time.shared)} was saved by shared beginnings: had every plan been trained alone, "
            f"it would have been {alone}."
        )
    if time.num_stopped:
        plans = "1 plan was" if time.num_stopped == 1 else f"{time.num_stopped} plans were"
        saved = f", which saved {say_duration(time.stopped)} at the pace until then" if time.stopped else ""
        found.append(f"{plans} stopped early{saved}.")
    return found


def _by_chance(report: Report) -> list[str]:
    found = report.by_chance
    if found is None:
        return []
    if found.note:
        return [f"What random searches would have reached is not shown: {found.note}."]
    caption = (
        f"Dotted, with quartiles as a band: {found.num_searches} random searches of the same space, simulated. How "
        f"good their plans become and how long they take is told by Gaussian processes of the {found.num_plans} "
        "complete plans of this run, with the noise found in these; of plans that are left out they explain "
        f"{found.explained:.0%} of the variance in quality. No plan is thought to be better than the best that was "
        "measured. Serving costs are those of the cost table, every plan is trained to its end, shared beginnings once."
    )
    return [caption, _compared(report.targets[0], report)]


def _compared(view: TargetView, report: Report) -> str:
    """By how much the search was ahead on the first target, at its end."""
    assert report.by_chance is not None
    band, begun = report.by_chance.bands[view.name], report.by_chance.num_strategies
    reached, until = band.median[-1], band.train_seconds[-1]
    by_chance = f"On {view.name} random searches come to {reached:.3f} in {say_duration(until)} of training (median)"
    volumes = [step.hypervolume for step in view.steps if step.train_seconds <= until * (1 + 1e-9)]
    if not volumes or volumes[-1] < reached:
        come_to = f"{by_chance}, this one to {max(volumes, default=0.0):.3f}"
        why = f"; of its {len(volumes)} trials, {begun} were every strategy once, at its defaults"
        return f"{come_to}{why if begun > len(volumes) / 2 else ''}."
    first = view.steps[bisect_left(volumes, reached)].train_seconds
    return f"{by_chance}; this one was there after {say_duration(first)}."


def _paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)
