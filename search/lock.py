"""One search at a time on a run's folder."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from trainers.storage import Storage, StorageError

_NAME = "search.lock"
_BEAT_S = 10.0
_STALE_S = 60.0


class Locked(Exception):
    """Another search is at work on the run; says which, and what to do."""


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Hold the run's lock. On a local disk the system releases it with the process, however that ends.

    On an object store the lock is an object that is renewed every ten seconds and counts as left behind after a minute.

    Raises:
        Locked: somebody else holds it.
    """
    with _file_lock(storage) if storage.local_path is not None else _lease(storage):
        yield


@contextlib.contextmanager
def _file_lock(storage: Storage) -> Iterator[None]:
    folder = storage.local_path
    assert folder is not None
    with _opened(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise Locked(_taken(storage, file.read().decode())) from error
        # Who holds it is only said; a full disk is the search's to find.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(_owner()).encode())
        yield


def _opened(folder: Path) -> FileIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / _NAME).open("a+b", buffering=0)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error}); set `storage` to a folder that can") from error


@contextlib.contextmanager
def _lease(storage: Storage) -> Iterator[None]:
    token, released = uuid.uuid4().hex, threading.Event()
    held = storage.read_json(_NAME) if storage.exists(_NAME) else None
    if held is not None and time.time() - held["renewed_at"] < _STALE_S:
        raise Locked(_taken(storage, json.dumps(held)))

    def renew() -> None:
        while not released.wait(_BEAT_S):
            # One renewal that fails is made up for by the next, long before the lease counts as left behind.
            with contextlib.suppress(StorageError):
                storage.write_json(_NAME, {**_owner(), "token": token})

    storage.write_json(_NAME, {**_owner(), "token": token})
    if storage.read_json(_NAME)["token"] != token:
        raise Locked(_taken(storage, ""))
    beat = threading.Thread(target=renew, daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        storage.remove(_NAME)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "renewed_at": time.time()}


def _taken(storage: Storage, owner: str) -> str:
    try:
        found = json.loads(owner)
        who = f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError):
        who = "another process"
    way_out = "wait for it, end it (it can be resumed), or start beside it with --new"
    return f"{storage.shown}: {who} is searching here; {way_out}"
