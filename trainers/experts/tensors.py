"""What is kept of a training whose result is no whole model: named tensors in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from trainers.artifacts import Artifact

_FILE = "tensors.safetensors"


@dataclass(frozen=True)
class NamedTensors:
    """Tensors by name, which a stage may return in the place of a model."""

    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write them to ``folder``."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        (folder / _FILE).write_bytes(save(content))


def read_tensors(artifact: Artifact) -> dict[str, Tensor]:
    """What was written of an artifact of named tensors."""
    return load_file(artifact.folder / _FILE)
