"""What a person sees while a search runs."""

import io

import pytest
from ledgers import make_record, make_space
from rich.console import Console

from search.ledger import Proposal
from search.live import LiveListener, PlainListener, describe, ending, listening
from spaces.draw import opening
from trainers.progress import Progress


@pytest.fixture
def proposal():
    draw = next(draw for draw in opening(make_space()) if draw.strategy == "finetune_then_distill")
    return Proposal(number=3, draw=draw, variants=(("fp32", "cpu"),))


@pytest.fixture
def progress():
    return Progress(
        stage=1, num_stages=2, kind="distill", epoch=1, epochs=3, final=True, quality=0.712, train_loss=0.5, seconds=4.0
    )


def console(width=100, *, terminal=False):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)


def test_a_line_an_event(proposal, progress):
    out = console()
    listener = PlainListener(out, metric="accuracy")
    listener.started(proposal)
    listener.progressed(proposal, progress)
    listener.said("[not markup]")
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3
    assert "t00003 started   finetune_then_distill: teacher standard" in lines[0]
    assert lines[1].endswith("t00003   stage 2/2 distill epoch 1/3  71.2 %")
    assert lines[2].endswith("[not markup]")


def test_lines_are_not_broken_in_a_narrow_pipe(proposal):
    out = console(width=40)
    PlainListener(out, metric="accuracy").started(proposal)
    assert len(out.file.getvalue().splitlines()) == 1


def test_a_failure_is_one_line_without_its_traceback():
    record = make_record(status="failed", error="TrainingError: the loss is nan\nTraceback (most recent call last):")
    assert ending([record], "accuracy") == "failed   TrainingError: the loss is nan"


def test_params_are_said_in_words(proposal):
    assert "layer" in describe(proposal)
    assert "_" not in describe(proposal).partition(":")[2]


def test_the_live_view_shows_what_runs_and_what_is_best(proposal, progress):
    out = console(terminal=True)
    with LiveListener(out, trials=8, metric="accuracy") as listener:
        listener.started(proposal)
        listener.progressed(proposal, progress)
        listener._live.refresh()
        listener.finished(proposal, [make_record(status="complete", quality=0.75, latency_ms=1.5)])
    text = out.file.getvalue()
    assert "distill 1/3, 71.2 %" in text
    assert "1 of 8 done" in text
    assert "75.0 %" in text


def test_the_best_of_a_metric_that_is_minimised_is_the_smallest():
    out = console(terminal=True)
    with LiveListener(out, trials=None, metric="perplexity") as listener:
        for number, quality in enumerate((9.0, 6.5, 8.25)):
            record = make_record(number, quality=quality)
            proposal = Proposal(number=number, draw=next(opening(make_space())), variants=(("fp32", "cpu"),))
            listener.started(proposal)
            listener.finished(proposal, [record])
    (last,) = [line for line in out.file.getvalue().splitlines() if "best cpu fp32" in line][-1:]
    assert "best cpu fp32: 6.5 at 2.00 ms (t00001)" in last


def test_no_terminal_no_live_view():
    with listening(console(), trials=None, metric="accuracy") as listener:
        assert type(listener) is PlainListener
