"""Artifacts: all at once or not at all, the first one stays, and what was damaged is found."""

import signal
import subprocess
import sys
import threading
import uuid

import pytest

from trainers.artifacts import MANIFEST, ArtifactStore
from trainers.storage import Storage, StorageError

_NAME = "a1" * 32


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    """A function that opens the same store as another machine would: with a cache of its own."""
    location = tmp_path / "store" if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store"
    return lambda machine="one": ArtifactStore(Storage(location), tmp_path / f"cache-{machine}")


def _publish(store, content=b"weights", **about):
    with store.publish(_NAME, about) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "model.safetensors").write_bytes(content)
        (draft / "config.json").write_text("{}")


def _content(store):
    return (store.find(_NAME).folder / "deep" / "model.safetensors").read_bytes()


def test_what_was_published_is_found_on_every_machine(store):
    assert store().find(_NAME) is None
    _publish(store(), kind="model", seconds=1.5)
    for machine in ("one", "two"):
        assert store(machine).has(_NAME)
        assert store(machine).find(_NAME).about == {"kind": "model", "seconds": 1.5}
        assert store(machine).find(_NAME).fingerprint == _NAME
        assert _content(store(machine)) == b"weights"


def test_the_description_may_be_added_to_while_it_is_made(store):
    about = {"kind": "model"}
    with store().publish(_NAME, about) as draft:
        (draft / "a").write_bytes(b"")
        about["seconds"] = 3.0
    assert store("two").find(_NAME).about == {"kind": "model", "seconds": 3.0}


def test_nothing_is_there_before_the_block_ends(store):
    with store().publish(_NAME, {}) as draft:
        (draft / "a").write_bytes(b"")
        assert not store().has(_NAME)
        assert store("two").find(_NAME) is None
    assert store().has(_NAME)


@pytest.mark.parametrize("error", [RuntimeError("nan"), KeyboardInterrupt(), SystemExit(1)])
def test_a_publish_that_raises_leaves_nothing(store, tmp_path, error):
    with pytest.raises(type(error)), store().publish(_NAME, {}) as draft:
        (draft / "half").write_bytes(b"x")
        raise error
    assert store().find(_NAME) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    _publish(store())
    assert _content(store("two")) == b"weights"


def test_a_full_disk_is_named(store):
    with (
        pytest.raises(StorageError, match=r"cannot publish a1a1a1a1a1a1…: .*No space left"),
        store().publish(_NAME, {}),
    ):
        raise OSError(28, "No space left on device")
    assert not store().has(_NAME)


def test_an_upload_that_breaks_off_is_no_artifact(tmp_path, monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    write = Storage.write

    def breaks_at_the_manifest(self, name, content):
        if name.endswith(MANIFEST):
            raise StorageError("connection lost")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", breaks_at_the_manifest)
    with pytest.raises(StorageError, match="connection lost"):
        _publish(ArtifactStore(storage, tmp_path / "one"))
    assert ArtifactStore(storage, tmp_path / "one").find(_NAME) is None
    monkeypatch.undo()
    _publish(ArtifactStore(storage, tmp_path / "one"), content=b"second try")
    assert _content(ArtifactStore(storage, tmp_path / "two")) == b"second try"


def test_a_draft_of_a_killed_publisher_is_no_artifact(tmp_path):
    store = ArtifactStore(Storage(tmp_path), tmp_path)
    (tmp_path / f".{_NAME[:12]}-killed").mkdir()
    (tmp_path / f".{_NAME[:12]}-killed" / "half").write_bytes(b"x")
    assert store.find(_NAME) is None
    _publish(store)
    assert _content(store) == b"weights"


def test_the_first_of_two_publishers_stays(store):
    with store("two").publish(_NAME, {"by": "second"}) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "model.safetensors").write_bytes(b"second, and longer")
        _publish(store("one"), content=b"first", by="first")
    for machine in ("one", "two", "three"):
        assert store(machine).find(_NAME).about == {"by": "first"}
        assert _content(store(machine)) == b"first"


def test_many_publishers_at_once_leave_one(tmp_path):
    store, barrier = ArtifactStore(Storage(tmp_path / "store"), tmp_path / "store"), threading.Barrier(4)

    def publish(number):
        with store.publish(_NAME, {"by": number}) as draft:
            for name in "abc":
                (draft / name).write_text(str(number))
            barrier.wait()

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.find(_NAME)
    assert {(found.folder / name).read_text() for name in "abc"} == {str(found.about["by"])}
    assert [path.name for path in (tmp_path / "store").iterdir()] == [_NAME]


def test_without_a_manifest_there_is_no_artifact_and_it_is_made_again(store):
    _publish(store(), content=b"old")
    (store().find(_NAME).folder / MANIFEST).unlink()
    store()._storage.remove(f"{_NAME}/{MANIFEST}")
    assert not store().has(_NAME)
    assert store().find(_NAME) is None
    _publish(store(), content=b"new")
    assert _content(store()) == _content(store("two")) == b"new"


def test_a_copy_that_lost_its_manifest_is_fetched_again(tmp_path):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    _publish(ArtifactStore(storage, tmp_path / "one"))
    (tmp_path / "one" / _NAME / MANIFEST).unlink()
    assert _content(ArtifactStore(storage, tmp_path / "one")) == b"weights"


@pytest.mark.parametrize("damage", ["truncated", "missing", "longer"])
def test_a_damaged_file_is_found_and_named(store, damage):
    _publish(store())
    path = store().find(_NAME).folder / "deep" / "model.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"weig" if damage == "truncated" else b"weights and more")
    with pytest.raises(StorageError, match=r"model\.safetensors: is not what was written; delete .* made again"):
        store().find(_NAME)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"about": {}}'])
def test_a_damaged_manifest_is_named(store, content):
    _publish(store())
    (store().find(_NAME).folder / MANIFEST).write_text(content)
    with pytest.raises(StorageError, match=r"artifact\.json: cannot be read .*delete .* made again"):
        store().find(_NAME)


def test_what_a_killed_publisher_left_is_cleared_away_and_nothing_else(tmp_path):
    store = ArtifactStore(Storage(tmp_path / "store"), tmp_path / "cache")
    _publish(store)
    publisher = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "store")], check=False)
    assert publisher.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "store").iterdir())) == 2
    store.remove_drafts()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [_NAME]
    assert _content(store) == b"weights"


_KILLED = """
import os, signal, sys
from pathlib import Path
from trainers.artifacts import ArtifactStore
from trainers.storage import Storage

with ArtifactStore(Storage(sys.argv[1]), Path(sys.argv[1])).publish("b2" * 32, {}) as draft:
    (draft / "half").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
