"""One search at a time on a run's folder, and none left locked by a process that is gone."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from search import lock
from search.lock import Locked, locked
from trainers.storage import Storage, StorageError


@pytest.fixture(params=["disk", "memory"])
def storage(request, tmp_path):
    return Storage(tmp_path / "run" if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run")


def test_the_second_is_refused_and_told_who_and_what_to_do(storage):
    with (
        locked(storage),
        pytest.raises(Locked, match=rf"process {os.getpid()} on .* is searching here; .*--new"),
        locked(storage),
    ):
        pass


def test_a_refused_one_leaves_the_lock_to_its_holder(storage):
    with locked(storage):
        for _ in range(2):
            with pytest.raises(Locked), locked(storage):
                pass
        assert storage.exists("search.lock")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_it_is_released_however_the_search_ends(storage, error):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), locked(storage):
        if error is not None:
            raise error
    with locked(storage):
        pass


def test_folders_are_locked_one_by_one(tmp_path):
    with locked(Storage(tmp_path / "one")), locked(Storage(tmp_path / "two")):
        pass


_HOLDER = """
import sys
from search.lock import locked
from trainers.storage import Storage
with locked(Storage(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_it_is_released_when_its_holder_is_killed(tmp_path):
    storage = Storage(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, storage.location], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {holder.pid} on"), locked(storage):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(storage):
            pass


def test_a_lease_that_is_not_renewed_counts_as_left_behind():
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.write_json("search.lock", {"host": "gone", "pid": 7, "renewed_at": time.time() - 30, "token": "old"})
    with pytest.raises(Locked, match="process 7 on gone"), locked(storage):
        pass
    storage.write_json("search.lock", {"host": "gone", "pid": 7, "renewed_at": time.time() - 61, "token": "old"})
    with locked(storage):
        assert storage.read_json("search.lock")["pid"] == os.getpid()
    assert not storage.exists("search.lock")


def test_two_that_take_a_lease_at_once_do_not_both_hold_it(monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    read = Storage.read_json

    def overtaken(self, name):
        found = read(self, name)
        return {**found, "token": "of the other one"}

    monkeypatch.setattr(Storage, "read_json", overtaken)
    with pytest.raises(Locked), locked(storage):
        pass


def test_a_renewal_that_fails_is_tried_again(monkeypatch):
    storage, tries, renewed = Storage(f"memory://{uuid.uuid4().hex}"), [], threading.Event()
    write = Storage.write_json

    def fails_twice(self, name, value):
        tries.append(name)
        if len(tries) in (2, 3):
            raise StorageError("connection lost")
        write(self, name, value)
        if len(tries) > 3:
            renewed.set()

    monkeypatch.setattr(lock, "_BEAT_S", 0.001)
    monkeypatch.setattr(Storage, "write_json", fails_twice)
    with locked(storage):
        assert renewed.wait(timeout=30)
