"""The files of a pretrained model: where they are, whether they are whole, and the fingerprint of their content."""

import importlib.util
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.canonical import file_fingerprint
from spaces.task import BUILTIN

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model*.safetensors"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""At least one of them is in the folder of a model that has a tokenizer."""
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
_DOWNLOADED = ("config.json", "*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)


class ModelError(ValueError):
    """A model that is missing, incomplete, or cannot be handled; says why and what would do."""


def find_model(reference: str) -> Path:
    """The folder of a model: ``builtin:arithmetic``, ``package:NAME`` (its ``model`` folder), a path, or from the hub.

    Raises:
        ModelError: there is none; says what was looked for.
    """
    if reference.startswith(BUILTIN):
        return _builtin_folder(reference)
    if reference.startswith("package:"):
        return _package_folder(reference.removeprefix("package:"))
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{reference}: is a file; give the folder that holds config.json and model.safetensors")
    if reference.count("/") > 1 or reference.startswith((".", "/", "~")):
        raise ModelError(f"{reference}: no such folder; give a folder, a hub id (owner/name) or package:NAME")
    return _download(reference)


def check_weights(reference: str, folder: Path, vocab_size: int) -> None:
    """Check that the folder holds weights as safetensors, whole, of a model with that many tokens; reads headers only.

    Raises:
        ModelError: it does not.
    """
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.h5") for path in folder.glob(pattern))
        found = f"found {', '.join(others)}; convert it" if others else "save the model with save_pretrained"
        raise ModelError(f"{reference}: no model.safetensors in {folder}, the only format that is read; {found}")
    rows = {shape[0] for shape in tensor_shapes(reference, folder).values() if shape}
    if vocab_size not in rows:
        raise ModelError(f"{reference}: config.json says vocab_size {vocab_size}, but no tensor has that many rows")


def tensor_shapes(reference: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the weights of a model, by name; reads headers only.

    Raises:
        ModelError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            with safe_open(path, framework="numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{reference}: {path} is damaged ({error}); fetch it again") from error
    return shapes


def read_added(folder: Path, names: Set[str]) -> "dict[str, Tensor]":
    """The tensors of these names in the weights in ``folder``: what transformers does not read, having no place for it.

    Raises:
        ModelError: some are missing.
    """
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if name in names}  # noqa: SIM118
    if lost := names - found.keys():
        raise ModelError(
            f"{folder}: {len(lost)} tensors that were added to the model are not in the weights, such as {min(lost)}"
        )
    return found


def content_hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file in ``folder`` that matches one of ``patterns``, by name."""
    return {path.name: file_fingerprint(path) for pattern in patterns for path in sorted(folder.glob(pattern))}


def _builtin_folder(reference: str) -> Path:
    from trainers.arithmetic_base import REFERENCE, arithmetic_base

    if reference != REFERENCE:
        raise ModelError(f"{reference}: there is no such built-in model; there is {REFERENCE}")
    try:
        return arithmetic_base()
    except OSError as error:
        raise ModelError(f"{reference}: {error}") from error


def _package_folder(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ModelError(f"package:{name}: no such Python package; pip install it (often the name with - for _)")
    for place in spec.submodule_search_locations or ():
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise ModelError(f"package:{name}: the package has no folder 'model'; give the model's folder itself")


def _download(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:
        # The hub's client raises its own errors, httpx's and OSError, with no common root.
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{reference}: no such folder, and the hub gave no such model ({type(error).__name__}: {reason}); "
            "give a folder, a hub id (owner/name), or package:NAME"
        ) from error
