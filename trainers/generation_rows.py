"""The rows of a generation task: prompts, the responses to them and, where there are, the rationales between the two.

No prompt is in two splits, and neither the split nor the rows' fingerprint depends on the order of the rows in train.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from spaces.canonical import fingerprint
from spaces.task import BUILTIN, Task
from trainers.arithmetic_text import arithmetic_problems
from trainers.generation_metrics import contradicts
from trainers.readers import Column, DataError, answer_value, read_rows
from trainers.splits import (
    Notes,
    Words,
    content_hash,
    drop_shared,
    encodable,
    new_questions,
    no_rows_left,
    note_missing,
    read_builtin,
    read_splits,
    unused_keys,
)

_WORDS = Words("prompt", "response")


class Exchange(NamedTuple):
    """One row."""

    prompt: str
    response: str
    rationale: str | None


@dataclass(frozen=True, eq=False)
class GenerationRows:
    """Prompts, and what is to be written after each."""

    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    """Empty where a prompt has none."""
    rationales: tuple[str | None, ...]
    """The way to each response; None where the data has none."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_rationales(self) -> int:
        """Rows that have one."""
        return sum(rationale is not None for rationale in self.rationales)

    @cached_property
    def fingerprint(self) -> str:
        """Of prompts, responses, rationales and their order."""
        return fingerprint({"prompts": self.prompts, "responses": self.responses, "rationales": self.rationales})


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationTaskRows:
    """All rows of a generation task, and what was done to them."""

    train: GenerationRows
    validation: GenerationRows
    test: GenerationRows | None
    notes: tuple[str, ...]
    """A sentence on everything that was left out or looks odd."""
    unlabeled: GenerationRows | None = None
    """More prompts, none of them in validation or test. No part of the fingerprint: only some plans use them."""

    labels: tuple[str, ...] = ()
    """There are none: responses are text."""
    domains: None = None
    """Where rows come from is not asked."""
    right_labels: None = None
    """None: what is right in a validation row is text."""

    @property
    def splits(self) -> dict[str, GenerationRows]:
        """All rows there are, by the name of their split."""
        found = {name: getattr(self, name) for name in ("train", "validation", "test", "unlabeled")}
        return {name: rows for name, rows in found.items() if rows is not None}

    @cached_property
    def fingerprint(self) -> str:
        """Of what models are trained and chosen by: train and validation."""
        return fingerprint({"train": self.train.fingerprint, "validation": self.validation.fingerprint})


def load_generation(task: Task, *, seed: int, folder: Path) -> GenerationTaskRows:
    """Read, clean and split the rows of ``task``. Relative paths start at ``folder``.

    Raises:
        DataError: all that is wrong with all splits; or the column that ``task.rationale`` names gives no rationale.
    """
    notes = unused_keys(task)
    splits = read_splits(task, partial(_read, task=task, folder=folder, notes=notes), more=["unlabeled"])
    unlabeled = splits.pop("unlabeled", [])
    drop_shared(splits, _WORDS, notes)
    splits["train"].sort(key=lambda row: (content_hash(seed, row.prompt), row.response, row.rationale or ""))
    if "validation" not in splits:
        assert isinstance(task.validation, float)
        splits["validation"], splits["train"] = _set_aside(splits["train"], task.validation)
    splits["train"] = splits["train"][: task.limit]
    if unlabeled:
        prompts = new_questions(unlabeled, splits, seed=seed, words=_WORDS, notes=notes)
        splits["unlabeled"] = [Exchange(prompt, "", None) for prompt in prompts]
    if problems := no_rows_left(splits):
        raise DataError(problems)
    if task.metric == "exact_match":
        splits["train"] = _without_wrong_rationales(splits["train"], notes)
    _note_rationales(splits["train"], task, notes)
    rows = {name: _columns_of(found) for name, found in splits.items()}
    return GenerationTaskRows(
        train=rows["train"],
        validation=rows["validation"],
        test=rows.get("test"),
        unlabeled=rows.get("unlabeled"),
        notes=tuple(notes),
    )


def arithmetic_rows() -> Mapping[str, list[Exchange]]:
    """The rows of ``builtin:arithmetic`` by split: train, validation, test."""
    return {
        split: [Exchange(problem.prompt, problem.response, problem.rationale) for problem in problems]
        for split, problems in arithmetic_problems().items()
    }


BUILTINS: dict[str, Callable[[], Mapping[str, list[Exchange]]]] = {"arithmetic": arithmetic_rows}


def _read(split: str, source: str, *, task: Task, folder: Path, notes: Notes) -> list[Exchange]:
    if source.startswith(BUILTIN):
        rows = read_builtin(source, BUILTINS, split)
    else:
        rows = read_rows(source, _columns(task, split), folder=folder)
    if split == "unlabeled":
        rows = [(row[0], "", None) for row in rows]
    note_missing(rows, split, _WORDS, notes)
    return [
        Exchange(encodable(prompt), encodable(response), None if rationale is None else encodable(rationale))
        for prompt, response, rationale in rows
        if prompt is not None and response is not None
    ]


def _columns(task: Task, split: str) -> tuple[Column, ...]:
    prompt, own = Column(key="prompt", name=task.prompt, parse=answer_value("prompt")), task.rationale or "rationale"
    if split == "unlabeled":
        return (prompt,)
    # Learnt from in train alone: rows to validate and test on need none.
    optional = task.rationale is None or split != "train"
    return (
        prompt,
        Column(key="response", name=task.response, parse=answer_value("response")),
        Column(key="rationale", name=own, parse=answer_value("rationale"), optional=optional),
    )


def _set_aside(rows: list[Exchange], share: float) -> tuple[list[Exchange], list[Exchange]]:
    """(validation, train): the share of the prompts that comes first, all rows of a prompt together."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    chosen = set(prompts[: min(max(1, round(share * len(prompts))), len(prompts) - 1)])
    return [row for row in rows if row.prompt in chosen], [row for row in rows if row.prompt not in chosen]


def _without_wrong_rationales(train: list[Exchange], notes: Notes) -> list[Exchange]:
    """The rows, without each rationale that says itself that it comes to another answer than the response."""
    kept = [
        row._replace(rationale=None) if row.rationale and contradicts(row.rationale, row.response) else row
        for row in train
    ]
    if count := sum(before.rationale != after.rationale for before, after in zip(train, kept, strict=True)):
        notes.append(f"train: {count} rationales that come to another answer than their response left out")
    return kept


def _note_rationales(train: list[Exchange], task: Task, notes: Notes) -> None:
    missing = sum(row.rationale is None for row in train)
    if missing == len(train) and task.rationale is not None:
        problem = f"none of the {len(train)} rows has one in this column that can be learnt from"
        raise DataError([f"task.rationale: found {task.rationale!r}; {problem}; name another, or leave the key out"])
    if missing == len(train):
        notes.append("train: no row has a rationale; strategies that learn from rationales need them")
    elif missing:
        notes.append(f"train: {missing} of {len(train)} rows without a rationale; they are kept")


def _columns_of(rows: list[Exchange]) -> GenerationRows:
    return GenerationRows(*zip(*rows, strict=True))
