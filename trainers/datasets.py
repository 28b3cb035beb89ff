"""The rows of a task: read, cleaned, split, and told apart by their content.

No text is in two splits, and neither the split nor the rows' fingerprint depends on the order of the rows in train.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from spaces.canonical import fingerprint
from spaces.task import BUILTIN, Task
from trainers.docstrings import docstring_rows
from trainers.readers import Column, DataError, Pairs, answer_value, label_name, meant, read_rows, text_value
from trainers.splits import (
    Words,
    content_hash,
    drop_shared,
    encodable,
    new_questions,
    no_rows_left,
    note_missing,
    read_builtin,
    read_splits,
)

__all__ = ["DataError", "Rows", "TaskRows", "load_task"]

BUILTINS: dict[str, Callable[[], Mapping[str, Pairs]]] = {"docstrings": docstring_rows}

_SHOWN = 5
_WORDS = Words("text", "label")
_MORE = ("unlabeled", "retain")

RETAIN_ROWS = 4000
"""At most so many `retain` rows are used: half of them tell an accuracy to within a point or two."""

Labelled = list[tuple[str, str]]
"""(text, label) of each row, both there; the label of unlabeled rows is empty, which no row of a file has."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts, and the class of each as an index into the labels (int64); -1 where it has none."""

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
    unlabeled: Rows | None = None
    """More texts, none of them in validation or test. No part of the fingerprint: only some plans use them."""
    domains: tuple[str, ...] | None = None
    """Where each row of train comes from; empty where it does not say. No part of the fingerprint either."""
    retain: Rows | None = None
    """General rows on which forgetting is measured, with labels of their own; no part of the fingerprint either."""

    @property
    def splits(self) -> dict[str, Rows]:
        """All rows there are, by the name of their split."""
        found = {name: getattr(self, name) for name in ("train", "validation", "test", *_MORE)}
        return {name: rows for name, rows in found.items() if rows is not None}

    @property
    def right_labels(self) -> tuple[int, ...]:
        """What is right in each validation row, as an index into the labels."""
        return tuple(int(label) for label in self.validation.labels)

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
    notes: list[str] = []
    domains: dict[str, str] = {}
    read = partial(_read, task=task, folder=folder, notes=notes, domains=domains)
    splits = read_splits(task, read, more=_MORE)
    unlabeled, retain = (splits.pop(name, []) for name in _MORE)
    drop_shared(splits, _WORDS, notes)
    if "validation" not in splits:
        assert isinstance(task.validation, float)
        splits["validation"], splits["train"] = _set_aside(splits["train"], task.validation, seed, notes)
    if task.limit is not None:
        splits["train"] = _limited(splits["train"], task.limit, seed)
    splits["train"].sort(key=lambda pair: (content_hash(seed, pair[0]), pair[1]))
    labels = sorted_labels({label for _, label in splits["train"]})
    if unlabeled:
        texts = new_questions(unlabeled, splits, seed=seed, words=_WORDS, notes=notes)
        splits["unlabeled"] = [(text, "") for text in texts]
    in_domains = tuple(domains[text] for text, _ in splits["train"]) if task.domain else None
    if problems := _unusable(splits, labels) + _unusable_retain(retain) + _unusable_domains(in_domains, task):
        raise DataError(problems)
    rows = {name: _rows(pairs, labels) for name, pairs in splits.items()}
    if retain:
        rows["retain"] = _general_rows(retain, seed, notes)
    return TaskRows(
        train=rows["train"],
        validation=rows["validation"],
        test=rows.get("test"),
        labels=labels,
        notes=tuple(notes),
        unlabeled=rows.get("unlabeled"),
        retain=rows.get("retain"),
        domains=in_domains,
    )


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """The classes in order: by value where all are whole numbers, else as text."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _read(split: str, source: str, *, task: Task, folder: Path, notes: list[str], domains: dict[str, str]) -> Labelled:
    """The rows of a split; the domain of each text of train is put into ``domains``."""
    rows: list[Any]
    if source.startswith(BUILTIN):
        rows = read_builtin(source, BUILTINS, split)
    else:
        rows = read_rows(source, _columns(task, split), folder=folder)
    if split == "unlabeled":
        rows = [(row[0], "") for row in rows]
    note_missing(rows, split, _WORDS, notes)
    found = [(encodable(text), label, *more) for text, label, *more in rows if text is not None and label is not None]
    for text, _, *more in found if split == "train" and task.domain else ():
        # A text that is there twice has one domain, whatever the order of the rows.
        domains[text] = min(more[0] or "", domains.get(text, more[0] or ""))
    return [(text, label) for text, label, *_ in found]


def _columns(task: Task, split: str) -> list[Column]:
    columns = [Column(key="text", name=task.text, parse=text_value("text"))]
    if split != "unlabeled":
        columns.append(Column(key="label", name=task.label, parse=label_name))
    if split == "train" and task.domain:
        columns.append(Column(key="domain", name=task.domain, parse=answer_value("domain")))
    return columns


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
    validation = sorted(
        (pair for pair in pairs if pair[0] in chosen), key=lambda pair: (content_hash(seed, pair[0]), pair[1])
    )
    return validation, [pair for pair in pairs if pair[0] not in chosen]


def _limited(pairs: Labelled, limit: int, seed: int) -> Labelled:
    counts = Counter(label for _, label in pairs)
    if limit < len(counts):
        raise DataError([f"task.limit: found {limit}; train has {len(counts)} classes; give at least one row for each"])
    wanted = quotas(counts, limit, least=1)
    kept = []
    for text, label in sorted(pairs, key=lambda pair: (content_hash(seed, pair[0]), pair[1])):
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
    for text in sorted(label_of, key=lambda text: content_hash(seed, text)):
        by_class[label_of[text]].append(text)
    return dict(by_class)


def _unusable(splits: Mapping[str, Labelled], labels: Sequence[str]) -> list[str]:
    problems = no_rows_left(splits)
    if len(labels) == 1:
        problems.append(f"task.train: found one class only, {labels[0]!r}; expected at least two")
    known = set(labels)
    for split, pairs in splits.items():
        unknown = Counter(label for _, label in pairs if known and label and label not in known)
        for label, count in sorted(unknown.items())[:_SHOWN]:
            problems.append(
                f"task.{split}: label {label!r} ({count} rows) does not occur in train{meant(label, labels)}; "
                "add rows of it to train, or leave them out here"
            )
        if len(unknown) > _SHOWN:
            problems.append(f"task.{split}: … and {len(unknown) - _SHOWN} more labels that train does not have")
    return problems


def _general_rows(pairs: Labelled, seed: int, notes: list[str]) -> Rows:
    """Each text once under one of its labels, by hash; the same share of each class where there are many."""
    by_class = _texts_by_class(pairs, seed)
    unique = [(text, label) for label, texts in by_class.items() for text in texts]
    if len(unique) < len(pairs):
        notes.append(f"retain: {len(pairs) - len(unique)} rows whose text is there twice left out")
    if len(unique) > RETAIN_ROWS >= len(by_class):
        notes.append(f"retain: {RETAIN_ROWS} of {len(unique)} rows used")
        unique = _limited(unique, RETAIN_ROWS, seed)
    unique.sort(key=lambda pair: content_hash(seed, pair[0]))
    return _rows(unique, sorted_labels(set(by_class)))


def _unusable_retain(pairs: Labelled) -> list[str]:
    by_class = _texts_by_class(pairs, 0)
    if not pairs or sum(len(texts) > 1 for texts in by_class.values()) > 1:
        return []
    return [
        f"task.retain: found {len(by_class)} classes with {sum(map(len, by_class.values()))} texts; expected at least "
        "two classes with two texts each: half of the rows fit a probe, the others are asked"
    ]


def _unusable_domains(domains: Sequence[str] | None, task: Task) -> list[str]:
    if not domains or len(set(domains)) > 1:
        return []
    return [
        f"task.domain: found {task.domain!r}, which is {repr(domains[0]) if domains[0] else 'empty'} in all "
        f"{len(domains)} rows of train: a second expert would have no data; name a column that tells rows apart, or "
        "leave the key out"
    ]


def _rows(pairs: Labelled, labels: Sequence[str]) -> Rows:
    index = {label: number for number, label in enumerate(labels)}
    texts = tuple(text for text, _ in pairs)
    return Rows(texts, np.array([index[label] if label else -1 for _, label in pairs], dtype=np.int64))
