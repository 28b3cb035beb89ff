"""Why this variant and not that one, in sentences."""

import math
from collections.abc import Mapping, Sequence

from search.compare import Comparison
from search.question import Question
from search.records import Record
from search.words import say, say_list, say_name
from spaces.objectives import OBJECTIVES, Constraint


def nothing_fits(complete: Sequence[Record], question: Question) -> str:
    """Which constraint rules out how many of the ``complete`` variants, none of which fits, and the nearest miss."""
    lines = [f"none of {len(complete)} complete variants on target {question.target!r} satisfies every constraint:"]
    for constraint in question.constraints:
        count = sum(question.breaks(record, constraint) for record in complete)
        if count:
            reached = _best_reached(complete, constraint, question)
            lines.append(f"  '{constraint.text}' rules out {count} of {len(complete)} ({reached})")
    closest = min(complete, key=lambda record: (question.miss(record), record.record_id))
    found = [
        f"{say_name(c.name)} {say(c.name, closest.value(c.name, question.metric))} instead of {c.op} "
        f"{say(c.name, c.limit(question.baseline))}"
        for c in question.broken(closest)
    ]
    lines.append(f"  nearest miss: {closest.record_id} ({closest.strategy}, {closest.precision}): {say_list(found)}")
    return "\n".join(lines)


def reasons(
    complete: Sequence[Record], front: Sequence[Record], kept: Sequence[Record], *, question: Question, paired: bool
) -> list[str]:
    """The way from all complete variants over the ``front`` and those worth their cost (``kept``) to one of them."""
    sentences = [
        _constraints_sentence(complete, question),
        _front_sentence(front, question),
        _kept_sentence(len(front) - len(kept), paired=paired),
        _wish_sentence(len(kept), question),
    ]
    if question.undecided:
        unclear = say_list([f"'{constraint.text}'" for constraint in question.undecided])
        sentences.append(f"{unclear} could not be checked, because the baseline was not trained.")
    return [sentence for sentence in sentences if sentence]


def why_dropped(record: Record, cheaper: Record, found: Comparison, question: Question) -> str:
    """Why ``record`` is not worth its cost beside ``cheaper``."""
    return (
        f"{say_name(question.metric)} {say(question.metric, record.quality)} is not measurably better than the "
        f"{say(question.metric, cheaper.quality)} of the cheaper {cheaper.record_id} "
        f"(difference {_say_difference(question.metric, found)})"
    )


def why_lost(record: Record, best: Record, question: Question) -> str:
    """What speaks against ``record`` by the wish."""
    quality = f"{say(question.metric, record.quality)} against {say(question.metric, best.quality)}"
    costs = say_list(
        [
            f"{say(name, record.value(name, question.metric))} against {say(name, best.value(name, question.metric))}"
            for name in question.costs
        ]
    )
    wish = "the weights decide" if isinstance(question.wish, Mapping) else f"the wish '{question.wish}' decides"
    verdict = "Better" if question.gain(record) > question.gain(best) else "Worse"
    return f"{verdict}, {quality}, at {costs}: {wish} against it" if costs else f"{verdict}, {quality}"


def _best_reached(complete: Sequence[Record], constraint: Constraint, question: Question) -> str:
    found = [record.value(constraint.name, question.metric) for record in complete]
    values = [value for value in found if value is not None]
    if not values:
        return "it was not measured"
    best = min(values) if constraint.op.startswith("<") else max(values)
    return f"best reached: {say(constraint.name, best)}"


def _constraints_sentence(complete: Sequence[Record], question: Question) -> str:
    variants = "1 complete variant" if len(complete) == 1 else f"{len(complete)} complete variants"
    decided = [c for c in question.constraints if c not in question.undecided]
    if not decided:
        return f"There {'is' if len(complete) == 1 else 'are'} {variants} on {question.target}."
    fit = sum(not question.broken(record) for record in complete)
    return f"{fit} of {variants} on {question.target} satisfy {say_list([repr(c.text) for c in decided])}."


def _front_sentence(front: Sequence[Record], question: Question) -> str:
    names = say_list([say_name(name) for name in question.objectives])
    if len(front) == 1:
        return f"One of them is best in {names} at once."
    return f"{len(front)} of them are on the front of {names}: no other one beats them in all of these."


def _kept_sentence(dropped: int, *, paired: bool) -> str:
    if not dropped:
        return ""
    how = "a paired bootstrap over the validation rows" if paired else "their 95 % intervals"
    verb = "is" if dropped == 1 else "are"
    return f"{dropped} of these {verb} not measurably better than a cheaper one, by {how} (one-sided, 5 %)."


def _wish_sentence(num_kept: int, question: Question) -> str:
    if num_kept == 1:
        return "That leaves this one."
    costs = say_list([say_name(name) for name in question.costs]) or "cost"
    if isinstance(question.wish, Mapping):
        weights = say_list([f"{say_name(name)} {weight:g}" for name, weight in question.wish.items()])
        return f"Of the {num_kept} left it scores highest with the weights {weights}."
    if question.wish == "knee" and num_kept == 2:
        return (
            f"The 2 left are the ends of the front, and a knee needs a third between them: the one with the better "
            f"{say_name(question.metric)} is taken; the wish 'cost' takes the other."
        )
    ends = {
        "quality": f"has the best {say_name(question.metric)}",
        "cost": f"has the lowest {costs}",
        "knee": f"is the knee: it lies farthest above the line between the cheapest and the best, and beyond it better "
        f"{say_name(question.metric)} costs much more {costs}",
    }
    return f"Of the {num_kept} left it {ends[question.wish]}."


def _say_difference(metric: str, found: Comparison) -> str:
    differences = (found.difference, found.low, found.high)
    if metric in ("accuracy", "exact_match"):
        points = [100 * value for value in differences]
        return f"{points[0]:+.1f} points, 90 % interval {points[1]:+.1f} to {points[2]:+.1f}"
    if OBJECTIVES[metric].direction == "min":
        # Of logarithms, and positive where the first is better, which is where it is smaller.
        middle, most, least = (100 * math.expm1(-value) for value in differences)
        return f"{middle:+.1f} %, 90 % interval {least:+.1f} to {most:+.1f}"
    return f"{found.difference:+.3f}, 90 % interval {found.low:+.3f} to {found.high:+.3f}"
