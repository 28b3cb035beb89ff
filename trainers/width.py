"""Models of less width: those hidden channels, attention heads and feed-forward neurons stay that matter the most.

[Muralidharan2024] § 2: what matters is told by the magnitude of activations on training rows. Heads keep their size, so
what is left is a model of the same family, by a config of smaller numbers.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spaces.canonical import fingerprint
from spaces.methods.width import SelectWidth
from trainers.batches import collate, sorted_batches
from trainers.compute import pad_id, pick_device
from trainers.context import Context
from trainers.experts.tensors import NamedTensors, read_tensors
from trainers.kinds import kind_of, split_tokens
from trainers.model_files import ModelError
from trainers.models import FAMILIES, ModelInfo, complete
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
_VERSION = 1
_ROWS = 512
_BATCH_ROWS = 32
_SLACK = 0.02
"""A share that is written with two digits stands for the nearest that divides."""

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


def score_width(model: ModelInfo, context: Context) -> str:
    """Fingerprint of the scores of ``model``, by up to 512 of the training rows; measured once and kept."""
    rows = context.tokens[model.fingerprint]["train"]
    name = fingerprint(
        {"kind": "width", "model": model.fingerprint, "tokens": rows, "rows": _ROWS, "version": _VERSION}
    )
    if not context.store.has(name):
        tokens = split_tokens(context, base=model.fingerprint, split="train")
        some = np.sort(np.random.default_rng(0).permutation(len(tokens))[:_ROWS])
        loaded = kind_of(context).load(model.folder, context).to(pick_device())
        found = scores_of(loaded, tokens.take(some))
        with context.store.publish(name, {"kind": "width"}) as folder:
            NamedTensors(found).save(folder)
    return name


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


@torch.no_grad()
def scores_of(model: Any, tokens: Any) -> dict[str, Tensor]:
    """How much each part of ``model`` matters to the rows of ``tokens``: means over their tokens, float32.

    Of a channel: the magnitude behind norms, summed over them; of a key-value head: the length of what its queries'
    heads give, summed over these; of a neuron: the magnitude that the feed-forward block's last map is given.
    Differs from the paper: neurons are measured behind the activation, and all means are plain.
    """
    scorer = _Scorer(model)
    device = next(model.parameters()).device
    try:
        for rows in sorted_batches(tokens.lengths, batch_size=_BATCH_ROWS):
            batch = collate(tokens, rows, pad_id=pad_id(model)).to(device)
            scorer.mask = batch.attention_mask_BL.flatten().bool()
            model.base_model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL)
    finally:
        scorer.close()
    return {name: (total / int(tokens.lengths.sum())).cpu() for name, total in scorer.totals.items()}


class _Scorer:
    """Adds up magnitudes of the tokens under ``mask`` while a model computes."""

    def __init__(self, model: Any) -> None:
        config, family = model.config, FAMILIES[model.config.model_type]
        layers = model.base_model.get_submodule(family.layers)
        self.mask = torch.empty(0)
        device = next(model.parameters()).device
        self._head_size, self._num_groups = _head_size(config), _num_groups(config)
        self.totals = {
            "channels": torch.zeros(config.hidden_size, device=device),
            "heads": torch.zeros(len(layers), self._num_groups, device=device),
            "neurons": torch.zeros(len(layers), _num_neurons(config), device=device),
        }
        self._handles = [
            module.register_forward_hook(self._channels)
            for module in model.base_model.modules()
            if _is_norm(module, config.hidden_size)
        ]
        for index, layer in enumerate(layers):
            for name, add in ((family.attention_output, self._heads), (family.ffn_output, self._neurons)):
                self._handles.append(layer.get_submodule(name).register_forward_pre_hook(add(index)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _seen(self, values: Tensor) -> Tensor:
        """Rows of the tokens that count."""
        return values.reshape(len(self.mask), -1)[self.mask].float()

    def _channels(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self.totals["channels"] += self._seen(output).abs().sum(dim=0)

    def _heads(self, layer: int) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            lengths = self._seen(inputs[0]).unflatten(-1, (self._num_groups, -1, self._head_size)).norm(dim=-1)
            self.totals["heads"][layer] += lengths.sum(dim=(0, 2))

        return add

    def _neurons(self, layer: int) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            self.totals["neurons"][layer] += self._seen(inputs[0]).abs().sum(dim=0)

        return add


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
    hidden = _top(None if scores is None else scores["channels"], whole.hidden_size, small.hidden_size)
    size, group = _head_size(whole), whole.num_attention_heads // _num_groups(whole) * _head_size(whole)
    found: list[_Index] = []
    for layer in range(whole.num_hidden_layers):
        heads = _top(None if scores is None else scores["heads"][layer], _num_groups(whole), _num_groups(small))
        neurons = None if scores is None else scores["neurons"][layer]
        found.append(
            {
                "hidden": hidden,
                "queries": _spans(heads, group),
                "keys": _spans(heads, size),
                "neurons": _top(neurons, _num_neurons(whole), _num_neurons(small)),
            }
        )
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
        elif _is_norm(module, hidden):
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


def _is_norm(module: nn.Module, hidden: int) -> bool:
    """Whether it norms hidden states: not single heads, nor embeddings of another size."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    return name.endswith("Norm") and weight is not None and tuple(weight.shape) == (hidden,)


def _kept_parts(config: "PretrainedConfig", share: float) -> Fraction:
    """``share`` as the fraction that divides every size of the model."""
    sizes = (config.hidden_size, config.num_attention_heads, _num_groups(config), _num_neurons(config))
    parts = math.gcd(*sizes)
    kept = round(share * parts)
    if not 1 <= kept <= parts or abs(share * parts - kept) > _SLACK:
        able = ", ".join(f"{part / parts:.3g}" for part in range(1, parts + 1))
        raise ModelError(
            f"{share:g} of the width does not leave whole heads: there are {config.num_attention_heads} heads, "
            f"{_num_groups(config)} of keys and values; shares that do: {able}"
        )
    return Fraction(kept, parts)


def _head_size(config: "PretrainedConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _num_groups(config: "PretrainedConfig") -> int:
    """Heads of keys and values, each with as many heads of queries."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _num_neurons(config: "PretrainedConfig") -> int:
    return int(getattr(config, _INTERMEDIATE.get(config.model_type, "intermediate_size")))
