"""A run read back: its front, outputs and report, on made-up runs of every kind."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import uuid
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from ledgers import RunSettings, make_record, make_run, make_space
from plotly.validator_cache import ValidatorCache
from rich.console import Console

from search.ledger import Ledger, read_table
from search.report.build import build
from search.report.figures import figures
from search.report.html import render_html
from search.report.importance import importance
from search.report.looks import look
from search.report.text import render_text
from search.run import RunError, load_run
from search.words import say, say_duration, say_list, say_plan
from spaces.catalogue import CATALOGUE
from spaces.draw import opening
from spaces.methods.finetune import baseline
from spaces.targets import PRECISIONS
from trainers.storage import Storage

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("run"), RunSettings(constraints=("size_mb <= 85",))).location)


def _made(folder, **settings):
    return load_run(make_run(folder, RunSettings(**settings)).location)


def _visible(page):
    """The page's text without its scripts and styles."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", bare)))


# The run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "phone"])
def test_front_is_what_no_feasible_variant_beats(run, target):
    rows = [r for r in run.records if r.status == "complete" and r.target == target and r.size_mb <= 85]
    expected = {
        a.record_id
        for a in rows
        if not any(
            b.quality >= a.quality and b.latency_ms <= a.latency_ms
            and (b.quality, b.latency_ms) != (a.quality, a.latency_ms)
            for b in rows
        )
    }  # fmt: skip
    front = run.front(target)
    assert set(front["record_id"].to_pylist()) == expected
    assert front["latency_ms"].to_pylist() == sorted(front["latency_ms"].to_pylist())


def test_front_of_all_targets_carries_the_test_split(run):
    rows = run.front().to_pylist()
    assert {row["target"] for row in rows} == {"cpu", "phone"}
    for row in rows:
        assert row["test_accuracy"] == run.confirmed[row["record_id"]].value
        assert row["test_accuracy_low"] < row["test_accuracy"] < row["test_accuracy_high"]


def test_baseline_is_the_base_fine_tuned_by_the_first_recipe(run):
    assert run.baseline.record_id == "t00000-fp32-cpu"
    assert run.baseline_quality == run.baseline.quality


def test_best_by_size_keeps_the_best_of_each(run):
    rows = run.best_by_size().to_pylist()
    keys = [(row["num_layers"], row["strategy"], row["precision"]) for row in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        peers = [
            r.quality
            for r in run.records
            if r.status == "complete"
            and (r.strategy, r.precision) == (row["strategy"], row["precision"])
            and r.params.get("student_layers") == row["num_layers"]
        ]
        assert row["accuracy"] == max(peers)


def test_hypervolume_over_time_only_grows(run):
    table = run.hypervolume_over_time()
    values = np.array(table["hypervolume"])
    assert table.num_rows == len({r.trial_id for r in run.records if r.number >= 0})
    assert np.all(np.diff(values) >= -1e-12)
    assert 0 < values[-1] <= 1


def test_hypervolume_with_a_cost_that_may_be_negative_by_hand(tmp_path):
    make_run(tmp_path, RunSettings(trials=0, targets=("cpu",), objectives=("forgetting",)))
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    for number, (quality, lost) in enumerate([(0.5, -0.1), (0.7, 0.3), (0.6, 0.1)]):
        ledger.append(make_record(number, quality=quality, forgetting=lost, finished_at=float(number)))
    found = load_run(tmp_path).hypervolume_over_time()["hypervolume"].to_pylist()
    assert found == pytest.approx([area / 1.21 for area in (0.11, 0.21, 0.21 + 0.25)])


def test_hypervolume_of_a_run_by_hand(tmp_path):
    make_run(tmp_path, RunSettings(trials=0, targets=("cpu",)))
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    for number, (quality, ms) in enumerate([(0.5, 1.0), (0.7, 10.0), (0.6, 10.0**0.5)]):
        ledger.append(make_record(number, quality=quality, latency_ms=ms, finished_at=float(number)))
    found = load_run(tmp_path).hypervolume_over_time()["hypervolume"].to_pylist()
    # Scaled, minimised: (1, 0), (0, 1), (½, ½); reference (1.1, 1.1).
    assert found == pytest.approx([area / 1.21 for area in (0.11, 0.21, 0.21 + 0.25)])


def test_select_takes_constraints_of_its_own(run):
    fast = run.select(["latency_ms <= 1"], wish="quality").record
    assert fast.latency_ms <= 1
    assert run.select(target="phone").record.target == "phone"
    with pytest.raises(ValueError, match="it has cpu, phone"):
        run.select(target="t4")
    with pytest.raises(ValueError, match="did you mean 'latency_ms'"):
        run.select(["latency <= 1"])


def test_outputs_are_written_whole(tmp_path):
    run = _made(tmp_path, constraints=("size_mb <= 85",))
    run.write_outputs()
    trials, front = (read_table(run.storage, name) for name in ("trials.parquet", "front.parquet"))
    assert trials.num_rows == len(run.records)
    on_front = [row["record_id"] for row in trials.to_pylist() if row["on_front"]]
    assert sorted(on_front) == sorted(front["record_id"].to_pylist())
    selection = json.loads((tmp_path / "selection.json").read_text())
    assert selection["record"]["record_id"] == run.select().record.record_id
    assert selection["target"] == "cpu"
    assert [other["target"] for other in selection["other_targets"]] == ["phone"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_outputs_on_an_object_store(tmp_path):
    run = _made(f"memory://{uuid.uuid4().hex}/run", trials=6)
    run.write_outputs()
    copy = run.report()
    assert copy.read_bytes() == run.storage.read("report.html")
    assert run.report(tmp_path / "deep" / "own.html").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"has no spec\.yaml.*distune search"):
        load_run(tmp_path / "nothing")


def test_without_labels_the_choice_falls_back_to_intervals(tmp_path):
    make_run(tmp_path, RunSettings())
    (tmp_path / "validation_labels.json").unlink()
    reasons = " ".join(load_run(tmp_path).select().reasons)
    assert "bootstrap" not in reasons


def test_reading_a_run_imports_nothing_heavy():
    code = "import sys, search.run, search.select; print([m for m in sys.modules if '.' not in m])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "transformers", "sklearn", "plotly", "onnxruntime"} & set(re.findall(r"\w+", found))


def test_hypervolume_counts_feasible_variants_by_what_was_trained(tmp_path):
    make_run(tmp_path, RunSettings(trials=0, targets=("cpu",), constraints=("latency_ms <= 5",)))
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    for number, (quality, ms, saved) in enumerate([(0.5, 1.0, 0.0), (0.7, 10.0, 2.0), (0.6, 10.0**0.5, 6.0)]):
        times = {"finished_at": float(number), "train_seconds": 8.0, "prefix_seconds_saved": saved}
        ledger.append(make_record(number, quality=quality, latency_ms=ms, **times))
    found = load_run(tmp_path).hypervolume_over_time()
    assert found["hypervolume"].to_pylist() == pytest.approx([area / 1.21 for area in (0.11, 0.11, 0.11 + 0.3)])
    assert found["train_seconds"].to_pylist() == [8.0, 14.0, 16.0]


# The report -----------------------------------------------------------------------------------------------------


def test_report_says_what_it_must(run):
    page = render_html(build(run))
    text = _visible(page)
    choice = run.select()
    assert f"Ship {choice.record.strategy} with" in text
    assert "of training was spent" in text and "was saved by shared beginnings" in text
    for part in (*choice.reasons, say("accuracy", choice.record.quality), "estimated", "NotFinite", "ruled out"):
        assert part in text
    assert "Noticed beforehand" in text and "3 rows without a label left out" in text
    for title in ("The front on cpu", "The front on phone", "Best of every strategy", "Cost table", "How to reproduce"):
        assert title in text
    assert run.spec_text.splitlines()[0] in text
    assert set(figures(build(run))) == {"front-cpu", "front-phone", "best", "over-time", "time", "importance"}


def test_what_training_does_beside_quality_is_shown_where_it_was_measured(run, tmp_path):
    plain, other = build(run), build(_made(tmp_path, forgetting=0.02))
    assert (plain.beside, other.beside) == (("overfit",), ("forgetting", "overfit"))
    for report, there in ((plain, False), (other, True)):
        front = figures(report)["front-cpu"]["data"]
        (texts, *_) = (trace["text"] for trace in front if trace.get("showlegend") is False)
        assert ("forgetting +" in texts[0], "overfit +0.110" in texts[0]) == (there, True)
        assert ('<th class="number">forgetting</th>' in render_html(report)) == there
        assert ("accuracy lost on the rows of task.retain" in _visible(render_html(report))) == there


def test_every_strategy_has_a_look_of_its_own_and_every_precision_a_symbol(run):
    looks = [look(name) for name in CATALOGUE]
    assert len(set(looks)) == len(looks)
    assert len({(how.shape, how.colour) for how in looks}) == len(looks), "without the dash of lines, too"
    assert look("baseline") not in looks
    known = set(ValidatorCache.get_validator("scatter.marker", "symbol").values)
    for how in (*looks, look("baseline")):
        symbols = [how.symbol(precision) for precision in PRECISIONS]
        assert len(set(symbols)) == len(PRECISIONS) and set(symbols) <= known
    traces = [trace for trace in figures(build(run))["front-cpu"]["data"] if trace.get("legendgroup") in CATALOGUE]
    for trace in traces:
        how = look(trace["legendgroup"])
        assert trace["marker"]["color"] == how.colour
        symbols = trace["marker"]["symbol"]
        assert all(found.startswith(how.shape) for found in ([symbols] if isinstance(symbols, str) else symbols))


def test_the_policy_allows_these_scripts_and_no_others(run):
    page = render_html(build(run))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == digests
    assert len(scripts) == 2
    assert "\r" not in page  # a parser would turn it into \n, and the hash would no longer fit


def test_nothing_from_outside_becomes_markup(tmp_path):
    run = _made(tmp_path, hostile=HOSTILE, constraints=("size_mb <= 85",))
    page = render_html(build(run))
    assert HOSTILE not in page
    assert "<script>window" not in page
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "window.pwned=1" in _visible(page)
    assert "<script" not in run._repr_html_()


def test_nothing_outside_the_file_is_asked_for(run):
    page = re.sub(r"<script>.*?</script>", "", render_html(build(run)), flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", page)


def test_plots_hold_every_complete_variant_once(run):
    data = figures(build(run))["front-cpu"]["data"]
    shown = [text.rsplit("<br>", 1)[-1] for trace in data if trace.get("showlegend") is False for text in trace["text"]]
    assert sorted(shown) == sorted(r.record_id for r in run.points("cpu")[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trials": 0}, "Nothing to ship yet"),
        ({"trials": 1}, "Ship full with all layers"),
        ({"trials": 1, "targets": ("cpu",), "precisions": ("fp32",)}, "Ship full with all layers at fp32"),
        ({"metric": "macro_f1", "targets": ("cpu",)}, "macro F1"),
        ({"objectives": ("latency_ms", "size_mb", "train_seconds")}, "The front is also one of size and training"),
        ({"objectives": ("size_mb",)}, "size in MB"),
        ({"constraints": ("latency_ms <= 0.01",)}, "nearest miss"),
        ({"confirmed": False}, "Ship"),
        ({"objectives": ("forgetting",), "forgetting": 0.02}, "forgetting"),
    ],
)
def test_runs_of_every_kind(tmp_path, settings, says):
    report = build(_made(tmp_path, **settings))
    page = render_html(report)
    assert says in _visible(page) or says in page
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(render_text(report))
    assert captured.get().strip()


def test_a_large_run_stays_below_8_mb(tmp_path):
    run = _made(tmp_path, trials=160, rows=40)
    assert len(run.records) > 500
    assert len(render_html(build(run)).encode()) < 8e6


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_the_terminal_and_keeps_every_number(run, width):
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(render_text(build(run)))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in captured.get()
    rows = [line for line in lines if re.search(r"\bt\d{5} ", line)]
    assert len(rows) == run.front().num_rows
    assert sum(line.startswith("▸") for line in rows) == 2


def test_text_takes_nothing_for_markup(tmp_path):
    report = build(_made(tmp_path, trials=3, hostile=" [bold red]x[/bold red] [/]"))
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(render_text(report))
    assert "[bold red]x[/bold red]" in captured.get()


# Importance, words ----------------------------------------------------------------------------------------------


def test_importance_finds_the_setting_that_decides():
    rng = np.random.default_rng(0)
    rates, ranks = rng.random(30), rng.integers(4, 64, 30)
    records = [
        make_record(n, quality=0.5 + 0.4 * float(rate), params={"learning_rate": float(rate), "lora_rank": int(rank)})
        for n, (rate, rank) in enumerate(zip(rates, ranks, strict=True))
    ]
    found = importance(records, "accuracy")
    assert found.shares[0][0] == "learning_rate"
    assert found.shares[0][1] > 0.8
    assert sum(share for _, share in found.shares) == pytest.approx(1.0)
    assert found.explained > 0.5
    assert found.num_trials == 30


def test_importance_says_when_there_is_too_little():
    assert "too little to go by" in importance([make_record(n) for n in range(7)], "accuracy").note
    assert importance([make_record(n) for n in range(9)], "accuracy").shares == ()


def test_importance_of_what_explains_nothing_is_said_to_be_a_hint():
    pairs = [(epochs, quality) for epochs in (2, 3) for quality in (0.5, 0.6, 0.7)] * 4
    records = [make_record(n, quality=quality, params={"epochs": epochs}) for n, (epochs, quality) in enumerate(pairs)]
    assert "hint at most" in importance(records, "accuracy").note


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("accuracy", 0.7649, "76.5 %"),
        ("macro_f1", 0.7649, "0.765"),
        ("perplexity", 12.3456, "12.35"),
        ("latency_ms", 0.71312, "0.713 ms"),
        ("size_mb", 417.2, "417 MB"),
        ("latency_ms", None, "–"),
        ("train_seconds", 200.0, "3 min 20 s"),
        ("train_memory_mb", 512.3, "512 MB"),
        ("forgetting", 0.0213, "+0.021"),
        ("overfit", -0.1, "-0.100"),
    ],
)
def test_numbers_in_words(name, value, said):
    assert say(name, value) == said


def test_plans_in_words():
    space = replace(make_space(), strategies=("dft",), student_layers=(1,))
    distilled = next(opening(space)).plan
    assert say_plan(baseline(make_space())) == "fine-tune (3 epochs, rate 1e-4)"
    assert say_plan(distilled) == (
        "keep 1 layer (0) → distil from a teacher fine-tuned for 3 epochs "
        "(temperature 2, soft weight 0.5 to 0.3, 3 epochs, rate 2e-4)"
    )


def test_time_spans_and_lists_in_words():
    assert [say_duration(s) for s in (0.44, 59.4, 59.6, 3599.6, 7500)] == [
        "0.4 s", "59 s", "1 min 0 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert [say_list(list(items)) for items in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
