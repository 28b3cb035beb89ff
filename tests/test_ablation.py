"""Ablation: groups and the best of each on made-up records, times of tiny real models, what the report says."""

import io
import itertools
import json
import re
from collections import Counter
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from generation_task import generation_context
from hypothesis import given
from hypothesis import strategies as st
from ledgers import RunSettings, add_ablation, make_record, make_run, make_space
from rich.console import Console
from training_task import finetuning, plan_of, tiny_context
from typer.testing import CliRunner

from search.ablation import (
    AblationError,
    Batch,
    ablation_to_json,
    best,
    best_of_groups,
    groupable,
    grouped,
    read_ablations,
)
from search.cli import app
from search.export import ExportError
from search.ledger import Ledger
from search.question import Question
from search.report.ablation_section import ablation_section, explained
from search.report.batch_figures import batch_figures
from search.report.build import build
from search.report.figures import figures
from search.report.html import render_html
from search.report.sections import sections
from search.report.text import render_ablation
from search.run import Run, RunError, load_run
from search.select import NoChoice
from search.side_by_side import measure
from spaces.draw import opening
from spaces.plan import Plan
from spaces.shape import Shape
from trainers import generation_cost, graph_cost
from trainers.causal_models import load_causal
from trainers.context import Context
from trainers.cost import probe, write_cost_table
from trainers.measuring import time_in_turn
from trainers.models import load_classifier, save_model
from trainers.onnx_graph import randomise
from trainers.packed import write_packed
from trainers.storage import Storage, StorageError

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


def question(metric: str = "accuracy", *costs: str) -> Question:
    return Question(
        metric=metric, objectives=(metric, *costs), constraints=(), target="cpu", wish="quality", baseline=None
    )


# Groups ---------------------------------------------------------------------------------------------------------


def with_params(*params):
    return [make_record(number, params=found) for number, found in enumerate(params)]


def members(groups):
    return {name: [record.number for record in records] for name, records in groups.items()}


def test_a_group_for_every_value_in_its_order() -> None:
    records = with_params({"rank": 16}, {"rank": 4}, {"teacher": "long"}, {"rank": 16, "teacher": "standard"})
    groups, without = grouped(records, "rank")
    assert list(members(groups).items()) == [("4", [1]), ("16", [0, 3])]
    assert [record.number for record in without] == [2]
    assert members(grouped(records, "teacher")[0]) == {"long": [2], "standard": [3]}
    assert groupable(records) == ["strategy", "student_layers", "precision", "rank", "teacher"]


def test_layers_are_those_of_the_plan() -> None:
    draws = list(opening(make_space()))
    records = [make_record(n, plan=d.plan.to_json(), strategy=d.strategy) for n, d in enumerate(draws)]
    layers = [draw.params.get("student_layers") for draw in draws]
    expected = {
        "all layers" if size is None else f"{size} layer{'' if size == 1 else 's'}": [
            number for number, found in enumerate(layers) if found == size
        ]
        for size in set(layers)
    }
    groups, without = grouped(records, "student_layers")
    assert members(groups) == expected
    assert list(groups)[-1] == "all layers"
    assert without == []


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40))
def test_many_numbers_are_cut_into_ranges_of_as_many_values(rates) -> None:
    records = with_params(*({"rate": rate} for rate in rates))
    groups, without = grouped(records, "rate")
    assert without == []
    assert sorted(record.number for own in groups.values() for record in own) == list(range(len(rates)))
    held = [{record.params["rate"] for record in own} for own in groups.values()]
    # One range ends before the next one begins.
    assert all(max(one) < min(other) for one, other in itertools.pairwise(held))
    if len(set(rates)) > 6 and len({f"{rate:g}" for rate in rates}) == len(set(rates)):
        assert len(groups) == 4
        assert max(map(len, held)) - min(map(len, held)) <= 1


def test_ranges_by_hand() -> None:
    groups, _ = grouped(with_params(*({"rate": rate / 1000} for rate in (8, 1, 7, 2, 6, 3, 5, 4, 8))), "rate")
    assert members(groups) == {
        "0.001–0.002": [1, 3],
        "0.003–0.004": [5, 7],
        "0.005–0.006": [4, 6],
        "0.007–0.008": [0, 2, 8],
    }


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(AblationError, match=r"'rnak'; did you mean 'rank'\?; in this run: strategy, .*, rank$"):
        grouped(with_params({"rank": 1}), "rnak")


# The best of a group --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7]), st.sampled_from([1.0, 2.0])), min_size=1))
def test_the_best_has_the_best_quality_and_of_equals_the_least_cost(values) -> None:
    records = [make_record(n, quality=quality, latency_ms=ms) for n, (quality, ms) in enumerate(values)]
    found = best(records, question())
    top = max(quality for quality, _ in values)
    assert (found.quality, found.latency_ms) == (top, min(ms for quality, ms in values if quality == top))
    assert best(records[::-1], question()) == found


def test_objectives_settle_ties_before_latency() -> None:
    quick, small = make_record(0, latency_ms=1.0, size_mb=9.0), make_record(1, latency_ms=2.0, size_mb=3.0)
    unknown = make_record(2, latency_ms=1.5)
    assert best([quick, small, unknown], question("accuracy", "size_mb")) == small
    assert best([quick, small, unknown], question("accuracy")) == quick


def test_perplexity_is_to_be_small() -> None:
    records = [make_record(0, quality=9.0), make_record(1, quality=3.0), make_record(2, quality=5.0)]
    assert best(records, question("perplexity")).number == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(make_run(tmp_path_factory.mktemp("run"), RunSettings(constraints=("size_mb <= 85",))).location)


def test_each_group_is_stood_for_by_its_best_on_the_target(run: Run) -> None:
    found = best_of_groups(run, by="strategy", where=["latency_ms <= 4"])
    fits = [r for r in run.records if r.status == "complete" and r.target == "cpu" and r.size_mb <= 85]
    fits = [r for r in fits if r.latency_ms <= 4]
    expected = {name: max(r.quality for r in fits if r.strategy == name) for name in {r.strategy for r in fits}}
    assert {member.group: member.record.quality for member in found.members} == expected
    assert {member.group: member.num_variants for member in found.members} == {
        name: sum(r.strategy == name for r in fits) for name in expected
    }
    assert found.constraints == ("size_mb <= 85", "latency_ms <= 4")
    assert found.target == "cpu"
    for word in ("best accuracy on the validation rows", "fits every constraint", "of equals the cheaper one"):
        assert word in found.rule


def test_groups_of_which_none_fits_are_said(tmp_path: Path) -> None:
    make_run(tmp_path, RunSettings(trials=0, targets=("cpu",)))
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    ledger.append(make_record(0, strategy="full", size_mb=10.0))
    ledger.append(make_record(1, strategy="lora", size_mb=99.0, params={"lora_rank": 4}))
    ledger.append(make_record(2, strategy="dft", status="stopped", quality=None))
    found = best_of_groups(load_run(tmp_path), by="strategy", where=["size_mb <= 50"])
    assert [member.group for member in found.members] == ["full"]
    assert found.left_out == (
        "dft: no variant of it on cpu was trained to its end",
        "lora: no variant of it on cpu, of 1, fits the constraints",
    )
    assert best_of_groups(load_run(tmp_path), by="lora_rank").left_out == (
        "variants of strategies that have no lora_rank",
    )


def test_what_cannot_be_compared_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(AblationError, match=r"'phone' is an estimate .* measured in this run: cpu"):
        best_of_groups(run, by="strategy", target="phone")
    with pytest.raises(RunError, match="'moon' is not in this run; it has cpu, phone"):
        best_of_groups(run, by="strategy", target="moon")
    with pytest.raises(NoChoice, match="rules out"):
        best_of_groups(run, by="strategy", where=["size_mb <= 1"])
    estimated = load_run(make_run(tmp_path / "estimated", RunSettings(targets=("phone", "laptop"))).location)
    with pytest.raises(AblationError, match="no measured target, only estimates: phone, laptop"):
        best_of_groups(estimated, by="strategy")
    empty = load_run(make_run(tmp_path / "empty", RunSettings(trials=0)).location)
    with pytest.raises(NoChoice, match="let the search go on"):
        best_of_groups(empty, by="strategy")


# Timing ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6))
def test_each_stands_in_every_place_and_before_every_other_equally_often(count) -> None:
    called: list[int] = []

    def action(name: int):
        def call() -> float:
            called.append(name)
            return float(name)

        return call

    times = time_in_turn([action(name) for name in range(count)], calls=2 * count, warm_up=0)
    assert (times == np.arange(count)[:, None]).all()
    assert times.shape == (count, 2 * count)
    turns = [called[start : start + count] for start in range(0, len(called), count)]
    places = Counter((name, turn.index(name)) for turn in turns for name in range(count))
    before = Counter((one, two) for turn in turns for one, two in itertools.combinations(turn, 2))
    assert set(places.values()) == {2}
    assert len(places) == count**2
    assert set(before.values()) <= {count}
    assert len(before) == count * (count - 1)


class Session:
    """Stands for an ONNX Runtime session: notes who was asked for how much."""

    def __init__(self, name: str, asked: list) -> None:
        self.name, self.asked = name, asked

    def run(self, _outputs, inputs) -> None:
        self.asked.append((self.name, inputs["input_ids"].shape, int(inputs["attention_mask"].sum())))


def test_graphs_are_asked_in_turn_for_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list = []
    monkeypatch.setattr(graph_cost, "open_session", lambda file: Session(file.name, asked))
    files = [Path(name) for name in "abc"]
    one, eight = graph_cost.time_batches(files, batch_sizes=[1, 8], sequence_length=5)
    assert one.shape == eight.shape == (3, 60)
    half = len(asked) // 2
    assert {(shape, filled) for _, shape, filled in asked[:half]} == {((1, 5), 5)}
    assert {(shape, filled) for _, shape, filled in asked[half:]} == {((8, 5), 40)}
    turns = [{name for name, *_ in asked[start : start + 3]} for start in range(0, len(asked), 3)]
    assert turns == [{"a", "b", "c"}] * (2 * 70)


def test_models_that_write_are_asked_for_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = generation_context(tmp_path)
    model = load_causal(context.base_folder("base"))
    files = [write_packed(model, precision=precision, folder=tmp_path / precision) for precision in ("fp32", "int8")]
    sizes, steps, original, one_more = [], [], generation_cost.start, generation_cost.step

    def start(model, prompts, *, pad_id):
        sizes.append([len(prompt) for prompt in prompts])
        return original(model, prompts, pad_id=pad_id)

    def step(model, state, tokens):
        steps.append(len(tokens))
        return one_more(model, state, tokens)

    monkeypatch.setattr(generation_cost, "start", start)
    monkeypatch.setattr(generation_cost, "step", step)
    requests = [generation_cost.Request(6, 3), generation_cost.Request(6, 2)]
    found = list(generation_cost.time_batches(files, requests, batch_sizes=[1, 4]))
    assert [times.shape for times in found] == [(2, generation_cost.CALLS)] * 2
    assert all((times > 0).all() for times in found)
    calls = 2 * (generation_cost.CALLS + generation_cost.WARM_UP)
    assert sizes == [[6]] * calls + [[6] * 4] * calls
    # The first token of 3, and of 2, comes from reading the prompt.
    assert steps == [1] * (3 * calls // 2) + [4] * (3 * calls // 2)


# Measuring a run ------------------------------------------------------------------------------------------------


def trained_run(folder: Path) -> tuple[Storage, Context]:
    """A run of one trained tiny model at two precisions, and one plan whose model is gone."""
    context = tiny_context(folder / "work")
    plan = plan_of(finetuning())
    model = load_classifier(context.base_folder("base"), labels=context.labels)
    randomise(model, seed=0)
    with context.store.publish(plan.fingerprint, {"kind": "model"}) as draft:
        save_model(model, draft)
    storage = make_run(folder / "run", RunSettings(trials=0, targets=("cpu",)))
    storage.write_json("context.json", asdict(context))
    row = probe(Shape(base="base"), "fp32", context, reference=Shape(base="base"), sequence_length=7)
    write_cost_table([row], storage, "cost_table.parquet")
    ledger = Ledger(storage, metric="accuracy")
    for precision, params in (("fp32", {"rank": 1}), ("int8", {"rank": 1})):
        ledger.append(_of(plan, record_id=f"t00000-{precision}-cpu", precision=precision, params=params))
    gone = plan_of(finetuning(), seed=1)
    ledger.append(_of(gone, record_id="t00001-fp32-cpu", number=1, quality=0.2, params={"rank": 2}))
    return storage, context


def _of(plan: Plan, **changes):
    return make_record(plan=plan.to_json(), fingerprint=plan.fingerprint, size_mb=1.0, train_seconds=3.0, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return trained_run(tmp_path_factory.mktemp("trained"))[0]


def test_the_best_are_measured_written_down_and_reported(trained: Storage) -> None:
    run, heard = load_run(trained.location), []
    picked = best_of_groups(run, by="precision")
    found = measure(run, picked, batch_sizes=[1, 4], say=heard.append)
    assert [member.group for member in found.members] == ["fp32", "int8"]
    assert [replace(member, batches=()) for member in found.members] == list(picked.members)
    for member in found.members:
        assert [batch.batch_size for batch in member.batches] == [1, 4]
        for batch in member.batches:
            assert 0 < batch.latency_ms <= batch.latency_p95_ms
            assert batch.rows_per_s == pytest.approx(batch.batch_size / (batch.latency_ms / 1000))
    assert (found.sequence_length, found.output_tokens, found.num_calls) == (7, 0, 60)
    assert heard == ["deploying 2 variants", "timing batches of 1", "timing batches of 4"]
    assert read_ablations(load_run(trained.location)) == (found,)
    assert "Ablation by precision" in render_html(build(load_run(trained.location)))


def test_the_command_prints_tables_or_json(trained: Storage) -> None:
    command = ["ablate", trained.location, "--by", "precision", "--batch-sizes"]
    done = CliRunner().invoke(app, [*command, "2,1"])
    assert done.exit_code == 0, done.output
    assert "Ablation by precision on cpu" in done.stdout
    assert "rows of 7 tokens" in " ".join(done.stdout.split())
    assert "Ablation by precision" in trained.read("report.html").decode()
    done = CliRunner().invoke(app, [*command, "3", "--json"])
    assert json.loads(done.stdout) == trained.read_json("ablations/precision.json")
    assert [row["batches"][0]["batch_size"] for row in json.loads(done.stdout)["groups"]] == [3, 3]


def test_a_model_that_is_gone_is_named(trained: Storage) -> None:
    run = load_run(trained.location)
    picked = best_of_groups(run, by="rank")
    with pytest.raises(ExportError, match=r"t00001-fp32-cpu: its trained model .* is not in .*; run the search again"):
        measure(run, picked, batch_sizes=[1], say=[].append)


def test_a_run_that_lacks_what_is_needed_says_so(tmp_path: Path) -> None:
    storage = make_run(tmp_path, RunSettings(targets=("cpu",)))
    run = load_run(storage.location)
    picked = best_of_groups(run, by="strategy")
    with pytest.raises(StorageError, match=r"has no context\.json"):
        measure(run, picked, batch_sizes=[1], say=[].append)
    storage.write_json("context.json", asdict(Context(artifacts="a", cache="c", models={}, tokens={}, labels=())))
    storage.remove("cost_table.parquet")
    with pytest.raises(AblationError, match=r"no cost_table\.parquet"):
        measure(load_run(storage.location), picked, batch_sizes=[1], say=[].append)


# Said to people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["strategy", "student_layers", "precision", "teacher"])
def test_the_section_shows_what_was_measured(tmp_path: Path, by: str) -> None:
    storage = make_run(tmp_path, RunSettings(forgetting=0.02))
    add_ablation(storage, by=by)
    (found,) = read_ablations(load_run(tmp_path))
    plots = batch_figures(found, "accuracy")
    text = re.sub(r"<[^>]+>", " ", ablation_section(found, "accuracy", plots).replace("<wbr>", ""))
    assert f"Ablation by {by.replace('_', ' ')}" in text
    assert "rows of 24 tokens" in text
    assert "Left out: lora: no variant" in text
    for member in found.members:
        assert member.group in text
        assert member.record.record_id in text
        assert f"{100 * member.record.quality:.1f} %" in text
        assert f"{member.record.forgetting:+.3f}" in text
    for name, value in (
        (f"batch-throughput-{by}", lambda batch: batch.rows_per_s),
        (f"batch-latency-{by}", lambda b: b.latency_ms),
    ):
        traces = plots[name]["data"]
        assert [trace["name"] for trace in traces] == [member.group for member in found.members]
        assert [trace["x"] for trace in traces] == [[1, 8, 32]] * len(traces)
        assert [trace["y"] for trace in traces] == [[value(batch) for batch in m.batches] for m in found.members]


def test_each_of_several_is_kept_and_shown(tmp_path: Path) -> None:
    storage = make_run(tmp_path, RunSettings(trials=12))
    for by in ("teacher", "precision", "strategy", "precision"):
        add_ablation(storage, by=by)
    report = build(load_run(tmp_path))
    assert [ablation.by for ablation in report.ablations] == ["strategy", "precision", "teacher"]
    plots = figures(report)
    page = "".join(sections(report, plots))
    for by in ("strategy", "precision", "teacher"):
        assert page.count(f"<h2>Ablation by {by}</h2>") == 1
        for name in (f"batch-throughput-{by}", f"batch-latency-{by}"):
            assert name in plots and page.count(f'id="plot-{name}"') == 1


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    storage = make_run(tmp_path, RunSettings(trials=6))
    add_ablation(storage)
    (found,) = read_ablations(load_run(tmp_path))
    assert "busy" not in " ".join(explained(found))
    first, *others = found.members
    slow = replace(first, batches=(Batch(batch_size=1, latency_ms=2.0, latency_p95_ms=9.0),))
    assert "a 95th percentile is 4.5 times its median" in " ".join(explained(replace(found, members=(slow, *others))))


def test_a_record_that_is_gone_leaves_the_table(tmp_path: Path) -> None:
    storage = make_run(tmp_path, RunSettings(trials=6))
    add_ablation(storage)
    before = read_ablations(load_run(tmp_path))[0].members
    storage.remove(f"records/{before[0].record.record_id}.parquet")
    assert read_ablations(load_run(tmp_path))[0].members == before[1:]


def test_nothing_of_an_ablation_is_taken_for_markup(tmp_path: Path) -> None:
    add_ablation(make_run(tmp_path, RunSettings(trials=6)), hostile=HOSTILE)
    page = render_html(build(load_run(tmp_path)))
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)


def test_the_terminal_shows_groups_and_times(run: Run) -> None:
    storage = Storage(run.storage.location)
    add_ablation(storage, hostile="[bold]")
    (found,) = read_ablations(load_run(storage.location))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_ablation(found, run.metric))
    text = console.export_text()
    for member in found.members:
        assert member.group in text
    assert "rows/s" in text
    assert ablation_to_json(found, metric="accuracy") == storage.read_json("ablations/strategy.json")
