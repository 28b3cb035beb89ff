"""The rows of a task: read, cleaned, split, and told apart by their content.

No text is in two splits, and neither the split nor the rows' fingerprint depends on the order of the rows in train.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from spaces.canonical import fingerprint
from spaces.objectives import nearest
from spaces.task import BUILTIN, Task
from trainers.docstrings import docstring_rows
from trainers.readers import DataError, Pairs, meant, read_pairs

__all__ = ["DataError", "Rows", "TaskRows", "load_task"]

BUILTINS: dict[str, Callable[[], Mapping[str, Pairs]]] = {"docstrings": docstring_rows}

_SHOWN = 5

Labelled = list[tuple[str, str]]
"""(text, label) of each row, both there."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts, and the class of each as an index into the task's labels (int64)."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """Of texts, labels and their order."""
        return fingerprint({"texts": self.texts, "labels": self.labels.tolist()})


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskRows:
    """All rows of a task, and what was done to them."""

    train: Rows
    validation: Rows
    test: Rows | None
    labels: tuple[str, ...]
    """Names of the classes, numbers in their order, else sorted as text."""
    notes: tuple[str, ...]
    """A sentence on everything that was left out or looks odd."""

    @cached_property
    def fingerprint(self) -> str:
        """Of what models are trained and chosen by: train, validation and the classes' names."""
        return fingerprint(
            {"train": self.train.fingerprint, "validation": self.validation.fingerprint, "labels": self.labels}
        )


def load_task(task: Task, *, seed: int, folder: Path) -> TaskRows:
    """Read, clean and split the rows of ``task``. Relative paths start at ``folder``.

    Raises:
        DataError: all that is wrong with all splits.
    """
    notes = [f"task.{name} is not used by this version" for name in ("unlabeled", "retain") if getattr(task, name)]
    splits = _read(task, folder, notes)
    _drop_shared(splits, notes)
    if "validation" not in splits:
        assert isinstance(task.validation, float)
        splits["validation"], splits["train"] = _set_aside(splits["train"], task.validation, seed, notes)
    if task.limit is not None:
        splits["train"] = _limited(splits["train"], task.limit, seed)
    splits["train"].sort(key=lambda pair: (_hash(seed, pair[0]), pair[1]))
    labels = sorted_labels({label for _, label in splits["train"]})
    if problems := _unusable(splits, labels):
        raise DataError(problems)
    rows = {name: _rows(pairs, labels) for name, pairs in splits.items()}
    return TaskRows(
        train=rows["train"],
        validation=rows["validation"],
        test=rows.get("test"),
        labels=labels,
        notes=tuple(notes),
    )


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """The classes in order: by value where all are whole numbers, else as text."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _read(task: Task, folder: Path, notes: list[str]) -> dict[str, Labelled]:
    splits: dict[str, Labelled] = {}
    problems: list[str] = []
    for split, source in _sources(task).items():
        try:
            splits[split] = _present(split, _pairs(split, source, task, folder), notes)
        except DataError as error:
            problems += [f"task.{split}: {problem}" for problem in error.problems]
    if problems:
        raise DataError(problems)
    return splits


def _sources(task: Task) -> dict[str, str]:
    """Where each split comes from. A built-in train brings its own validation and test."""
    own = task.train if task.builtin else None
    validation = task.validation if isinstance(task.validation, str) else own
    found = {"train": task.train, "validation": validation, "test": task.test or own}
    return {split: source for split, source in found.items() if source is not None}


def _pairs(split: str, source: str, task: Task, folder: Path) -> Pairs:
    if not source.startswith(BUILTIN):
        return read_pairs(source, text=task.text, label=task.label, folder=folder)
    name = source.removeprefix(BUILTIN)
    if name not in BUILTINS:
        raise DataError([f"{source}: there are no such rows{nearest(name, BUILTINS)}"])
    return BUILTINS[name]()[split]


def _present(split: str, pairs: Pairs, notes: list[str]) -> Labelled:
    labelled = [(_encodable(text), label) for text, label in pairs if text is not None and label is not None]
    no_text = sum(text is None for text, _ in pairs)
    no_label = len(pairs) - len(labelled) - no_text
    for count, what in ((no_text, "text"), (no_label, "label")):
        if count:
            notes.append(f"{split}: {count} of {len(pairs)} rows without a {what} left out")
    if not labelled:
        raise DataError([f"none of the {len(pairs)} rows has a text and a label"])
    return labelled


def _encodable(text: str) -> str:
    """``text`` with a question mark for every half of a surrogate pair, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def _drop_shared(splits: dict[str, Labelled], notes: list[str]) -> None:
    """Leave each text in one split alone: test before validation before train."""
    order = [name for name in ("test", "validation", "train") if name in splits]
    for position, kept in enumerate(order):
        known: dict[str, set[str]] = defaultdict(set)
        for text, label in splits[kept]:
            known[text].add(label)
        for other in order[position + 1 :]:
            shared = [pair for pair in splits[other] if pair[0] in known]
            if shared:
                differing = sum(label not in known[text] for text, label in shared)
                clause = f", {differing} of them with another label there" if differing else ""
                notes.append(f"{other}: {len(shared)} rows whose text is also in {kept} left out{clause}")
                splits[other] = [pair for pair in splits[other] if pair[0] not in known]
    _note_contradictions(splits["train"], notes)


def _note_contradictions(pairs: Labelled, notes: list[str]) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for text, label in pairs:
        labels[text].add(label)
    if count := sum(len(found) > 1 for found in labels.values()):
        notes.append(f"train: {count} texts occur with different labels")


def _set_aside(pairs: Labelled, share: float, seed: int, notes: list[str]) -> tuple[Labelled, Labelled]:
    """(validation, train): the share of each class's texts that comes first by hash, all rows of a text together."""
    by_class = _texts_by_class(pairs, seed)
    single = [label for label, texts in by_class.items() if len(texts) == 1]
    if single:
        notes.append(
            f"train: {len(single)} classes have one text only, which stays in train and is not validated on: "
            f"{', '.join(sorted(single)[:5])}{' …' if len(single) > 5 else ''}"
        )
    counts = {label: len(texts) for label, texts in by_class.items()}
    wanted = quotas(counts, max(1, round(share * sum(counts.values()))), most=lambda count: count - 1)
    chosen = {text for label, texts in by_class.items() for text in texts[: wanted[label]]}
    validation = sorted((pair for pair in pairs if pair[0] in chosen), key=lambda pair: (_hash(seed, pair[0]), pair[1]))
    return validation, [pair for pair in pairs if pair[0] not in chosen]


def _limited(pairs: Labelled, limit: int, seed: int) -> Labelled:
    counts = Counter(label for _, label in pairs)
    if limit < len(counts):
        raise DataError([f"task.limit: found {limit}; train has {len(counts)} classes; give at least one row for each"])
    wanted = quotas(counts, limit, least=1)
    kept = []
    for text, label in sorted(pairs, key=lambda pair: (_hash(seed, pair[0]), pair[1])):
        if wanted[label] > 0:
            wanted[label] -= 1
            kept.append((text, label))
    return kept


def quotas(
    counts: Mapping[str, int], total: int, *, least: int = 0, most: Callable[[int], int] = lambda count: count
) -> dict[str, int]:
    """``total`` shared out in proportion to ``counts`` by largest remainders, within [``least``, ``most(count)``] each.

    Where the bounds leave no way to ``total``, as near to it as they allow.
    """
    everything = sum(counts.values())
    exact = {name: total * count / everything for name, count in counts.items()}
    given = {name: min(most(count), max(least, int(exact[name]))) for name, count in counts.items()}
    while (missing := total - sum(given.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [name for name in counts if least <= given[name] + step <= most(counts[name])]
        if not movable:
            break
        movable.sort(key=lambda name: (step * (given[name] - exact[name]), name))
        for name in movable[: abs(missing)]:
            given[name] += step
    return given


def _texts_by_class(pairs: Labelled, seed: int) -> dict[str, list[str]]:
    """Every text once, under the first of its labels, by hash: whatever the order of the rows."""
    label_of: dict[str, str] = {}
    for text, label in pairs:
        label_of[text] = min(label, label_of.get(text, label))
    by_class: dict[str, list[str]] = defaultdict(list)
    for text in sorted(label_of, key=lambda text: _hash(seed, text)):
        by_class[label_of[text]].append(text)
    return dict(by_class)


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _unusable(splits: Mapping[str, Labelled], labels: Sequence[str]) -> list[str]:
    problems = [
        f"task.{split}: no rows are left; add rows, or name a file with others" for split in splits if not splits[split]
    ]
    if len(labels) == 1:
        problems.append(f"task.train: found one class only, {labels[0]!r}; expected at least two")
    known = set(labels)
    for split, pairs in splits.items():
        unknown = Counter(label for _, label in pairs if known and label not in known)
        for label, count in sorted(unknown.items())[:_SHOWN]:
            problems.append(
                f"task.{split}: label {label!r} ({count} rows) does not occur in train{meant(label, labels)}; "
                "add rows of it to train, or leave them out here"
            )
        if len(unknown) > _SHOWN:
            problems.append(f"task.{split}: … and {len(unknown) - _SHOWN} more labels that train does not have")
    return problems


def _rows(pairs: Labelled, labels: Sequence[str]) -> Rows:
    index = {label: number for number, label in enumerate(labels)}
    texts = tuple(text for text, _ in pairs)
    return Rows(texts, np.array([index[label] for _, label in pairs], dtype=np.int64))
