"""Where training time went: spent, saved by shared beginnings, saved by stopping."""

import pytest
from ledgers import make_record

from search.budget import Limits, Spent
from search.savings import StrategyTime, by_strategy


def test_each_strategy_by_hand():
    out_of_time = Limits(minutes=1).time_is_up(Spent(trials=2, minutes=2, device_hours=0))
    stopped = {"status": "stopped", "quality": None, "strategy": "dft"}
    found = by_strategy(
        [
            make_record(0, strategy="full", train_seconds=40.0),
            make_record(1, strategy="dft", train_seconds=60.0, prefix_seconds_saved=45.0),
            # Another variant of the same plan tells the same seconds.
            make_record(1, record_id="t00001-int8-cpu", strategy="dft", train_seconds=60.0, prefix_seconds_saved=45.0),
            # A quarter of its last stage took 5 of its 9 seconds: 15 are left.
            make_record(2, train_seconds=9.0, curve=((0.25, 0.5),), curve_seconds=(5.0,), **stopped),
            make_record(3, train_seconds=2.0, error="by a version that kept no times", **stopped),
            make_record(4, train_seconds=8.0, curve=((0.5, 0.5),), curve_seconds=(8.0,), error=out_of_time, **stopped),
            make_record(-1, record_id="shape-6-fp32-cpu", strategy="", status="infeasible", quality=None),
        ]
    )
    assert found == (
        StrategyTime(strategy="dft", spent=34.0, shared=45.0, stopped=15.0, num_stopped=2),
        StrategyTime(strategy="full", spent=40.0, shared=0.0, stopped=0.0, num_stopped=0),
    )


def test_what_a_plan_goes_on_from_is_its_own_and_what_was_gone_on_with_saved_nothing():
    """Ten seconds of the last stage behind a shared teacher of 40, then the other ten."""
    stopped = make_record(
        0, status="stopped", quality=None, train_seconds=50.0, curve=((0.5, 0.5),), curve_seconds=(10.0,)
    )
    rest = make_record(5, train_seconds=60.0, prefix_seconds_saved=50.0, resumes="t00000")
    (found,) = by_strategy([stopped, rest])
    assert found == StrategyTime(strategy="full", spent=60.0, shared=40.0, stopped=0.0, num_stopped=0)


def test_a_search_of_nothing_took_no_time():
    assert by_strategy([]) == ()


@pytest.mark.parametrize("status", ["failed", "complete"])
def test_what_was_not_stopped_saved_nothing_by_stopping(status):
    (found,) = by_strategy([make_record(0, status=status, curve=((0.5, 0.5),), curve_seconds=(8.0,))])
    assert (found.stopped, found.num_stopped) == (0.0, 0)
