"""Random searches of a run's space, simulated by what its records tell."""

import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from ledgers import _GAIN, _TAUGHT, RunSettings, make_run, make_space

from search.budget import Limits, seconds_spent
from search.foreknown import Works, work_of
from search.history import outcomes
from search.progress import Step
from search.report.build import build
from search.report.figures import figures
from search.report.html import render_html
from search.run import load_run
from search.simulation.by_chance import _band, _search
from search.simulation.learned import LearnedPlans, Lessons
from spaces.choosers import RandomChooser
from spaces.draw import draw


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("run"), RunSettings(trials=30, space=True)).location)


@pytest.fixture(scope="module")
def lessons(run):
    past = outcomes(run.ledger.proposals, run.records, run.goals, baseline=None)
    return Lessons.of(past, drawing=partial(draw, run.space), goals=run.goals, precisions=run.precisions)


def _plans(run, lessons, seed=0):
    return LearnedPlans(lessons=lessons, works=Works(partial(work_of, latency=run.full_precision_latency_s)), seed=seed)


def test_a_run_knows_its_space(run):
    assert run.space == make_space()


def test_quality_and_seconds_of_new_plans_are_foretold(run, lessons):
    """As ``ledgers`` makes them up: 14 seconds a layer and 55 of a teacher; int8 costs a little quality."""
    plans, rng = _plans(run, lessons), random.Random(1)
    courses = [(found, plans.course(found)) for found in (draw(run.space, RandomChooser(rng)) for _ in range(60))]
    layers = np.array([found.plan.shape.num_layers or 6 for found, _ in courses])
    taught = np.array([found.strategy in _TAUGHT for found, _ in courses])
    seconds = np.array([course.cost for _, course in courses])
    assert np.median(np.abs(seconds / (14.0 * layers + 55.0 * taught) - 1)) < 0.1
    fp32, int8 = (np.array([course.variants[name].quality for _, course in courses]) for name in ("fp32", "int8"))
    truth = 0.2 * (1 - np.exp(-layers / 2.2)) + [_GAIN[found.strategy] for found, _ in courses]
    assert np.corrcoef(fp32, truth)[0, 1] > 0.6
    assert 0.0 < np.mean(fp32 - int8) < 0.05
    assert lessons.explained > 0.4


def test_where_quality_depends_on_nothing_nothing_is_explained(run):
    rng = np.random.default_rng(0)
    past = outcomes(run.ledger.proposals, run.records, run.goals, baseline=None)
    noise = [outcome if outcome.values is None else _with_quality(outcome, float(rng.normal())) for outcome in past]
    found = Lessons.of(noise, drawing=partial(draw, run.space), goals=run.goals, precisions=run.precisions)
    assert found.explained < 0.1


def _with_quality(outcome, quality):
    return type(outcome)(**{**vars(outcome), "values": (quality, *outcome.values[1:])})


def test_a_simulated_search_trains_beginnings_once_and_all_plans_to_their_end(run, lessons):
    plans = _plans(run, lessons)
    records = _search(plans, run, Limits(trials=25))
    of_plan = {record.number: record for record in records}
    assert len(of_plan) == 25
    assert {record.status for record in records} == {"complete"}
    parts, spent = set(), 0.0
    for record in sorted(of_plan.values(), key=lambda record: record.number):
        (course,) = [c for name, c in plans._courses.items() if name == record.fingerprint]
        spent += course.costs[-1] + sum(cost for part, cost in course.parts.items() if part not in parts)
        parts |= {*course.parts, record.fingerprint}
    assert sum(seconds_spent([record]) for record in of_plan.values()) == pytest.approx(spent)
    assert sum(record.prefix_seconds_saved for record in of_plan.values()) > 0


def test_bands_rise_to_the_end_of_the_run_and_are_the_same_again(run):
    found = run.by_chance
    assert set(found.bands) == {"cpu", "phone"}
    assert found.num_plans == len({r.number for r in run.records if r.status == "complete"})
    for band in found.bands.values():
        assert band.train_seconds[-1] == pytest.approx(run.hypervolume_over_time()["train_seconds"].to_pylist()[-1])
        for low, median, high in zip(band.low, band.median, band.high, strict=True):
            assert 0 <= low <= median <= high <= 1
        assert all(before <= after + 1e-12 for before, after in pairwise(band.median))
    assert load_run(run.storage.location).by_chance == found


def test_a_band_by_hand():
    def step(at, volume):
        return Step(seconds=at, train_seconds=at, trials=1, hypervolume=volume)

    found = _band([[step(10.0, 0.2), step(59.0, 0.6)], [step(30.0, 0.4)], [step(0.5, 0.1)]], 59.0)
    assert found.train_seconds == tuple(range(60))
    assert found.median == pytest.approx([0.0] + [0.0] * 9 + [0.1] * 20 + [0.2] * 29 + [0.4])
    assert found.high[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("trials", "kept", "why"), [(8, True, "with 7 complete plans"), (12, False, "no space.json that this version")]
)
def test_where_there_is_too_little_to_go_by_a_sentence_says_so(trials, kept, why, tmp_path):
    storage = make_run(tmp_path, RunSettings(trials=trials, space=True))
    if not kept:
        storage.write("space.json", b'{"base": 3}')
    run = load_run(tmp_path)
    assert run.by_chance.bands == {}
    report = build(run)
    page = render_html(report)
    assert "What random searches would have reached is not shown" in page
    assert not [trace for trace in figures(report)["over-time"]["data"] if "random" in trace.get("name", "")]
    assert why in page


def test_the_report_shows_the_band_and_says_that_it_is_a_simulation(run):
    report = build(run)
    names = [trace.get("name") for trace in figures(report)["over-time"]["data"]]
    assert names == [None, None, "random searches on cpu, simulated", "this search on cpu", "this search on phone"]
    page = render_html(report)
    assert f"Gaussian processes of the {run.by_chance.num_plans} complete plans of this run" in page
    assert "On cpu random searches come to" in page
