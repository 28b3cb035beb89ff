"""Seats laid out on cores, GPUs and memory: never more threads than cores, and a clear answer where nothing fits."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.cluster import Layout, NoRoom, plan_layout, versions
from search.spec_sections import Resources


def _layout(cores=8, gpus=0.0, memory_gb=64.0, trials=None, **resources):
    return plan_layout(Resources(**resources), cores=cores, gpus=gpus, memory_gb=memory_gb, trials=trials)


@pytest.mark.parametrize(
    ("machine", "resources", "expected"),
    [
        ({"cores": 1}, {}, Layout(seats=1, workers=1, cpus=1)),
        ({"cores": 2}, {}, Layout(seats=2, workers=1, cpus=1)),
        ({"cores": 2}, {"max_concurrent": 1}, Layout(seats=1, workers=1, cpus=2)),
        ({"cores": 8, "memory_gb": 5}, {}, Layout(seats=2, workers=1, cpus=4)),
        ({"cores": 8, "memory_gb": 0.5}, {}, Layout(seats=1, workers=1, cpus=8)),
        ({"cores": 8, "trials": 3}, {}, Layout(seats=3, workers=1, cpus=2)),
        ({"cores": 8}, {"cpus_per_worker": 3}, Layout(seats=2, workers=1, cpus=3)),
        ({"cores": 8}, {"workers_per_trial": 2}, Layout(seats=4, workers=2, cpus=1)),
        ({"cores": 8}, {"workers_per_trial": 2, "max_concurrent": 2}, Layout(seats=2, workers=2, cpus=2)),
        ({"cores": 16, "gpus": 1}, {"gpus_per_trial": 0.25}, Layout(seats=4, workers=1, cpus=4, gpus=0.25)),
        ({"cores": 16, "gpus": 0.3}, {"gpus_per_trial": 0.1}, Layout(seats=3, workers=1, cpus=5, gpus=0.1)),
        (
            {"cores": 16, "gpus": 4},
            {"gpus_per_trial": 2, "workers_per_trial": 2},
            Layout(seats=2, workers=2, cpus=4, gpus=1.0),
        ),
    ],
)
def test_known_machines(machine, resources, expected):
    assert _layout(**machine, **resources) == expected


@given(
    cores=st.integers(1, 256),
    gpus=st.integers(0, 8),
    memory_gb=st.floats(0, 1000),
    trials=st.none() | st.integers(1, 100),
    workers=st.integers(1, 8),
    each=st.none() | st.integers(1, 8),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0]),
    wanted=st.just("auto") | st.integers(1, 16),
)
def test_threads_never_exceed_the_cores(cores, gpus, memory_gb, trials, workers, each, share, wanted):
    resources = Resources(workers_per_trial=workers, cpus_per_worker=each, gpus_per_trial=share, max_concurrent=wanted)
    try:
        found = plan_layout(resources, cores=cores, gpus=gpus, memory_gb=memory_gb, trials=trials)
    except NoRoom:
        assume(False)
    assert found.seats >= 1
    assert found.cpus >= 1
    assert found.workers == workers
    assert found.seats * found.workers * found.cpus <= cores
    assert found.seats * found.workers * found.gpus <= gpus + 1e-6
    if wanted == "auto":
        assert found.seats <= (trials or cores)
    else:
        assert found.seats == wanted
    # Trials ask for 0.01 CPU each and must find it beside the seats.
    assert found.seats * found.workers * found.resources["CPU"] + 0.01 * found.seats <= cores


@pytest.mark.parametrize(
    ("machine", "resources", "says"),
    [
        ({"cores": 2}, {"workers_per_trial": 4}, r"asks for 4 workers × 1 cores .* there are 2 cores .* lower"),
        ({"cores": 4}, {"cpus_per_worker": 8}, r"1 workers × 8 cores"),
        ({"cores": 4}, {"gpus_per_trial": 0.5}, r"0.5 GPUs; there are 4 cores and 0 GPUs"),
        ({"cores": 4}, {"max_concurrent": 5}, r"resources.max_concurrent: found 5; .* hold 4; use 4"),
        ({"cores": 64, "gpus": 1}, {"gpus_per_trial": 0.5, "max_concurrent": 3}, r"hold 2; use 2"),
    ],
)
def test_too_little_room_is_said_with_the_numbers(machine, resources, says):
    with pytest.raises(NoRoom, match=says):
        _layout(**machine, **resources)


def test_a_worker_asks_for_gpus_only_where_it_has_some():
    assert Layout(seats=1, workers=1, cpus=2).resources.keys() == {"CPU"}
    assert Layout(seats=1, workers=1, cpus=2, gpus=0.5).resources["GPU"] == 0.5


def test_versions_name_what_results_depend_on():
    found = versions()
    assert {"torch", "transformers", "onnxruntime", "optuna"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())
