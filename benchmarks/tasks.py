"""Tasks that benchmarks train on: an example's spec, rows cut to a size that can be afforded, all of it prepared."""

import json
import random
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from search.prepare import Prepared, prepare
from search.spec import load_spec
from spaces.plan import Plan
from trainers.artifacts import MANIFEST
from trainers.context import Context
from trainers.docstrings import docstring_rows
from trainers.progress import Progress
from trainers.storage import Storage

EXAMPLES = Path(__file__).parent.parent / "examples"

Splits = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by split."""


def read_splits(data: Path | None, *, only: str | None = None) -> Splits:
    """The rows of train.jsonl, val.jsonl and test.jsonl in ``data``, else of ``builtin:docstrings``; of those, the
    labels in ``only``, with commas.
    """
    if data is None:
        found = {name: [{"text": text, "label": label} for text, label in of] for name, of in docstring_rows().items()}
    else:
        files = {"train": "train", "validation": "val", "test": "test"}
        found = {
            split: [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
            for split, name in files.items()
        }
    kept = set(only.split(",")) if only else None
    return {split: [row for row in rows if kept is None or row["label"] in kept] for split, rows in found.items()}


def cut_splits(splits: Splits, *, num_train: int | None = None, num_validation: int | None = None) -> Splits:
    """The first rows of a shuffled train, as many others of it without their label, and some of a shuffled
    validation.
    """
    train, validation = list(splits["train"]), list(splits["validation"])
    random.Random(0).shuffle(train)
    if num_validation is not None:
        random.Random(0).shuffle(validation)
    limit = num_train or len(train)
    return {
        **splits,
        "train": train[:limit],
        "validation": validation[:num_validation],
        "unlabeled": [{"text": row["text"]} for row in train[limit : 2 * limit]],
    }


def write_splits(splits: Splits, folder: Path, task: str) -> list[str]:
    """Write the rows below ``folder``; the settings by which a spec of ``task`` reads them."""
    paths = {name: folder.absolute() / f"{task}-{name}.jsonl" for name, rows in splits.items() if rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in splits[name]))
    return [f"task.{name}={path}" for name, path in paths.items()]


def prepared_task(spec: Path, settings: Sequence[str], *, store: Path) -> Prepared:
    """The task of ``spec``, changed by ``settings``, its rows tokenised; one thread, and no checkpoints within a
    stage.
    """
    prepared = prepare(load_spec(spec, settings), Storage(store), threads=1, say=print)
    return replace(prepared, context=replace(prepared.context, checkpoint_every_s=1e9))


def delete(plans: Iterable[Plan], context: Context) -> None:
    """Delete what the trained ``plans`` left in a store on this disk. An artifact without its manifest is none: that
    goes first, so that one whose deletion is interrupted is not found again.
    """
    for plan in plans:
        folder = Path(context.artifacts) / plan.fingerprint
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def processor_seconds() -> AbstractContextManager[Any]:
    """Within it stages measure the seconds of the processor: on a shared machine wall time measures the neighbours."""
    return patch("time.perf_counter", time.process_time)


def silent(progress: Progress) -> None:
    """Nobody listens."""
