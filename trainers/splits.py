"""What the rows of every kind of task go through: each split is read, and no question is in two of them.

A row is a tuple that begins with its question and the answer to it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from spaces.objectives import nearest
from spaces.task import BUILTIN, Task
from trainers.readers import DataError

Row = TypeVar("Row", bound=tuple[Any, ...])

Notes = list[str]
"""A sentence on everything that was left out or looks odd."""


@dataclass(frozen=True)
class Words:
    """What a kind of task calls the two sides of a row."""

    question: str
    answer: str


def unused_keys(task: Task) -> Notes:
    """A note on each key that was given and has no effect."""
    return ["task.retain is not used by this version"] if task.retain else []


def read_splits(task: Task, read: Callable[[str, str], list[Row]], *, more: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The rows of each split, by ``read`` from its name and source. A built-in train brings validation and test.

    ``more`` names further keys of the task whose rows are read.

    Raises:
        DataError: all that is wrong with all splits.
    """
    own = task.train if task.builtin else None
    validation = task.validation if isinstance(task.validation, str) else own
    splits: dict[str, list[Row]] = {}
    problems: list[str] = []
    sources = {"train": task.train, "validation": validation, "test": task.test or own}
    for split, source in (sources | {name: getattr(task, name) for name in more}).items():
        try:
            if source is not None:
                splits[split] = read(split, source)
        except DataError as error:
            problems += [f"task.{split}: {problem}" for problem in error.problems]
    if problems:
        raise DataError(problems)
    return splits


def read_builtin(source: str, builtins: Mapping[str, Callable[[], Mapping[str, list[Any]]]], split: str) -> list[Any]:
    """A split of one of ``builtins``, which are made when they are asked for; that of train where it has no such split.

    Raises:
        DataError: there is no such one.
    """
    name = source.removeprefix(BUILTIN)
    if name not in builtins:
        raise DataError([f"{source}: there are no such rows{nearest(name, builtins)}"])
    rows = builtins[name]()
    return rows.get(split, rows["train"])


def note_missing(rows: list[Any], split: str, words: Words, notes: Notes) -> None:
    """Count the rows that lack one of their sides.

    Raises:
        DataError: all do.
    """
    no_question = sum(row[0] is None for row in rows)
    no_answer = sum(row[0] is not None and row[1] is None for row in rows)
    for count, what in ((no_question, words.question), (no_answer, words.answer)):
        if count:
            notes.append(f"{split}: {count} of {len(rows)} rows without a {what} left out")
    if no_question + no_answer == len(rows):
        wanted = f"a {words.question} and a {words.answer}" if no_answer else f"a {words.question}"
        raise DataError([f"none of the {len(rows)} rows has {wanted}"])


def encodable(text: str) -> str:
    """``text`` with a question mark for every half of a surrogate pair, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def drop_shared(splits: dict[str, list[Row]], words: Words, notes: Notes) -> None:
    """Leave each question in one split alone: test before validation before train."""
    order = [name for name in ("test", "validation", "train") if name in splits]
    for position, kept in enumerate(order):
        known = _answers(splits[kept])
        for other in order[position + 1 :]:
            shared = [row for row in splits[other] if row[0] in known]
            if shared:
                differing = sum(row[1] not in known[row[0]] for row in shared)
                clause = f", {differing} of them with another {words.answer} there" if differing else ""
                notes.append(f"{other}: {len(shared)} rows whose {words.question} is also in {kept} left out{clause}")
                splits[other] = [row for row in splits[other] if row[0] not in known]
    if count := sum(len(found) > 1 for found in _answers(splits["train"]).values()):
        notes.append(f"train: {count} {words.question}s occur with different {words.answer}s")


def new_questions(
    rows: Sequence[Row], splits: Mapping[str, list[Row]], *, seed: int, words: Words, notes: Notes
) -> list[str]:
    """Each question of unlabeled ``rows`` once, by hash, without those that models are judged by."""
    judged = {row[0] for name in ("validation", "test") for row in splits.get(name, ())}
    questions = {row[0] for row in rows}
    for count, what in (
        (len(rows) - len(questions), f"whose {words.question} is there twice"),
        (len(questions & judged), f"whose {words.question} is also in validation or test"),
    ):
        if count:
            notes.append(f"unlabeled: {count} rows {what} left out")
    return sorted(questions - judged, key=lambda question: content_hash(seed, question))


def no_rows_left(splits: Mapping[str, list[Row]]) -> list[str]:
    """A problem for each split that is empty."""
    return [
        f"task.{split}: no rows are left; add rows, or name a file with others" for split in splits if not splits[split]
    ]


def content_hash(seed: int, text: str) -> bytes:
    """What texts are ordered by, whatever the order of the rows."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _answers(rows: list[Row]) -> dict[str, set[str]]:
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row[0]].add(row[1])
    return answers
