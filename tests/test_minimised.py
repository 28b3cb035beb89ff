"""A quality that is minimised: the mirror image of one that is maximised, from the sampler to the report."""

import contextlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ledgers import RunSettings, make_record, make_run
from simulated import GOALS, SPACE, Case, World, empty_memory, ledger_of, run_search
from tiny_writing import writing_spec

from search import engine
from search.ablation import best_of_groups
from search.cluster import Layout
from search.engine import Search
from search.history import outcomes
from search.report.build import build
from search.report.figures import figures
from search.report.sections import sections
from search.run import Run, load_run
from search.sampler import RandomSampler, TpeSampler
from search.spec import SpecError, load_spec
from search.words import say
from spaces.draw import draw
from spaces.objectives import OBJECTIVES, parse_constraint
from trainers import generation_cost
from trainers.carry_out import carry_out
from trainers.cost import probe
from trainers.ranks import solo

MINIMISED = replace(GOALS, metric="perplexity", objectives=("perplexity", "latency_ms"))


def test_more_is_better_of_gain_and_score() -> None:
    for name, objective in OBJECTIVES.items():
        better, worse = (3.0, 2.0) if objective.direction == "max" else (2.0, 3.0)
        assert objective.gain(better) > objective.gain(worse) and objective.score(better) > objective.score(worse), name
        assert objective.gain(objective.gain(2.5)) == 2.5
    # Half the perplexity is the same step anywhere; a point of accuracy is, too.
    steps = [OBJECTIVES["perplexity"].score(value) - OBJECTIVES["perplexity"].score(2 * value) for value in (1.5, 40.0)]
    assert steps == pytest.approx([math.log(2)] * 2)
    assert OBJECTIVES["accuracy"].score(0.7) == 0.7 and OBJECTIVES["forgetting"].score(-0.1) == 0.1


# A search -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _empty_memory() -> Any:
    yield
    empty_memory()


@pytest.mark.parametrize("seats", [1, 3])
def test_a_search_stops_and_keeps_the_same_plans(seats: int) -> None:
    case = Case(trials=24, seats=seats, sampler=RandomSampler(draw=partial(draw, SPACE), seed=0))
    plain = run_search(case)
    mirrored = run_search(replace(case, goals=MINIMISED), World(measured=lambda quality: math.exp(-quality)))
    found, other = (
        {record.record_id: record for record in ledger_of(world, metric).records}
        for world, metric in ((plain, "accuracy"), (mirrored, "perplexity"))
    )
    assert {name: record.status for name, record in found.items()} == {name: r.status for name, r in other.items()}
    assert "stopped" in {record.status for record in found.values()}
    for name, record in found.items():
        if record.quality is not None:
            assert other[name].quality == pytest.approx(math.exp(-record.quality))
    assert plain.trained == mirrored.trained


def test_the_sampler_proposes_the_same_plans() -> None:
    ledger = ledger_of(run_search(Case(trials=14)))
    past = outcomes(ledger.proposals, ledger.records, GOALS, baseline=None)
    mirrored = [
        outcome if outcome.values is None else replace(outcome, values=(-outcome.values[0], *outcome.values[1:]))
        for outcome in past
    ]
    assert (GOALS.directions[0], MINIMISED.directions[0]) == ("max", "min")
    one, other = (
        TpeSampler(draw=partial(draw, SPACE), directions=goals.directions, seed=3) for goals in (GOALS, MINIMISED)
    )
    assert [one(past, [], number) for number in (14, 15)] == [other(mirrored, [], number) for number in (14, 15)]


def test_a_constraint_against_the_baseline_is_turned_round() -> None:
    goals = replace(MINIMISED, constraints=(parse_constraint("perplexity <= 1.1 * baseline"),))
    record = make_record(0, quality=8.0)
    assert [goals.feasible(record, baseline=baseline) for baseline in (7.0, 7.5, 8.0)] == [False, True, True]
    assert goals.violations(record, baseline=5.0)["perplexity <= 1.1 * baseline"] == pytest.approx(2.5 / 5.5)


# What is made of it ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same run by accuracy and by perplexity, exp(3 - accuracy); both without the answers to each row."""
    plain = make_run(tmp_path_factory.mktemp("plain"), RunSettings())
    plain.remove("validation_labels.json")
    mirrored = make_run(tmp_path_factory.mktemp("mirrored"), RunSettings(metric="perplexity"))
    return load_run(plain.location), load_run(mirrored.location)


def test_the_front_and_what_is_best_are_the_same(runs: tuple[Run, Run]) -> None:
    for target in ("cpu", "phone"):
        fronts = [[record.record_id for record in run.front_records(target)] for run in runs]
        assert fronts[0] == fronts[1] and len(fronts[0]) > 2
    assert runs[0].best_by_size()["record_id"] == runs[1].best_by_size()["record_id"]
    covered = [run.hypervolume_over_time("cpu")["hypervolume"].to_pylist() for run in runs]
    assert covered[0] == pytest.approx(covered[1])
    members = [[member.record.record_id for member in best_of_groups(run, by="strategy").members] for run in runs]
    assert members[0] == members[1]


@pytest.mark.parametrize("wish", ["knee", "quality", "cost"])
def test_the_choice_is_the_same_and_says_so(wish: str, runs: tuple[Run, Run]) -> None:
    plain, mirrored = (run.select(wish=wish) for run in runs)
    assert plain.record.record_id == mirrored.record.record_id
    assert [record.record_id for record, _ in plain.rivals] == [record.record_id for record, _ in mirrored.rivals]
    for (record, why), (_, other) in zip(mirrored.rivals, plain.rivals, strict=True):
        if "not measurably better" in other:
            said = f"perplexity {say('perplexity', record.quality)} is not measurably better than"
            assert said in why and "%, 90 % interval" in why
        else:
            assert why.partition(",")[0] == other.partition(",")[0]
    assert [reason.replace("perplexity", "accuracy") for reason in mirrored.reasons] == list(plain.reasons)


def test_the_report_is_turned_upside_down(runs: tuple[Run, Run]) -> None:
    plain, mirrored = (build(run) for run in runs)
    assert dict(mirrored.importance.shares) == pytest.approx(dict(plain.importance.shares), abs=0.005)
    plots = [figures(report) for report in (plain, mirrored)]
    for report, drawn, word in zip((plain, mirrored), plots, ("Up", "Down"), strict=True):
        assert f"{word} and to the left is better" in "".join(sections(report, drawn))
    ranges = [drawn["front-cpu"]["layout"]["yaxis"]["range"] for drawn in plots]
    best = [max(r.quality for r in runs[0].records if r.quality), min(r.quality for r in runs[1].records if r.quality)]
    assert all(low < value < high for (low, high), value in zip(ranges, best, strict=True))
    worst = max(record.quality for record in runs[1].records if record.quality)
    assert ranges[1][1] < worst + 0.5 and ranges[1][0] > best[1] - 1


# A real one -----------------------------------------------------------------------------------------------------


def test_a_spec_may_ask_for_it(tmp_path: Path) -> None:
    task = {"metric": "perplexity", "rationale": "why"}
    search: dict[str, Any] = {"objectives": ["perplexity", "latency_ms"], "strategies": ["full", "distill_cot"]}
    load_spec(writing_spec(tmp_path, task=task, search=search))
    asked = {**search, "space": {"cot_mode": "generate"}}
    with pytest.raises(
        SpecError, match=r"search.space.cot_mode: found generate; task.metric is perplexity, .* or write m"
    ):
        load_spec(writing_spec(tmp_path, task=task, search=asked))


def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and probes are this process."""

    def carry_on(_session: Any, conductor: Any, prepared: Any, _layout: Layout) -> None:
        while not isinstance(proposal := conductor.next(), str):
            number = proposal.number
            result = carry_out(
                proposal.draw.plan,
                list(prepared.precisions),
                prepared.context,
                ranks=solo(),
                report=lambda progress, number=number: conductor.goes_on(number, progress),
            )
            conductor.complete(number, result)

    monkeypatch.setattr(engine, "ray_running", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(engine, "lay_out", lambda *_, **__: Layout(seats=1, workers=1, cpus=1))
    monkeypatch.setattr(engine, "probe_apart", probe)
    monkeypatch.setattr(engine, "export_shapes", lambda _: lambda _: None)
    monkeypatch.setattr(engine._Session, "_carry_on", carry_on)
    monkeypatch.setattr(generation_cost, "CALLS", 2)


def test_a_search_that_ships_the_least_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a search but Ray: prepared, trained, recorded, chosen, exported and measured again."""
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    _without_ray(monkeypatch)
    search = {"objectives": ["perplexity", "size_mb"], "constraints": ["perplexity <= 2 * baseline"], "batch_size": 8}
    task = {"metric": "perplexity", "test": None}
    spec = writing_spec(
        tmp_path, task=task, search={**search, "strategies": ["full", "small_finetune"]}, budget={"trials": 2}
    )
    run = Search.from_yaml(spec).run()
    complete = [record for record in run.records if record.status == "complete"]
    assert len(complete) == 4 and all((record.quality or 0.0) > 1.0 for record in complete)
    smallest = min(complete, key=lambda record: record.quality or math.inf)
    assert smallest.record_id in {record.record_id for record in run.front_records("cpu")}
    assert run.select(wish="quality").metric == "perplexity"
    assert all((record.curve[-1][1]) < record.curve[0][1] for record in complete), "it falls while it is trained"
    assert (tmp_path / "runs/writing/best/README.md").read_text().count("perplexity, validation") == 1
