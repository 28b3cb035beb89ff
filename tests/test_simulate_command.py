"""``distune simulate``: what is compared, how it is measured, and what is shown of it."""

import json
import math
import re

import pytest
from tables import CURVES, curve_columns, plain_columns, write_problem
from typer.testing import CliRunner

from search.cli import app
from search.simulation.command import WrongChoice, carry_out, study_of
from search.simulation.comparison import SpeedUp, compare, speed_up
from search.simulation.page import render_page
from search.simulation.study import Competitor
from search.simulation.trace import Trace


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    columns = plain_columns(rates=(0.001, 0.003, 0.01, 0.03, 0.1), depths=tuple(range(1, 9)))
    return write_problem(tmp_path_factory.mktemp("plain"), columns=columns)


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    return write_problem(tmp_path_factory.mktemp("curves"), CURVES, curve_columns(num=8))


def _study(path, samplers="random", schedulers="none", workers="1", seeds=2, **limits):
    return study_of(
        path, samplers=samplers, schedulers=schedulers, workers=workers, seeds=seeds, limits=limits or {"trials": 12}
    )


def _run(*words):
    return CliRunner().invoke(app, ["simulate", *map(str, words)])


def test_everything_that_was_asked_for_is_in_the_json(plain):
    found = _run(plain, "--sampler", "random,tpe", "--workers", "1,4", "--seeds", 2, "--trials", 12, "--json", "-")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["objectives"] == {"accuracy": "max", "size": "min"}
    assert told["reference"] == {"accuracy": pytest.approx(0.9 * 0.51), "size": pytest.approx(88.0)}
    assert [comparison["workers"] for comparison in told["comparisons"]] == [1, 4]
    for comparison in told["comparisons"]:
        assert [one["name"] for one in comparison["competitors"]] == ["random", "tpe"]
        for one in comparison["competitors"]:
            assert [search["num_trials"] for search in one["searches"]] == [12, 12]
            assert one["shares"]["1"]["median"] == pytest.approx(sum(s["share"][-1] for s in one["searches"]) / 2)
        assert sum(one["rank"] for one in comparison["competitors"]) == 3.0
    assert "random, 1 worker" not in found.stdout


def test_tables_and_page_name_every_competitor(plain, tmp_path):
    found = _run(plain, "--sampler", "random,tpe", "--seeds", 2, "--trials", 12, "--html", tmp_path / "page.html")
    assert found.exit_code == 0, found.output
    assert "problem, 1 worker, 12 trainings, 2 seeds" in found.output
    assert len(re.findall(r"^(random|tpe) ", found.output, flags=re.M)) == 6
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="dot circle"') == 6
    assert '<div class="plot" id="plot-workers-1"' in page


def test_processes_find_what_one_finds(plain):
    """All but our own time, which differs."""
    one, two = (carry_out(_study(plain), name="p", jobs=jobs).to_json() for jobs in (1, 2))
    for told in (one, two):
        for competitor in told["comparisons"][0]["competitors"]:
            for timed in (competitor, *competitor["searches"]):
                del timed["proposal_ms"], timed["results_per_s"]
    assert one == two


def test_a_budget_of_cost_is_what_shares_are_of(curves):
    findings = carry_out(_study(curves, device_hours=200 / 3600), name="p", jobs=1)
    (comparison,) = findings.comparisons
    assert comparison.budget == pytest.approx(200.0)
    assert findings.to_json()["cost"] == pytest.approx(200.0)


def test_a_fan_out_as_a_parameter_yields_one_variant_a_training(curves):
    findings = carry_out(_study(curves, samplers="random,random:single", trials=100), name="p", jobs=1)
    both, single = findings.traces[1].values()
    assert [trace.num_trials for trace in both] == [8, 8]
    assert [trace.num_trials for trace in single] == [16, 16]
    assert both[0].share[-1] == pytest.approx(single[0].share[-1]) == pytest.approx(1.0)


def test_a_page_escapes_what_comes_from_a_file(plain):
    findings = carry_out(_study(plain, seeds=1), name="<script>alert(1)</script>", jobs=1)
    assert "<script>alert(1)" not in render_page(findings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samplers": "tpo"}, "--sampler: unknown 'tpo'; did you mean 'tpe'?"),
        ({"schedulers": "non"}, "--scheduler: unknown 'non'; did you mean 'none'?"),
        ({"workers": "1,x"}, "--workers: found '1,x'; expected numbers from 1"),
        ({"workers": "0"}, "--workers: found '0'"),
        ({"samplers": "tpe:single"}, "--sampler: :single is for problems with a fan_out"),
    ],
)
def test_words_that_are_none_of_the_choices_are_refused(plain, changes, said):
    with pytest.raises(WrongChoice, match=re.escape(said)):
        _study(plain, **changes)


def test_a_wrong_word_is_told_in_one_line(plain):
    found = _run(plain, "--sampler", "tpo")
    assert found.exit_code == 2
    assert "did you mean 'tpe'?" in found.output


# How competitors stand to each other ----------------------------------------------------------------------------------


def _trace(spent, share, **changes):
    values = {
        "cost": 0.0,
        "stopped_cost": 0.0,
        "beaten_cost": 0.0,
        "saved_cost": 0.0,
        "makespan": 0.0,
        "num_trials": len(spent),
        "num_stopped": 0,
        "proposal_ms": 1.0,
        "results_per_s": 100.0,
    }
    return Trace(spent=spent, share=share, **(values | changes))


SLOW = _trace([10.0, 40.0, 80.0], [0.3, 0.5, 0.8], cost=100.0)
FAST = _trace([5.0, 20.0], [0.5, 0.9], cost=100.0, stopped_cost=25.0)
STUCK = _trace([10.0], [0.6], cost=100.0, beaten_cost=50.0)


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ([FAST], [SLOW], SpeedUp(median=4.0, num_never=0)),
        ([SLOW], [FAST], SpeedUp(median=0.0, num_never=1)),
        ([FAST, FAST, STUCK], [SLOW, STUCK, SLOW], SpeedUp(median=0.5, num_never=1)),
        ([FAST, STUCK], [SLOW, SLOW], SpeedUp(median=0.0, num_never=1)),
    ],
)
def test_a_speed_up_counts_from_when_the_other_had_it(own, others, expected):
    """80 / 20; 10 / 20; never."""
    assert speed_up(own, others) == expected


def test_competitors_are_ranked_seed_by_seed_and_equal_ones_share():
    names = [Competitor(sampler=name, scheduler="none") for name in ("slow", "fast", "stuck")]
    traces = dict(zip(names, ([SLOW, SLOW], [FAST, SLOW], [STUCK, STUCK]), strict=True))
    found = compare(traces, workers=1, budget=None)
    assert [score.rank for score in found.scores] == [1.75, 1.25, 3.0]
    assert found.budget == 100.0
    assert [score.shares[0.1].median for score in found.scores] == pytest.approx([0.3, 0.4, 0.6])
    assert [score.stopped for score in found.scores] == pytest.approx([0.0, 0.125, 0.0])
    assert [score.beaten for score in found.scores] == pytest.approx([0.0, 0.0, 0.5])


def test_a_search_that_found_nothing_has_no_hypervolume():
    nothing = _trace([], [], cost=0.0, makespan=0.0)
    names = [Competitor(sampler=name, scheduler="none") for name in ("nothing", "slow")]
    found = compare(dict(zip(names, ([nothing], [SLOW]), strict=True)), workers=1, budget=None)
    assert [score.rank for score in found.scores] == [2.0, 1.0]
    assert found.scores[0].shares[1.0].median == 0.0
    assert nothing.cost_to(0.1) == math.inf
