"""Pretrained models: found by reference, checked before anything is trained, loaded, cut to fewer layers, saved.

Safetensors only, and never code from a model's folder.
"""

import contextlib
import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.canonical import fingerprint
from spaces.methods.cut import SelectLayers
from spaces.methods.start_from import StartFrom
from spaces.shape import Adapters
from trainers.families import ENCODERS, FAMILIES, Family
from trainers.model_files import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHTS,
    ModelError,
    check_weights,
    content_hashes,
    find_model,
    read_added,
    tensor_shapes,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTERS = "distune_adapters"
"""Field of a config: which adapters (``spaces.shape.Adapters``) are in the layers; transformers itself knows none."""
PREFIX = "distune_prefix"
"""The same of the prefix: how many keys and values each layer's attention reads before a text's own."""
_PER_LAYER = ("layer_types", "no_rope_layers")
"""Fields of a config that hold one value for each layer."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model on this machine that can be handled, as far as its files tell."""

    reference: str
    """What the user wrote."""
    folder: Path
    fingerprint: str
    """Of weights, config and tokenizer: a copy elsewhere is the same model."""
    tokenizer_fingerprint: str
    vocabulary_fingerprint: str
    """Of the pieces and their ids alone: models that share it read the same tokens."""
    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_tokens: int
    """The longest input, special tokens included."""


def inspect_model(reference: str, *, families: Mapping[str, Family] = ENCODERS, what: str = "encoders") -> ModelInfo:
    """Find a model and check that it can be searched over, without loading its weights. It must be of one of
    ``families``, which are called ``what``.

    Raises:
        ModelError: it is missing, has no safetensors, its architecture is not handled, or its tokenizer does not fit.
    """
    folder = find_model(reference)
    config = _read_config(reference, folder, families, what)
    check_weights(reference, folder, config.vocab_size)
    tokenizer = read_tokenizer(reference, folder, config.vocab_size)
    tokenizer_files = content_hashes(folder, TOKENIZER_FILES)
    return ModelInfo(
        reference=reference,
        folder=folder.absolute(),
        fingerprint=fingerprint(tokenizer_files | content_hashes(folder, ("config.json", WEIGHTS))),
        tokenizer_fingerprint=fingerprint(tokenizer_files),
        vocabulary_fingerprint=fingerprint(tokenizer.get_vocab()),
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_tokens=min(tokenizer.model_max_length, _num_positions(config)),
    )


def layer_parameters(model: ModelInfo) -> int:
    """Parameters in the transformer layers, without embeddings and head; reads the headers of the weights alone."""
    inside = re.compile(rf"(^|\.){re.escape(FAMILIES[model.model_type].layers)}\.\d+\.")
    return sum(
        math.prod(shape) for name, shape in tensor_shapes(model.reference, model.folder).items() if inside.search(name)
    )


def classifier_config(folder: Path, labels: Sequence[str], *, dropout: float = 0.0) -> "PretrainedConfig":
    """The config in ``folder`` with these label names and this dropout everywhere."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    set_dropout(config, dropout)
    return config


def set_dropout(config: "PretrainedConfig", dropout: float) -> None:
    """Set every dropout rate of ``config``."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and not isinstance(value, bool | str):
            setattr(config, name, dropout)


def load_classifier(folder: Path, *, labels: Sequence[str], dropout: float = 0.0, seed: int = 0) -> "PreTrainedModel":
    """A classifier in float32, in evaluation mode. A missing or unfit head depends on ``seed`` alone.

    Raises:
        ModelError: the weights do not fill the encoder.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = classifier_config(folder, labels, dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = read_weights(AutoModelForSequenceClassification, folder, config, ignore_mismatched_sizes=True)
    _check_loaded(folder, model, missing)
    return complete(model, folder).eval()


def read_weights(
    auto: Any, folder: Path, config: "PretrainedConfig", **settings: bool
) -> tuple["PreTrainedModel", set[str]]:
    """A model of the class that ``auto`` picks, float32, and the names of the tensors that its weights lack."""
    import torch

    with quiet_transformers():
        model, loading = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **variant_of(config),
            **settings,
        )
    return model, set(loading["missing_keys"])


def new_classifier(config: "PretrainedConfig") -> "PreTrainedModel":
    """A classifier of this config with weights drawn from torch's generator, in evaluation mode."""
    from transformers import AutoModelForSequenceClassification

    return complete(AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)).eval()


def cut_config(config: "PretrainedConfig", layers: Sequence[int]) -> "PretrainedConfig":
    """The config of a model that keeps only ``layers`` (rising, from 0)."""
    total = config.num_hidden_layers
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < total:
        raise ModelError(f"layers {list(layers)} cannot be kept: give rising numbers within 0 … {total - 1}")
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(layers)
    for name in _PER_LAYER:
        if (values := getattr(config, name, None)) is not None:
            setattr(cut, name, [values[index] for index in layers])
    return cut


def select_layers(model: "PreTrainedModel", layers: Sequence[int]) -> "PreTrainedModel":
    """A new model that keeps ``layers`` of ``model``, in order, with its embeddings and head; ``model`` is untouched.

    Raises:
        ModelError: such layers do not exist, or the first of them cannot be a first layer.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        student = complete(type(model)._from_config(cut_config(model.config, layers))).eval()
    problems = student.load_state_dict(_kept_weights(model, layers), strict=False)
    if differing := [*problems.missing_keys, *problems.unexpected_keys]:
        raise ModelError(
            f"{model.config.model_type}: layer {layers[0]} cannot come first, its weights differ from those of a first "
            f"layer ({differing[0]}); keep layer 0"
        )
    return student.train(model.training)


def start_from(model: "PreTrainedModel", stage: StartFrom, *, context: Any) -> "PreTrainedModel":  # noqa: ARG001
    """Carry out a ``StartFrom`` stage: ``model`` is the other model already, since that is a chain's first stage."""
    return model


def cut(model: "PreTrainedModel", stage: SelectLayers, *, context: Any) -> "PreTrainedModel":  # noqa: ARG001
    """Carry out a ``SelectLayers`` stage. Raises as ``select_layers`` does."""
    return select_layers(model, stage.layers)


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write weights, as safetensors, and ``config.json`` to ``folder``, readable like any file there.

    Weights are called ``model.safetensors``, or ``model.adapted.safetensors`` where transformers alone cannot build
    the model: it then finds none, in the place of loading half of them.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model.save_pretrained(folder, **variant_of(model.config))
    except SafetensorError as error:
        raise OSError(f"{folder}: weights cannot be written: {error}") from error
    for weights in folder.glob(WEIGHTS):
        weights.chmod((folder / "config.json").stat().st_mode)


def add_bottlenecks(model: "PreTrainedModel", adapters: Adapters) -> "PreTrainedModel":
    """``model`` with new adapters, which its config names from now on. Raises ``ModelError`` where it has some."""
    from trainers import bottleneck

    bottleneck.insert(model, adapters, FAMILIES[model.config.model_type])
    setattr(model.config, ADAPTERS, adapters.model_dump())
    return model


def add_prefix(model: "PreTrainedModel", num_tokens: int) -> "PreTrainedModel":
    """The same of a prefix in every layer. Raises ``ModelError`` where it has one, or its attention takes none."""
    from trainers import past

    past.insert(model, num_tokens, FAMILIES[model.config.model_type])
    setattr(model.config, PREFIX, num_tokens)
    return model


def complete(model: "PreTrainedModel", folder: Path | None = None) -> "PreTrainedModel":
    """``model`` with the adapters and the prefix that its config names, put in now; their weights are new, or those in
    ``folder``. To be called wherever transformers has built a model from a config.

    Raises:
        ModelError: such weights are missing in ``folder``.
    """
    before = set(model.state_dict())
    if (settings := getattr(model.config, ADAPTERS, None)) is not None:
        add_bottlenecks(model, Adapters(**settings))
    if (num_tokens := getattr(model.config, PREFIX, None)) is not None:
        add_prefix(model, num_tokens)
    if folder is not None and (added := model.state_dict().keys() - before):
        model.load_state_dict(read_added(folder, added), strict=False)
    return model


def replace_module(model: Any, name: str, module: Any) -> None:
    """Put ``module`` where ``model`` has the one called ``name``."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def variant_of(config: "PretrainedConfig") -> dict[str, str]:
    """What transformers is to be told where it reads or writes the weights of a model of this config."""
    added = any(getattr(config, name, None) is not None for name in (ADAPTERS, PREFIX))
    return {"variant": "adapted"} if added else {}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports from transformers inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _read_config(reference: str, folder: Path, families: Mapping[str, Family], what: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{reference}: {folder / 'config.json'} cannot be read: {error}") from error
    if model_type not in families:
        raise ModelError(
            f"{reference}: architecture {model_type!r} is not handled; handled are {what} of type "
            f"{', '.join(sorted(families))}"
        )
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def read_tokenizer(reference: str, folder: Path, vocab_size: int) -> Any:
    """The tokenizer in a model's folder. Raises ``ModelError`` where there is none, or one of another model."""
    from transformers import AutoTokenizer

    if not content_hashes(folder, VOCABULARY_FILES):
        # transformers would make an empty tokenizer without a word.
        raise ModelError(f"{reference}: no tokenizer in {folder}; it needs one of {', '.join(VOCABULARY_FILES)}")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:
        # Whatever a broken file makes a tokenizer library raise.
        raise ModelError(f"{reference}: the tokenizer in {folder} cannot be loaded: {error}") from error
    if largest >= vocab_size:
        raise ModelError(
            f"{reference}: the tokenizer does not fit: its ids go up to {largest}, but the model knows {vocab_size} "
            "tokens; put the tokenizer that the model was trained with into its folder"
        )
    return tokenizer


def _num_positions(config: "PretrainedConfig") -> int:
    unused = config.pad_token_id + 1 if FAMILIES[config.model_type].padded_positions else 0
    return int(config.max_position_embeddings - unused)


def _check_loaded(folder: Path, model: "PreTrainedModel", missing: set[str]) -> None:
    encoder = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(encoder) and "pooler" not in key)
    if lost:
        raise ModelError(f"{folder}: {len(lost)} tensors of the encoder are not in the weights, such as {lost[0]}")


def _kept_weights(model: "PreTrainedModel", layers: Sequence[int]) -> dict[str, Any]:
    prefix = f"{model.base_model_prefix}.{FAMILIES[model.config.model_type].layers}."
    places = {str(layer): str(index) for index, layer in enumerate(layers)}
    kept = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            kept[name] = tensor
            continue
        layer, _, rest = name.removeprefix(prefix).partition(".")
        if layer in places:
            kept[f"{prefix}{places[layer]}.{rest}"] = tensor
    return kept
