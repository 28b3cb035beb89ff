"""A search against another one: hypervolume over time, how much sooner, and that both search the same space."""

import argparse
import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anytime import Box, Found, Step, final, over_time, time_to, times_sooner
from by_ray_tune import BATCH_SIZE, STRATEGIES, TEACHER, define_space
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from versus_ray_tune import compared, text, write
from versus_sides import SPEC, settings_of

from search.optuna_terms import DistributionChooser
from search.spec import load_spec, space_of
from spaces.choosers import Chooser, RandomChooser, RecordingChooser, Value
from spaces.draw import draw
from spaces.space import Space
from trainers.models import ModelInfo

BOX = Box(guessing=0.2, quickest_ms=1.0, slowest_ms=100.0)


def found(seconds: float, quality: float, latency_ms: float) -> Found:
    return Found(seconds=seconds, quality=quality, latency_ms=latency_ms)


def test_hypervolume_is_the_share_of_the_box() -> None:
    # Error .4 of .8 and 10 of 1 … 100 ms: half of each side. Then .2 of .8 at the slowest but a half.
    steps = over_time([found(5, 0.6, 10.0), found(9, 0.8, 10**1.5)], BOX, until_s=60)
    assert [step.seconds for step in steps] == [5, 9]
    assert [step.hypervolume for step in steps] == pytest.approx([0.25, 0.25 + 0.25 * 0.25])


@given(
    st.lists(
        st.builds(found, st.floats(0, 100), st.floats(0, 1), st.floats(0.5, 200)),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_hypervolume_over_time_is_that_of_what_was_found_by_then(all_found: list[Found], rng: random.Random) -> None:
    rng.shuffle(all_found)
    steps = over_time(all_found, BOX, until_s=80)
    assert [step.hypervolume for step in steps] == sorted(step.hypervolume for step in steps)
    for moment in (0.0, 25.0, 50.0, 80.0, 100.0):
        there = [one for one in all_found if one.seconds <= min(moment, 80)]
        last = [step for step in steps if step.seconds <= moment]
        assert final(last) == pytest.approx(by_counting(there), abs=1e-6)


def by_counting(there: list[Found]) -> float:
    """The share of the box by cells between all coordinates: another way than the fronts'."""
    places = np.array([BOX.place(one) for one in there]).reshape(-1, 2)
    if not len(places):
        return 0.0
    low = np.minimum(places.min(axis=0), 0)
    edges = [np.unique(np.clip([*places[:, side], low[side], 1.0], None, 1.0)) for side in (0, 1)]
    covered = (places[:, None, None, 0] <= edges[0][None, :-1, None]) & (
        places[:, None, None, 1] <= edges[1][None, None, :-1]
    )
    return float((covered.any(axis=0) * np.outer(np.diff(edges[0]), np.diff(edges[1]))).sum())


def test_what_is_found_too_late_does_not_count() -> None:
    assert over_time([found(61, 0.9, 2.0)], BOX, until_s=60) == []


def steps_of(*pairs: tuple[float, float]) -> list[Step]:
    return [Step(seconds=seconds, hypervolume=volume) for seconds, volume in pairs]


def test_times_sooner_is_to_the_last_gain_of_the_other() -> None:
    ours, theirs = steps_of((10, 0.3), (50, 0.6), (70, 0.7)), steps_of((100, 0.2), (400, 0.5))
    assert times_sooner(ours, theirs) == 8
    assert times_sooner(theirs, ours) == 0
    assert math.isnan(times_sooner(ours, []))
    assert times_sooner([], theirs) == 0
    assert time_to(ours, 0.8) == math.inf


def test_comparison_scores_both_sides_by_the_same_latencies() -> None:
    costs = {"6 layers, fp32": 10.0, "6 layers, int8": 5.0, "1 layers, int8": 1.0}
    row = {"accuracy": 0.6, "own_latency_ms": 123.0, "num_layers": None, "precision": "int8"}
    runs = [
        {"side": "distune", "seed": 0, "rows": [{**row, "seconds": 30.0}]},
        {"side": "ray", "seed": 0, "rows": [{**row, "seconds": 90.0, "own_latency_ms": 1.0}]},
        {"side": "ray", "seed": 1, "rows": [{**row, "seconds": 90.0}]},
    ]
    result = {"runs": runs, "latency_ms": costs, "base_layers": 6, "num_labels": 5, "settings": {"minutes": 2}}
    (one,) = compared(result)
    assert (one["distune_hypervolume"], one["ratio"]) == (one["ray_hypervolume"], 3.0)


def test_a_side_that_found_nothing_is_said_and_is_null_in_the_file(tmp_path: Path) -> None:
    row = {"accuracy": 0.6, "seconds": 90.0, "num_layers": 1, "precision": "int8"}
    runs = [
        {"side": side, "seed": seed, "rows": [row] if found else [], "failed": ["out of memory"]}
        for side, seed, found in (("distune", 0, True), ("ray", 0, False), ("distune", 1, False), ("ray", 1, True))
    ]
    costs = {"6 layers, fp32": 10.0, "1 layers, int8": 1.0}
    result = {"runs": runs, "latency_ms": costs, "base_layers": 6, "num_labels": 5, "settings": {"minutes": 2}}
    assert text(result).splitlines() == [
        "distune, seed 0: 1 variants, 1 trials failed",
        "ray, seed 0: 0 variants, 1 trials failed",
        "distune, seed 1: 0 variants, 1 trials failed",
        "ray, seed 1: 1 variants, 1 trials failed",
        "seed 0: Ray Tune found nothing; distune's hypervolume 0.5000",
        "seed 1: hypervolume 0.0000 against Ray Tune's 0.5000; the latter never against 90 s: 0.00x",
        "median of 1 seeds: 0.00x",
    ]
    write(result, argparse.Namespace(json=tmp_path / "result.json"))
    written = json.loads((tmp_path / "result.json").read_text())["compared"]
    assert [one["ratio"] for one in written] == [None, 0.0]
    assert written[1]["distune_s"] is None


class AsTrial:
    """A chooser under the names of an Optuna trial's methods."""

    def __init__(self, chooser: Any) -> None:
        self._chooser = chooser

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._chooser.categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self._chooser.integer(name, low, high, log=log)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._chooser.real(name, low, high, log=log)


def asked_by_strategy(ask: Callable[[Chooser], object]) -> dict[Value, dict[str, Any]]:
    """What is asked for at each strategy, without what leaves no choice, over many draws."""
    rng, asked = random.Random(0), {}
    for _ in range(100):
        picks = RecordingChooser(RandomChooser(rng))
        chooser = DistributionChooser(picks)
        ask(chooser)
        asked[picks.picked["strategy"]] = {name: span for name, span in chooser.asked.items() if not span.single()}
    return asked


@pytest.fixture
def space() -> Space:
    base = ModelInfo(
        reference="base",
        folder=SPEC.parent,
        fingerprint="b" * 64,
        tokenizer_fingerprint="t" * 64,
        vocabulary_fingerprint="v" * 64,
        model_type="bert",
        num_layers=6,
        hidden_size=384,
        vocab_size=30522,
        max_tokens=512,
    )
    return space_of(load_spec(SPEC, settings_of(limit=60, seed=0)), base=base, data="d", teacher=None)


def test_both_sides_search_the_same_space(space: Space) -> None:
    ours = asked_by_strategy(partial(draw, space))
    theirs = asked_by_strategy(lambda chooser: define_space(AsTrial(chooser)))
    precisions = {asked.pop("precision") for asked in theirs.values()}
    assert set(ours) == set(STRATEGIES)
    assert theirs == ours
    assert precisions == {CategoricalDistribution(load_spec(SPEC).precisions)}


def test_both_sides_have_the_same_teacher_and_batches(space: Space) -> None:
    (recipe,) = space.teacher_recipes.values()
    assert (recipe.learning_rate, recipe.epochs) == (TEACHER["learning_rate"], TEACHER["epochs"])
    assert recipe.batch_size == space.batch_size == BATCH_SIZE
