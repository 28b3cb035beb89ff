"""A run's folder: opened, claimed for a spec and its data, and how long has been searched in it."""

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from search.spec import Spec, spec_differences, spec_to_yaml
from trainers.context import Context
from trainers.storage import Storage, StorageError

if TYPE_CHECKING:
    from trainers.kinds import AnyRows

_SPEC = "spec.yaml"
_CONTEXT = "context.json"
_NOTES = "notes.json"
_LABELS = "validation_labels.json"
_BEAT_S = 5.0


class RunChanged(Exception):
    """The run in this folder was started from another spec or other data; says what differs and the way out."""


@dataclass
class RunFolder:
    """Where one run leaves everything."""

    storage: Storage
    log_folder: Path
    """On this machine."""
    _session: str = field(default_factory=lambda: f"{time.time_ns()}")
    _began: float = field(default_factory=time.time)
    _beaten: float = 0.0

    @classmethod
    def open(cls, spec: Spec, *, new: bool) -> "RunFolder":
        """The folder called like the spec; with ``new`` the first of ``NAME-2``, ``NAME-3``, … that is free.

        Raises:
            RunChanged: it holds a run of another spec.
        """
        top = Storage(spec.storage)
        storage = top.child(_free_name(top, spec.name) if new else spec.name)
        if storage.exists(_SPEC):
            old = _read_spec(storage)
            if changed := spec_differences(old, spec):
                raise RunChanged(_differs(storage, "the spec", changed))
        local = storage.local_path
        log_folder = local / "log" if local is not None else Path(tempfile.mkdtemp(prefix="distune-log-"))
        return cls(storage, log_folder)

    def claim(self, spec: Spec, used: Context, rows: "AnyRows", *, notes: Sequence[str] = ()) -> None:
        """Write down what the run is about, or check that it is still about the same. ``notes`` are what was said of
        data and models.

        Raises:
            RunChanged: the data or the model behind the spec has changed.
        """
        context = json.loads(json.dumps(asdict(used)))
        if self.storage.exists(_CONTEXT):
            old = self.storage.read_json(_CONTEXT)
            changed = [name for name in ("tokens", "labels") if old[name] != context[name]]
            if changed:
                raise RunChanged(_differs(self.storage, "the data or the model", [f"content of {', '.join(changed)}"]))
        self.storage.write(_SPEC, spec_to_yaml(spec).encode())
        self.storage.write_json(_CONTEXT, context)
        self.storage.write_json(_NOTES, {"notes": list(notes)})
        if rows.right_labels is not None and not self.storage.exists(_LABELS):
            self.storage.write_json(_LABELS, {"labels": list(rows.labels), "rows": list(rows.right_labels)})
        self.log_folder.mkdir(parents=True, exist_ok=True)
        for note in notes:
            self.log(note)
        self.beat()

    def has_test(self) -> bool:
        """Whether there are rows that nothing is chosen by."""
        return any("test" in splits for splits in self.storage.read_json(_CONTEXT)["tokens"].values())

    def beat(self) -> None:
        """Note that this session is still at work; at most every few seconds."""
        if time.time() - self._beaten < _BEAT_S:
            return
        self._beaten = time.time()
        self.storage.write_json(f"sessions/{self._session}.json", {"began": self._began, "last": time.time()})

    def earlier_minutes(self) -> float:
        """Wall time of the sessions before this one."""
        sessions = self.storage.child("sessions")
        spans = [sessions.read_json(name) for name in sessions.names(".json") if name != f"{self._session}.json"]
        return sum(span["last"] - span["began"] for span in spans) / 60

    def log(self, text: str) -> None:
        """Append to this session's log on this machine."""
        logger = logging.getLogger(f"distune.{self._session}")
        if not logger.handlers:
            handler = logging.FileHandler(self.log_folder / f"session-{self._session}.log")
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
        logger.info(text)


def context_of(storage: Storage) -> Context:
    """What the plans of the run in ``storage`` are carried out with.

    Raises:
        StorageError: the run has not got so far that it was written down.
    """
    if not storage.exists(_CONTEXT):
        raise StorageError(f"{storage.shown} has no {_CONTEXT}; `distune search` writes it: run the search again")
    value = storage.read_json(_CONTEXT)
    return Context(**{**value, "labels": tuple(value["labels"])})


def _read_spec(storage: Storage) -> Spec:
    try:
        return Spec.model_validate(yaml.safe_load(storage.read(_SPEC)))
    except (ValueError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise RunChanged(
            f"{storage.shown}/{_SPEC}: cannot be read by this version ({first}); start beside it with --new"
        ) from error


def _free_name(top: Storage, name: str) -> str:
    taken = set(top.names())
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _differs(storage: Storage, what: str, changed: list[str]) -> str:
    lines = "\n".join(f"  {line}" for line in changed)
    return (
        f"{storage.shown}: {what} of this run has changed:\n{lines}\n"
        "put it back to go on, give the spec another name, or start beside it with --new"
    )
