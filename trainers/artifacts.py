"""Results that are computed once: folders under the fingerprint of what they are the result of.

An artifact is a folder with a manifest, ``artifact.json``, written last: its description, and every file's size and
SHA-256. Without a manifest there is no artifact. On a local disk the whole folder appears by one rename.
"""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces.canonical import file_fingerprint
from trainers.storage import Storage, StorageError

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A finished result: where it lies on this machine, and what was written down about it."""

    fingerprint: str
    folder: Path
    about: dict[str, Any]
    """JSON written when it was made: kind, plan, seconds, history, …"""


class ArtifactStore:
    """Artifacts in a ``Storage``. Remote ones are copied once to ``cache`` and read from there."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        self._storage = storage
        self._cache = storage.local_path or cache

    def has(self, fingerprint: str) -> bool:
        """Whether the artifact is finished."""
        return self._storage.exists(f"{fingerprint}/{MANIFEST}")

    def find(self, fingerprint: str) -> Artifact | None:
        """The artifact, on this machine; None if it is not finished.

        Raises:
            StorageError: a file is missing or is not what was written; names it and says how to have it made again.
        """
        if not self.has(fingerprint):
            return None
        folder = self._cache / fingerprint
        if not (folder / MANIFEST).exists():
            self._fetch(fingerprint, folder)
        manifest = _read_manifest(folder)
        for name, file in manifest["files"].items():
            if not (folder / name).exists() or (folder / name).stat().st_size != file["bytes"]:
                raise StorageError(f"{folder / name}: is not what was written; delete {folder} to have it made again")
        return Artifact(fingerprint, folder, manifest["about"])

    def about(self, fingerprint: str) -> dict[str, Any] | None:
        """What was written down about an artifact, without fetching it; None if it is not finished."""
        if not self.has(fingerprint):
            return None
        return dict(self._storage.read_json(f"{fingerprint}/{MANIFEST}")["about"])

    @contextlib.contextmanager
    def publish(self, fingerprint: str, about: dict[str, Any]) -> Iterator[Path]:
        """A new folder to fill; when the block ends without an error it becomes the artifact, all at once.

        ``about`` may still be added to inside the block. Where two publish the same fingerprint, the first stays.
        """
        parent = self._storage.local_path or self._cache
        draft = parent / f".{fingerprint[:12]}-{uuid.uuid4().hex[:8]}"
        try:
            draft.mkdir(parents=True)
            yield draft
            _write_manifest(draft, about)
            self._settle(draft, fingerprint)
        except OSError as error:
            raise StorageError(f"{parent}: cannot publish {fingerprint[:12]}…: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def remove_drafts(self) -> None:
        """Delete what publishers that were killed have left. To be called while nobody publishes.

        Does nothing where artifacts are remote: the cache then belongs to other runs as well.
        """
        if self._storage.local_path is not None:
            for draft in self._storage.local_path.glob(".*-*"):
                shutil.rmtree(draft, ignore_errors=True)

    def _settle(self, draft: Path, fingerprint: str) -> None:
        if not self.has(fingerprint):
            if self._storage.local_path is None:
                self._storage.upload(draft, fingerprint, last=MANIFEST)
            _put_in_place(draft, self._cache / fingerprint)
        if not self.has(fingerprint):
            raise StorageError(f"{self._storage.shown}: {fingerprint[:12]}… could not be put in place")

    def _fetch(self, fingerprint: str, folder: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._cache) as draft:
            copy = Path(draft) / fingerprint
            self._storage.download(fingerprint, copy)
            _put_in_place(copy, folder)


def _put_in_place(draft: Path, folder: Path) -> None:
    """Rename ``draft`` to ``folder``, unless another one was faster."""
    if folder.exists() and not (folder / MANIFEST).exists():
        # Left of a folder that somebody began to delete: an artifact only ever appears with its manifest.
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        draft.rename(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return {"about": dict(manifest["about"]), "files": dict(manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{folder / MANIFEST}: cannot be read ({error}); delete {folder} to have it made again"
        ) from error


def _write_manifest(draft: Path, about: dict[str, Any]) -> None:
    files = {
        path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": file_fingerprint(path)}
        for path in sorted(draft.rglob("*"))
        if path.is_file()
    }
    with (draft / MANIFEST).open("w") as file:
        json.dump({"about": about, "files": files}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
