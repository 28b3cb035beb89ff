"""Where results are kept: one folder on a local disk, an object store, or anything fsspec reaches.

Every write is atomic: a reader sees a whole file or none. On a local disk by a rename, elsewhere because an object
appears when its upload ends.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs

_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""Schemes that pyarrow opens itself; fsspec is asked for all others."""
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class StorageError(Exception):
    """The storage could not be reached, read or written; says where, why, and what to do."""


def is_of_storage(error: BaseException) -> bool:
    """Whether ``error`` is about the place where things are written, and not about what was to be written."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _NO_PLACE)


class Storage:
    """A folder at a local path or at a URI such as ``s3://bucket/prefix`` or ``memory://name``."""

    def __init__(self, location: str | Path) -> None:
        self._files, self._root = _open(str(location))
        # Absolute: it is told to workers, whose current folder is another one.
        self.location = self._root if "://" not in str(location) else str(location)

    @property
    def shown(self) -> str:
        """The location for people: without keys that a URI may hold."""
        return _shown(self.location)

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine's disk; None on an object store."""
        return Path(self._root) if isinstance(self._files, pafs.LocalFileSystem) else None

    def child(self, name: str) -> "Storage":
        """The folder ``name`` below this one."""
        base, mark, query = self.location.partition("?")
        return Storage(f"{base.rstrip('/')}/{name}{mark}{query}")

    def exists(self, name: str) -> bool:
        """Whether the file or folder ``name`` is there."""
        with self._asked_for(name):
            return bool(self._files.get_file_info(self._path(name)).type != pafs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the store does not answer, or refuses.
        """
        with self._asked_for(name), self._files.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """A JSON file's content."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes) -> None:
        """Write ``content`` to ``name``, replacing what was there, all at once.

        Raises:
            StorageError: the disk is full, the folder is read-only, or the store refuses.
        """
        path = self._path(name)
        try:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            if self.local_path is None:
                self._put(path, content)
            else:
                _replace_file(Path(path), content)
        except OSError as error:
            raise StorageError(f"{self.shown}: cannot write {name}: {error}; nothing was changed") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as indented JSON."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files and folders directly in this folder that end in ``suffix``, sorted."""
        selector = pafs.FileSelector(self._root, recursive=False, allow_not_found=True)
        with self._asked_for("its files"):
            found = self._files.get_file_info(selector)
        return sorted(info.base_name for info in found if info.base_name.endswith(suffix))

    def upload(self, folder: Path, name: str, *, last: str) -> None:
        """Copy every file of the local ``folder`` to ``name/``, the file called ``last`` after all others."""
        files = sorted(_files_below(folder), key=lambda path: (path.name == last, str(path)))
        for path in files:
            self.write(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def download(self, name: str, folder: Path) -> None:
        """Copy every file below ``name/`` to the local ``folder``."""
        selector = pafs.FileSelector(self._path(name), recursive=True)
        prefix = len(self._path(name)) + 1
        for info in self._files.get_file_info(selector):
            if info.type == pafs.FileType.File:
                destination = folder / info.path[prefix:]
                destination.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(info.path) as source, destination.open("wb") as sink:
                    shutil.copyfileobj(source, sink)

    def remove(self, name: str) -> None:
        """Delete the file or folder ``name``; nothing where there is none."""
        info = self._files.get_file_info(self._path(name))
        if info.type == pafs.FileType.Directory:
            self._files.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self._files.delete_file(info.path)

    def _path(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{name!r} points outside {self.shown}")
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asked_for(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            problem = f"{self.shown}: cannot read {name}: {error}; when it answers again the same command goes on"
            raise StorageError(problem) from error

    def _put(self, path: str, content: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(content)


def _shown(location: str) -> str:
    if "://" not in location:
        return location
    return re.sub(r"://[^/@]*@", "://…@", location.partition("?")[0])


def _open(location: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    try:
        files, root = pafs.FileSystem.from_uri(location)
    except (ValueError, NotImplementedError, OSError) as error:
        if location.partition("://")[0] in _ARROW:
            raise StorageError(f"{_shown(location)}: cannot be opened: {error}") from error
        files, root = _open_fsspec(location)
    return files, str(root).rstrip("/")


def _open_fsspec(location: str) -> tuple[pafs.FileSystem, str]:
    try:
        files, root = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{_shown(location)}: cannot be opened: {error}; use a folder, s3://, gs:// or memory://"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(files)), root


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
