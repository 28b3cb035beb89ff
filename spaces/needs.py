"""What a strategy, or one option of a parameter, needs beside labelled rows: in words, and what is said where it lacks.

Who can tell whether it is there answers with the needs that are lacking, each with a reason: the spec of what it names,
the kind of task of models and machine. Strategies and options that need such a one are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NeedName = Literal[
    "teacher", "same_tokens", "unlabeled", "rationales", "domains", "texts", "writes", "labels", "int8", "prefix"
]

Lacking = Mapping[NeedName, str]
"""The needs that are not met, each with why, and the way out where there is one."""


@dataclass(frozen=True)
class Need:
    """One thing that may be needed."""

    words: str
    """What it is."""
    absent: str = ""
    """Why it is lacking, where the spec does not bring it; empty where that is not for the spec to tell."""


NEEDS: Mapping[NeedName, Need] = {
    # Trained on the labelled rows where the spec names none, so it is never lacking.
    "teacher": Need("a teacher"),
    "same_tokens": Need("one tokenizer for it and the student"),
    "unlabeled": Need("unlabeled texts", "task.unlabeled names no rows"),
    "rationales": Need("rationales", "task.rationale names no column"),
    "domains": Need("domains", "no column tells domains apart; name one in task.domain"),
    "texts": Need("a metric of what is written", "task.metric is perplexity, for which nothing is written"),
    "writes": Need("a model that writes", "task.kind is classification"),
    # Known when the rows have been read.
    "labels": Need("responses that are labels"),
    "int8": Need("int8 among the precisions", "search.space.quantization leaves int8 out"),
    "prefix": Need("attention that reads keys and values before a text's own"),
}
