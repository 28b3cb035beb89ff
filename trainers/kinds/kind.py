"""What differs between kinds of task. Loop, stages, teacher and search know of a kind by this protocol alone."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spaces.methods.vocabulary import KeepVocabulary
from spaces.needs import Lacking
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.targets import Precision
from spaces.task import Task
from trainers.artifacts import Artifact
from trainers.context import Context, Heartbeat
from trainers.datasets import TaskRows
from trainers.generation_metrics import RowScores
from trainers.generation_rows import GenerationTaskRows
from trainers.metrics import Quality
from trainers.models import ModelInfo
from trainers.ranks import Ranks
from trainers.tokens import Tokens

if TYPE_CHECKING:
    # Which looks its kind up itself.
    from trainers.cost import CostRow

Answers = np.ndarray | RowScores
"""What a model said to each row of a split, in its order: labels (int64), or how good each text was."""


AnyRows = TaskRows | GenerationTaskRows
"""All rows of a task, by split."""


@dataclass(frozen=True)
class Request:
    """How long a request and its answer are."""

    input_tokens: int
    output_tokens: int = 0
    """0 where the answer is no text."""


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What a teacher answers to rows without a label."""

    answers: Sequence[Any]
    """Of each row: its label, or its response."""
    confidences: np.ndarray
    """How sure the teacher is of each, 0 to 1, float64; NaN where an answer is of no use."""
    seconds: float
    """How long it took."""


class Kind(Protocol):
    """One kind of task. Has no state: everything comes with the context. ``tokens`` are what ``open_tokens`` gave."""

    def load_rows(self, task: Task, *, seed: int, folder: Path) -> AnyRows:
        """Read, clean and split the rows of ``task``. Relative paths start at ``folder``. Raises ``DataError``."""

    def data_fingerprint(self, rows: Any, task: Task) -> str:
        """Of what plans are trained and chosen by: rows, and how they are cut."""

    def inspect(self, reference: str) -> ModelInfo:
        """A pretrained model of the user's, found and checked without loading its weights. Raises ``ModelError``."""

    def check(
        self,
        task: Task,
        *,
        base: ModelInfo,
        teacher: ModelInfo | None,
        students: Sequence[ModelInfo],
        precisions: Sequence[Precision],
    ) -> None:
        """That these models can serve the task and each other, at these precisions, here. Raises ``ModelError``."""

    def lacking(
        self, context: Context, *, base: ModelInfo, teacher: ModelInfo | None, students: Sequence[ModelInfo]
    ) -> Lacking:
        """The needs of strategies and options that these models, their rows tokenised, or this machine do not meet."""

    def num_draws(self, base: ModelInfo) -> int | None:
        """How many draws are kept of a teacher's answer at each position; None: all of it is."""

    def keep_vocabulary(self, rows: Any, base: ModelInfo, context: Context) -> KeepVocabulary:
        """The part of the base's vocabulary that students need of it; never decided by the rows that they are judged
        by. Raises ``ModelError``."""

    def load(self, folder: Path, context: Context, *, dropout: float = 0.0, seed: int = 0) -> Any:
        """The model in ``folder``, float32, in evaluation mode; what it lacks for the task depends on ``seed``."""

    def tokenise(self, rows: Any, model: ModelInfo, context: Context, *, max_tokens: int) -> Artifact:
        """The tokens of ``rows`` for ``model``, written once."""

    def open_tokens(self, artifact: Artifact) -> Tokens:
        """The rows of an artifact of ``tokenise``."""

    def as_asked(self, tokens: Any, plan: Plan, context: Context) -> Tokens:
        """``tokens`` as the model that ``plan`` ends in has to be asked them, to answer as it has learnt to."""

    def opening(self, plan: Plan, context: Context) -> str:
        """What a program has to put before each prompt that it asks the model that ``plan`` ends in; mostly nothing."""

    def typical_request(self, tokens: Any) -> Request:
        """The median of the rows."""

    def ask(self, model: Any, tokens: Any, *, context: Context, ranks: Ranks) -> Answers:
        """What ``model``, as it is in training, answers, maybe to some rows only; workers share them."""

    def pseudo_labels(self, teacher: Plan, context: Context, *, ranks: Ranks, heartbeat: Heartbeat) -> PseudoLabels:
        """What the trained plan ``teacher`` answers to the rows of unlabeled. Raises ``ModelError``."""

    def quality(self, answers: Any, tokens: Any, *, context: Context) -> Quality:
        """The context's metric of ``answers``."""

    def retained_loss(self, model: Any, tokens: Any, *, context: Context) -> float:
        """How badly ``model`` does on general rows, smaller is better: what rises when it forgets."""

    def predictions(self, answers: Any) -> tuple[int, ...]:
        """The label of each row; empty where answers are not labels."""

    def deploy(self, model: Artifact, *, plan: Plan, precision: Precision, context: Context, folder: Path) -> Path:
        """Write what serves ``model`` at ``precision`` into ``folder``; returns it. The same model, the same bytes."""

    def fake_int8(self, model: Any) -> AbstractContextManager[None]:
        """Inside the block ``model`` answers as its int8 deployment does, and trains through it."""

    def serve(self, deployed: Path, tokens: Any, *, context: Context) -> Answers:
        """What a result of ``deploy`` answers, as it is served."""

    def prepare_probe(self, shape: Shape, context: Context) -> None:
        """Make what ``probe`` needs of ``shape`` and what can be kept."""

    def probe(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> "CostRow":
        """Measure what serving ``shape`` at ``precision`` costs, on one thread of this process."""

    def time_batches(
        self,
        deployed: Sequence[Path],
        shapes: Sequence[Shape],
        *,
        batch_sizes: Sequence[int],
        sequence_length: int,
        context: Context,
    ) -> Iterator[np.ndarray]:
        """For each batch size how long (ms) each of the results of ``deploy``, of these shapes, takes, deployed ×
        calls: rows of ``sequence_length`` tokens, on one thread of this process, call by call in turn.
        """
