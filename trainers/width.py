"""Models of less width: those hidden channels, attention heads and feed-forward neurons stay that matter the most.

[Muralidharan2024] § 2: what matters is told by the magnitude of activations on training rows. Heads keep their size, so
what is left is a model of the same family, by a config of smaller numbers.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spaces.methods.width import SelectWidth
from trainers.context import Context
from trainers.experts.tensors import read_tensors
from trainers.families import FAMILIES
from trainers.model_files import ModelError
from trainers.models import ModelInfo, complete
from trainers.storage import StorageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NARROWED = (
    "bert",
    "camembert",
    "distilbert",
    "ernie",
    "megatron-bert",
    "roberta",
    "xlm-roberta",
    "granite",
    "llama",
    "mistral",
    "phi",
    "qwen2",
    "qwen3",
    "smollm3",
    "starcoder2",
)
"""Families whose queries, keys and values are three linear layers, and in whose weights every axis is the hidden one,
that of heads, or that of neurons. Others have fused layers, tables or norms by head, embeddings of a size of their own,
or a scale that follows the width."""
_QUERIES = ("query", "q_lin", "q_proj")
_KEYS = ("key", "value", "k_lin", "v_lin", "k_proj", "v_proj")
_ANSWERS = ("classifier", "classifier.out_proj")
"""Heads, whose outputs are labels. One that is a block ends in the second."""
_INTERMEDIATE = {"distilbert": "hidden_dim"}
"""How a config calls the number of neurons where it is not ``intermediate_size``."""
_SLACK = 0.02
"""A share that is written with two digits stands for the nearest that divides."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that width is about."""

    hidden: int
    heads: int
    groups: int
    """Heads of keys and values, each with as many heads of queries."""
    head_size: int
    neurons: int

    @classmethod
    def of(cls, config: "PretrainedConfig") -> "Sizes":
        """Those of a model of this config."""
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            heads=heads,
            groups=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            neurons=getattr(config, _INTERMEDIATE.get(config.model_type, "intermediate_size")),
        )


Scores = Mapping[str, Tensor]
"""``channels`` (hidden), ``heads`` (layers × key-value heads) and ``neurons`` (layers × neurons): mean magnitudes."""
_Index = Mapping[str, Tensor]
"""What stays of each axis: ``hidden``, and of one layer ``queries``, ``keys``, ``neurons``."""


def check_width(model: ModelInfo, share: float) -> None:
    """Whether students of ``share`` of the width can be cut from ``model``, by its config alone; all of it always.

    Raises:
        ModelError: its family cannot be narrowed, or the share does not divide its heads; says what would do.
    """
    from transformers import AutoConfig

    if share == 1:
        return
    if model.model_type not in NARROWED:
        raise ModelError(
            f"{model.reference} is of type {model.model_type}, which cannot be narrowed; those that can: "
            f"{', '.join(NARROWED)}"
        )
    _kept_parts(AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False), share)


def cut(model: "PreTrainedModel", stage: SelectWidth, *, context: Context) -> "PreTrainedModel":
    """Carry out a ``SelectWidth`` stage.

    Raises:
        StorageError: the scores are gone.
    """
    artifact = context.store.find(stage.scores)
    if artifact is None:
        # Written before the first plan and needed by all narrow students.
        raise StorageError(f"{context.artifacts}: the scores {stage.scores[:12]}… of the base's width are gone")
    return narrow(model, stage.share, read_tensors(artifact))


def narrow_config(config: "PretrainedConfig", share: float) -> "PretrainedConfig":
    """The config of a model that keeps ``share`` of the hidden channels, heads and neurons.

    Raises:
        ModelError: the share does not divide them.
    """
    small, part = copy.deepcopy(config), _kept_parts(config, share)
    neurons = _INTERMEDIATE.get(config.model_type, "intermediate_size")
    groups = ["num_key_value_heads"] if getattr(config, "num_key_value_heads", None) else []
    for name in ("hidden_size", "num_attention_heads", neurons, *groups):
        setattr(small, name, int(getattr(config, name) * part))
    return small


def narrow(model: "PreTrainedModel", share: float, scores: Scores | None = None) -> "PreTrainedModel":
    """A new model with ``share`` of the width of ``model``, which is untouched: what scores the highest stays, in its
    order; the first parts, where there are no scores.

    Raises:
        ModelError: its family cannot be narrowed, or the share does not divide its heads.
    """
    if model.config.model_type not in NARROWED:
        raise ModelError(f"{model.config.model_type} cannot be narrowed; those that can: {', '.join(NARROWED)}")
    config = narrow_config(model.config, share)
    indices = _indices(model.config, config, scores)
    with torch.random.fork_rng(devices=[]):
        student = complete(type(model)._from_config(config)).eval()
    axes = dict(_axes(model))
    student.load_state_dict(
        {name: _sliced(tensor, axes.get(name, (0, ())), indices) for name, tensor in model.state_dict().items()}
    )
    return student.train(model.training)


def _sliced(tensor: Tensor, axes: tuple[int, Sequence[str | None]], indices: Sequence[_Index]) -> Tensor:
    layer, names = axes
    for dim, name in enumerate(names):
        if name is not None:
            tensor = tensor.index_select(dim, indices[layer][name].to(tensor.device))
    return tensor


def _indices(whole: "PretrainedConfig", small: "PretrainedConfig", scores: Scores | None) -> list[_Index]:
    """What stays, layer by layer."""
    all_of, kept = Sizes.of(whole), Sizes.of(small)
    hidden = _top(None if scores is None else scores["channels"], all_of.hidden, kept.hidden)
    found: list[_Index] = []
    for layer in range(whole.num_hidden_layers):
        groups = _top(None if scores is None else scores["heads"][layer], all_of.groups, kept.groups)
        neurons = _top(None if scores is None else scores["neurons"][layer], all_of.neurons, kept.neurons)
        queries = _spans(groups, all_of.heads // all_of.groups * all_of.head_size)
        keys = _spans(groups, all_of.head_size)
        found.append({"hidden": hidden, "queries": queries, "keys": keys, "neurons": neurons})
    return found


def _top(scores: Tensor | None, total: int, kept: int) -> Tensor:
    """Places of the ``kept`` highest scores, rising; of equals the first."""
    if scores is None:
        return torch.arange(kept)
    assert len(scores) == total, (len(scores), total)
    return scores.argsort(descending=True, stable=True)[:kept].sort().values


def _spans(places: Tensor, size: int) -> Tensor:
    """All that belongs to blocks of ``size`` at these places."""
    return (places[:, None] * size + torch.arange(size)).flatten()


def _axes(model: Any) -> Iterator[tuple[str, tuple[int, tuple[str | None, ...]]]]:
    """For each tensor its layer (0 outside of layers) and what each of its axes is."""
    hidden, inside = model.config.hidden_size, f"{model.base_model_prefix}.{FAMILIES[model.config.model_type].layers}."
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        number, _, within = name.removeprefix(inside).partition(".") if name.startswith(inside) else ("0", "", "")
        if isinstance(module, nn.Linear):
            out, into = _inner(within, model) if within else _outer(module, hidden)
            out = None if module is head or name in _ANSWERS else out
            yield f"{name}.weight", (int(number), (out, into))
            yield f"{name}.bias", (int(number), (out,))
        elif isinstance(module, nn.Embedding) and module.embedding_dim == hidden:
            yield f"{name}.weight", (0, (None, "hidden"))
        elif norms_hidden(module, hidden):
            yield f"{name}.weight", (int(number), ("hidden",))
            yield f"{name}.bias", (int(number), ("hidden",))


def _inner(within: str, model: Any) -> tuple[str | None, str | None]:
    """What comes out of a linear map in a layer, and what goes in."""
    family, last = FAMILIES[model.config.model_type], within.rpartition(".")[2]
    if within == family.attention_output:
        return "hidden", "queries"
    if within == family.ffn_output:
        return "hidden", "neurons"
    return "queries" if last in _QUERIES else "keys" if last in _KEYS else "neurons", "hidden"


def _outer(linear: nn.Linear, hidden: int) -> tuple[str | None, str | None]:
    """The same outside of layers: poolers and maps of embeddings, whose outputs stay as those of the hidden axis do."""
    out, into = ("hidden" if size == hidden else None for size in (linear.out_features, linear.in_features))
    return out, into


def norms_hidden(module: nn.Module, hidden: int) -> bool:
    """Whether ``module`` norms hidden states: not single heads, nor embeddings of another size."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    return name.endswith("Norm") and weight is not None and tuple(weight.shape) == (hidden,)


def _kept_parts(config: "PretrainedConfig", share: float) -> Fraction:
    """``share`` as the fraction that divides every size of the model."""
    sizes = Sizes.of(config)
    parts = math.gcd(sizes.hidden, sizes.heads, sizes.groups, sizes.neurons)
    kept = round(share * parts)
    if not 1 <= kept <= parts or abs(share * parts - kept) > _SLACK:
        able = ", ".join(f"{part / parts:.3g}" for part in range(1, parts + 1))
        raise ModelError(
            f"{share:g} of the width does not leave whole heads: there are {sizes.heads} heads, {sizes.groups} of keys "
            f"and values; shares that do: {able}"
        )
    return Fraction(kept, parts)
