"""A search that takes a minute: a tiny random encoder, rows that a word decides, and a process to run it in."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from tiny_models import WORDS, tiny_model

LABELS = ("cat", "dog", "sun")
FAST = {"learning_rate": [3e-3, 1e-2], "lora_learning_rate": [3e-3, 1e-2], "student_learning_rate": [3e-3, 1e-2]}
"""Rates at which the tiny encoder learns its task in a few epochs."""
PATIENCE_S = 600
"""No search of a test takes this long; one that does is ended, and the test fails."""


def write_rows(path: Path, count: int, *, seed: int) -> Path:
    """JSON lines of a text with one of three words in it, and that word as its label."""
    rng = random.Random(seed)
    others = [word for word in WORDS if word not in LABELS]
    rows = []
    for _ in range(count):
        label = rng.choice(LABELS)
        words = [*rng.choices(others, k=rng.randint(1, 8)), label]
        rows.append({"text": " ".join(rng.sample(words, len(words))), "label": label})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tiny_spec(folder: Path, **changes: Any) -> Path:
    """Write model, rows and spec below ``folder``; ``changes`` replace or extend sections of the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(folder / "model", num_layers=2)
    write_rows(folder / "train.jsonl", 200, seed=0)
    write_rows(folder / "test.jsonl", 100, seed=1)
    sections: dict[str, Any] = {
        "name": "tiny",
        "task": {"train": "train.jsonl", "validation": 0.25, "test": "test.jsonl"},
        "model": {"base": "./model", "student_layers": [1]},
        "search": {"space": dict(FAST), "teacher_recipes": {"standard": {"learning_rate": 1e-2, "epochs": 3}}},
        "targets": ["cpu", "phone"],
        "budget": {"trials": 8},
        "storage": str(folder / "runs"),
    }
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(sections.get(key), Mapping)
        sections[key] = {**sections[key], **value} if both else value
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(sections))
    return spec


@dataclass
class Running:
    """A ``distune`` command under way; its lines are read as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _family: set[psutil.Process] = field(default_factory=set)

    def until(self, text: str, *, times: int = 1) -> str:
        """Read on to the line that holds ``text`` for the ``times``-th time; it is returned."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            times -= text in line
            if times <= 0:
                return self.lines[-1]
        raise AssertionError(f"ended without {text!r}:\n{self.text}")

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is named, and wait for the end; the exit code."""
        self.family()
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += [line.rstrip("\n") for line in self.process.stdout]
        return self.process.wait()

    def family(self) -> set[psutil.Process]:
        """All processes that were ever seen below the command, those included that Ray has detached."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family.update(psutil.Process(self.process.pid).children(recursive=True))
        return self._family

    def workers(self, name: str) -> list[psutil.Process]:
        """Ray's workers below the command whose title holds ``name``."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def text(self) -> str:
        """All that it has printed."""
        return "\n".join(self.lines)


@contextlib.contextmanager
def distune(*arguments: str | Path, cwd: Path, cache: Path) -> Iterator[Running]:
    """The installed command, in a process group of its own; it is killed where the block leaves it running."""
    command = [str(Path(sys.executable).with_name("distune")), *map(str, arguments)]
    environment = {
        **os.environ,
        "DISTUNE_CACHE": str(cache),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        yield Running(process)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run_to_end(arguments: Sequence[str | Path], *, cwd: Path, cache: Path) -> tuple[int, str]:
    """Exit code and output of a command."""
    with distune(*arguments, cwd=cwd, cache=cache) as running:
        return running.end(), running.text


def still_alive(family: set[psutil.Process], *, within_s: float = 20.0) -> list[str]:
    """Command lines of those that have not ended in time."""
    _, alive = psutil.wait_procs(family, timeout=within_s)
    found = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline())[:200])
    return found
