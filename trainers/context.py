"""What a plan is carried out *with*: folders, models, data, threads, reports. Pulled, so no part of any identity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainers.artifacts import ArtifactStore
from trainers.model_files import ModelError
from trainers.progress import Progress
from trainers.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything that the driver tells a worker once. Plain values: it travels between processes."""

    artifacts: str
    """Location of the artifact store (a folder or URI)."""
    cache: str
    """Local folder for copies of remote artifacts."""
    models: Mapping[str, str]
    """Folder of each base model, by its fingerprint."""
    tokens: Mapping[str, Mapping[str, str]]
    """Artifact of the tokenised rows: fingerprint of a model or of a cut vocabulary → split → fingerprint. Splits are
    train, validation, and where the task has them test, unlabeled and retain."""
    kind: str = "classification"
    """What a model answers with; picks the entry of ``trainers.kinds``."""
    labels: tuple[str, ...]
    """Names of the classes; a row's label is an index into them. None where answers are text."""
    max_new_tokens: int = 64
    """Length of a response, its end included; where answers are text."""
    output_tokens: int = 0
    """Length of the response in a typical request, for which serving costs are measured; 0 where there is none."""
    metric: str = "accuracy"
    threads: int = 1
    """CPU threads that one worker may use."""
    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto: bf16 autocast where the processor or GPU has it."""
    checkpoint_every_s: float = 20.0
    """A stage that has trained this long since its last checkpoint writes another at the end of the epoch."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(Storage(self.artifacts), Path(self.cache))

    def base_folder(self, base: str) -> Path:
        """The folder of the model with fingerprint ``base``. Raises ``ModelError`` where there is none."""
        if base not in self.models:
            raise ModelError(f"model {base[:12]}… is not among the {len(self.models)} models of this run")
        return Path(self.models[base])

    def tokenizer_folder(self, reader: str) -> Path:
        """The folder of the tokenizer that a plan's ``reader`` names. Raises as ``base_folder``."""
        cut = self.store.find(reader) if reader not in self.models else None
        return cut.folder if cut else self.base_folder(reader)


class Stopped(Exception):
    """Raised by a report callback: the plan is to end here, without a result."""


class Suspended(Stopped):
    """Raised by a report callback: the plan is to end here for now, and to go on later from its last checkpoint."""


Report = Callable[[Progress], None]

Heartbeat = Callable[[], None]
"""Called again and again while a stage trains; raises ``Stopped`` or ``Suspended`` where the plan is to end at once."""


def unhurried() -> None:
    """The heartbeat of a plan that nobody ends from outside."""
