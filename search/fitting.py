"""What fits: strategies and options whose needs the spec, the models and the machine meet. All others are left out, or
refused where the spec asks for them by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search.spec_errors import Key, SpecError
from search.spec_raw import metric_of, section, texts_in
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.needs import NEEDS, Lacking
from spaces.ranges import Choice
from spaces.space import Space
from spaces.targets import PRECISIONS
from spaces.task import BUILTIN, KIND_OF_BUILTIN

if TYPE_CHECKING:
    from search.spec import Spec


def lacking_in(raw: Mapping[str, Any]) -> Lacking:
    """What a spec, as plain data, does not bring of all that something may need."""
    task, space = section(raw, "task"), section(section(raw, "search"), "space")
    # Built-in rows come as they are: none of their columns is named.
    explained = KIND_OF_BUILTIN.get(str(task.get("train")).removeprefix(BUILTIN)) == "generation"
    there: dict[Any, bool] = {
        "unlabeled": task.get("unlabeled") is not None,
        "rationales": task.get("rationale") is not None or explained,
        "domains": task.get("domain") is not None,
        "texts": metric_of(task) != "perplexity",
        "writes": _kind(raw) == "generation",
        "int8": "int8" in (texts_in(space.get("quantization")) or PRECISIONS),
    }
    return {need: NEEDS[need].absent for need, found in there.items() if not found}


def misfits(names: Sequence[str], raw: Mapping[str, Any]) -> dict[str, str]:
    """Which of the strategies cannot serve the task of a spec, and why."""
    lacking = lacking_in(raw)
    reasons = {name: CATALOGUE[name].misfit(kind=_kind(raw), lacking=lacking) for name in names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def without_meaning(raw: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The parameters of which a spec speaks and that its task has no use for."""
    lacking, space = lacking_in(raw), section(section(raw, "search"), "space")
    for parameter in PARAMETERS.values():
        if parameter.need is not None and parameter.need in lacking and space.get(parameter.name) is not None:
            words = f"it needs {NEEDS[parameter.need].words}, but {lacking[parameter.need]}"
            yield ("search", "space", parameter.name), f"found a value; {words}; leave {parameter.name} out"


def _kind(raw: Mapping[str, Any]) -> str:
    return str(section(raw, "task").get("kind", "classification"))


def no_options_left(raw: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The parameters of which a spec asks for nothing but options that cannot be."""
    lacking, space = lacking_in(raw), section(section(raw, "search"), "space")
    for choice in PARAMETERS.values():
        asked = texts_in(space.get(choice.name)) if isinstance(choice, Choice) else []
        if isinstance(choice, Choice) and asked and not any(choice.serves(option, lacking) for option in asked):
            others = " or ".join(str(option) for option in choice.without(lacking).options)
            reason = lacking[choice.needs[asked[0]]]
            yield ("search", "space", choice.name), f"found {', '.join(asked)}; {reason}, or write {others}"


def without(spec: "Spec", space: Space, lacking: Lacking, *, say: Callable[[str], None]) -> Space:
    """``space`` without the strategies and options that need what is ``lacking``, which ``say`` hears of.

    Raises:
        SpecError: the spec asks for them by name.
    """
    lost = {
        name: reason
        for name in space.strategies
        if (reason := CATALOGUE[name].misfit(kind=spec.task.kind, lacking=lacking)) is not None
    }
    left = replace(
        space,
        strategies=tuple(name for name in space.strategies if name not in lost),
        lacking={**space.lacking, **lacking},
    )
    named = lost if "all" not in spec.search.strategies else {}
    problems = [f"search.strategies: {name} {reason}" for name, reason in named.items()]
    for choice, options, reason in _lost_options(space, left):
        if not left.options(choice):
            problems.append(f"search.space.{choice.name}: found {options}; {reason}")
        say(f"strategies: {choice.name} goes without {options}: {reason}")
    if problems:
        raise SpecError(problems)
    for name, reason in lost.items():
        say(f"strategies: {name} is left out: it {reason}")
    return left


def _lost_options(space: Space, left: Space) -> Iterator[tuple[Choice, str, str]]:
    """(parameter, options, why) of all that the strategies of ``left`` could pick in ``space`` and no more."""
    read = {span.name: span for name in left.strategies for span in CATALOGUE[name].parameters}
    for choice in read.values():
        if isinstance(choice, Choice):
            lost = [option for option in space.options(choice) if option not in left.options(choice)]
            if lost:
                yield choice, ", ".join(map(str, lost)), left.lacking[choice.needs[lost[0]]]
