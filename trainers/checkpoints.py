"""Where a stage stands in the middle of its training, so that another process can go on from there.

One safetensors file for each stage, beside the artifacts, replaced all at once; what is not a tensor is JSON in the
file's header. Nothing is pickled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, optim

from trainers.context import Context
from trainers.storage import Storage

FOLDER = ".checkpoints"
_VERSION = "1"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Everything beside the plan itself that decides how a stage goes on."""

    steps: int
    """Optimiser steps done."""
    seconds: float
    """Training time so far."""
    history: tuple[dict[str, Any], ...]
    """One entry for every epoch done."""
    tensors: dict[str, Tensor]
    """Trained weights and their moments; see ``gather``."""


class Checkpoint:
    """The checkpoint of the stage whose artifact will have this fingerprint."""

    def __init__(self, context: Context, fingerprint: str) -> None:
        self._storage = Storage(context.artifacts).child(FOLDER)
        self._name = f"{fingerprint}.safetensors"

    def write(self, standing: Standing) -> None:
        """Replace what was there."""
        about = {"steps": standing.steps, "seconds": standing.seconds, "history": standing.history}
        content = save(standing.tensors, metadata={"version": _VERSION, "about": json.dumps(about)})
        self._storage.write(self._name, content)

    def read(self) -> Standing | None:
        """What was written last; None if there is nothing, or nothing that can be read: training then starts anew."""
        try:
            content = self._storage.read(self._name)
            header = _header(content)
            tensors = load(content)
        except (FileNotFoundError, SafetensorError, ValueError):
            return None
        if header.get("version") != _VERSION:
            return None
        about = json.loads(header["about"])
        return Standing(**about | {"history": tuple(about["history"])}, tensors=tensors)

    def remove(self) -> None:
        """Delete it, once the stage's artifact is there."""
        self._storage.remove(self._name)


def remove_all(context: Context) -> None:
    """Delete every checkpoint. To be called when no plan is to be gone on with."""
    Storage(context.artifacts).remove(FOLDER)


def gather(parameters: Mapping[str, Tensor], optimizers: Sequence[optim.Optimizer]) -> dict[str, Tensor]:
    """The trained ``parameters``, by name, and the moments of each in its optimiser, on the processor."""
    tensors = {f"weight/{name}": parameter.detach().cpu() for name, parameter in parameters.items()}
    states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    for name, parameter in parameters.items():
        state = states.get(parameter, {})
        tensors |= {f"{moment}/{name}": state[moment].cpu() for moment in _MOMENTS if moment in state}
    return tensors


def restore(standing: Standing, parameters: Mapping[str, Tensor], optimizers: Sequence[optim.Optimizer]) -> bool:
    """Put gathered weights and moments back; False, and nothing changed, where they are not those of ``parameters``."""
    tensors = standing.tensors
    shapes = {
        name.removeprefix("weight/"): found.shape for name, found in tensors.items() if name.startswith("weight/")
    }
    if shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        return False
    states = {id(p): each.state for each in optimizers for group in each.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight/{name}"])
        # A weight that the model does not use has had no gradient, and so has no moments.
        if f"{_MOMENTS[0]}/{name}" in tensors:
            moments = {moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in _MOMENTS}
            states[id(parameter)][parameter] = {"step": parameter.new_tensor(float(standing.steps)), **moments}
    return True


def _header(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size]).get("__metadata__", {}))
