"""Files on a disk, in memory and on an S3 server: whole or not there, and never outside the folder."""

import itertools
import os
import uuid

import pytest
from ledgers import make_record, make_space

from search.ledger import Ledger, Proposal
from spaces.draw import opening
from trainers.artifacts import ArtifactStore
from trainers.storage import Storage, StorageError


@pytest.fixture(params=["disk", "memory"])
def storage(request, tmp_path):
    return Storage(tmp_path / "run" if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run")


def test_what_was_written_is_there(storage):
    assert not storage.exists("a/b.bin")
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.exists("a/b.bin")
    assert storage.exists("a")
    assert storage.read("a/b.bin") == b"two"
    storage.write_json("c.json", {"b": 1, "a": [None, "ä"]})
    assert storage.read_json("c.json") == {"b": 1, "a": [None, "ä"]}


def test_an_empty_file_is_a_file(storage):
    storage.write("empty", b"")
    assert storage.read("empty") == b""


def test_names_are_those_directly_here(storage):
    assert storage.names() == []
    for name in ("b.json", "a.json", "c.txt", "below/d.json"):
        storage.write(name, b"x")
    assert storage.names(".json") == ["a.json", "b.json"]
    assert storage.names() == ["a.json", "b.json", "below", "c.txt"]
    assert storage.child("below").names() == ["d.json"]


def test_a_child_is_the_folder_below(storage):
    storage.child("a").child("b").write("c", b"x")
    assert storage.read("a/b/c") == b"x"


def test_a_folder_goes_there_and_back(storage, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 100_000)
    (folder / "deep" / "b").write_bytes(b"b")
    (folder / "last").write_bytes(b"c")
    storage.upload(folder, "kept", last="last")
    storage.download("kept", tmp_path / "back")
    assert (tmp_path / "back" / "a.bin").read_bytes() == b"a" * 100_000
    assert (tmp_path / "back" / "deep" / "b").read_bytes() == b"b"
    assert (tmp_path / "back" / "last").read_bytes() == b"c"


def test_the_last_file_is_written_last(tmp_path, monkeypatch):
    for name in ("a", "artifact.json", "z"):
        (tmp_path / name).write_bytes(b"x")
    written = []
    monkeypatch.setattr(Storage, "write", lambda _, name, content: written.append(name))  # noqa: ARG005
    Storage("memory://order").upload(tmp_path, "kept", last="artifact.json")
    assert written == ["kept/a", "kept/z", "kept/artifact.json"]


def test_remove_takes_files_and_folders_and_forgives_what_is_not_there(storage):
    storage.write("a/b/c", b"x")
    storage.write("d", b"x")
    for name in ("a", "d", "never"):
        storage.remove(name)
    assert storage.names() == []


def test_what_is_not_there_cannot_be_read(storage):
    with pytest.raises(FileNotFoundError):
        storage.read("never")


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "/etc/passwd"])
def test_no_name_points_outside(storage, name):
    with pytest.raises(StorageError, match="points outside"):
        storage.write(name, b"x")


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("a", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write a: .*No space left on device; nothing was changed"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert storage.names() == ["a"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write a"):
        Storage(tmp_path / "file").write("a", b"x")


@pytest.mark.parametrize(
    ("location", "says"),
    [("nothing://x", "Protocol not known: nothing; use a folder, s3://"), ("s3://bucket/x?secret=1", "'secret'")],
)
def test_a_place_that_is_not_understood_is_refused(location, says):
    with pytest.raises(StorageError, match=f"cannot be opened: .*{says}"):
        Storage(location)


def test_the_local_path_is_that_of_a_disk_only(tmp_path):
    assert Storage(tmp_path).local_path == tmp_path
    assert Storage(tmp_path).child("a").local_path == tmp_path / "a"
    assert Storage("memory://x").local_path is None


def test_a_relative_folder_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.child("a").write("b", b"x")
    assert storage.read("a/b") == b"x"
    assert (tmp_path / "runs" / "a" / "b").exists()


def test_a_run_on_an_s3_server(object_store, tmp_path):
    storage = Storage(object_store).child("by-hand")
    assert storage.local_path is None
    assert storage.names() == []
    _check_ledger(storage.child("docs"))
    _check_artifacts(storage.child("docs").child("artifacts"), tmp_path)
    storage.remove("docs/records")
    assert Ledger(storage.child("docs"), metric="accuracy").records == []


def _check_ledger(storage):
    ledger = Ledger(storage, metric="accuracy")
    found = next(opening(make_space()))
    ledger.propose(Proposal(number=0, draw=found, variants=(("fp32", "cpu"), ("int8", "cpu"))))
    assert len(Ledger(storage, metric="accuracy").unfinished()) == 1
    for precision in ("fp32", "int8"):
        record_id = f"t00000-{precision}-cpu"
        ledger.append(make_record(0, record_id=record_id, precision=precision, predictions=(1, 0)))
    again = Ledger(storage, metric="accuracy")
    assert again.unfinished() == []
    assert again.records == ledger.records
    assert again.proposals == ledger.proposals
    assert again.predictions("t00000-int8-cpu") == [1, 0]


def _check_artifacts(storage, tmp_path):
    caches = (tmp_path / f"cache-{number}" for number in itertools.count())
    with ArtifactStore(storage, next(caches)).publish("f" * 64, {"kind": "model"}) as draft:
        (draft / "weights").write_bytes(b"w" * 1000)
    found = ArtifactStore(storage, next(caches)).find("f" * 64)
    assert found.about == {"kind": "model"}
    assert (found.folder / "weights").read_bytes() == b"w" * 1000
    storage.remove(f"{'f' * 64}/artifact.json")
    assert ArtifactStore(storage, next(caches)).find("f" * 64) is None


def test_keys_in_a_uri_are_not_shown(tmp_path):
    storage = Storage("s3://AKIA:secret@bucket/runs?scheme=http&endpoint_override=127.0.0.1:1")
    assert storage.shown == "s3://…@bucket/runs"
    assert Storage(tmp_path / "a?b").shown == str(tmp_path / "a?b")


def test_keys_do_not_reach_an_error():
    with pytest.raises(StorageError, match="cannot be opened") as caught:
        Storage("s3://AKIA:secret@bucket/runs?wrong=1")
    assert "secret" not in str(caught.value)
