"""A causal language model as what serves it: torch, its weights packed at a precision, one safetensors file.

bf16: all weights. int8: matrices and the token embedding, one scale a row. int4: matrices in groups of 32 with a scale
and an offset each; the token embedding and the head as int8. Activations are bfloat16 in all three, which is what
torch's kernels for packed weights take.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from spaces.targets import Precision
from trainers.bottleneck import hand_over
from trainers.causal_models import causal_config
from trainers.model_files import ModelError
from trainers.models import complete, quiet_transformers, replace_module, variant_of

_INT8_INPUTS = 16
"""torch reads int8 weights in blocks of so many; with 172 inputs it gave NaN for one row and crashed for four."""
_INT4_GROUP = 32
_INT4_ROWS = 64
"""torch packs four-bit rows in blocks of up to so many."""
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32}


def check_precision(precision: Precision) -> None:
    """Raises ``ModelError`` where this machine cannot serve ``precision``; says what would do."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if precision == "int4" and not (fast and hasattr(torch, "_weight_int4pack_mm_for_cpu")):
        raise ModelError(
            "int4: not on this machine, whose processor has no instructions for it in torch "
            f"(found {torch.backends.cpu.get_cpu_capability()}, expected AVX2 or AVX512); use int8"
        )


def write_packed(model: Any, *, precision: Precision, folder: Path) -> Path:
    """Write the causal ``model``, which is spent afterwards, at ``precision``; returns the file, ``config.json`` beside
    it.

    Raises:
        ModelError: this machine cannot serve the precision.
    """
    check_precision(precision)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (_fp32_file(model) if precision == "fp32" else f"packed_{precision}.safetensors")
    with quiet_transformers():
        model.config.save_pretrained(folder)
    _pack(model.to(_DTYPES.get(precision, torch.bfloat16)), precision, empty=False)
    # One key alone: several are written in any order. transformers asks for the format.
    metadata: dict[str, str] = {"format": "pt"} if precision == "fp32" else {"precision": precision}
    save_file(_own_tensors(model), path, metadata=metadata)
    return path


def open_packed(path: Path) -> Any:
    """The model in a file of ``write_packed``, in evaluation mode."""
    precision = _precision(path)
    check_precision(precision)
    model = _hollow(path.parent, _DTYPES.get(precision, torch.bfloat16))
    _pack(model, precision, empty=True)
    # Copied out of the mapped file, where tensors lie at odd addresses: torch's int8 kernel crashed on some of those.
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    problems = model.load_state_dict(tensors, strict=False, assign=True)
    if problems.unexpected_keys or set(problems.missing_keys) - _tied_names(model):
        raise ModelError(f"{path}: is not a model of {path.parent / 'config.json'}: {problems}")
    _tie(model)
    return model.eval().requires_grad_(False)


class Int8Linear(nn.Module):
    """A linear layer without gradient whose weight is int8, symmetric, one scale for each output."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Values × weightᵀ + bias, bfloat16."""
        rows = functional.pad(values.flatten(0, -2), (0, self.weight.shape[1] - values.shape[-1]))
        found = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*values.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


class Int4Linear(nn.Module):
    """A linear layer without gradient whose weight is four bits, a scale and an offset for each group of inputs."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, *, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self.num_outputs, self.num_inputs = num_outputs, scales.shape[0] * _INT4_GROUP

    def forward(self, values: Tensor) -> Tensor:
        """Values × weightᵀ + bias, bfloat16."""
        rows = functional.pad(values.flatten(0, -2), (0, self.num_inputs - values.shape[-1]))
        found = torch._weight_int4pack_mm_for_cpu(rows, self.weight, _INT4_GROUP, self.scales)[:, : self.num_outputs]
        found = found.view(*values.shape[:-1], self.num_outputs)
        return found if self.bias is None else found + self.bias


class Int8Embedding(nn.Module):
    """A table without gradient whose rows are int8, symmetric, one scale a row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, *, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.width = width

    def forward(self, ids: Tensor) -> Tensor:
        """The row of each id, bfloat16."""
        return self.weight[ids][..., : self.width].to(self.scale.dtype) * self.scale[ids][..., None]


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and the bfloat16 scale of each row: the nearest to ``weight`` on a grid of 255 steps around zero. Rows are
    filled up with zeros to what torch's kernel reads.
    """
    scale = (weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127).bfloat16()
    whole = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return functional.pad(whole, (0, -weight.shape[1] % _INT8_INPUTS)), scale


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` packed for torch's kernel, and scale and offset of each group of 32 inputs (groups × outputs × 2)."""
    outputs, inputs = (-size % block for size, block in zip(weight.shape, (_INT4_ROWS, _INT4_GROUP), strict=True))
    padded = functional.pad(weight.float(), (0, inputs, 0, outputs))
    groups = padded.view(padded.shape[0], -1, _INT4_GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    scale = ((high - low).clamp(min=1e-6) / 15).bfloat16().float()
    whole = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32)
    # The kernel takes (q - 8) × scale + offset.
    scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().bfloat16()
    return torch._convert_weight_to_int4pack_for_cpu(whole.view(padded.shape), 1), scales


def _pack(model: Any, precision: Precision, *, empty: bool) -> None:
    """Replace the modules of ``model`` that ``precision`` packs; ``empty``: without computing their values."""
    if precision in _DTYPES or precision == "bf16":
        return
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for name, module in list(model.named_modules()):
        if module is table and type(module) is nn.Embedding:
            _replace(model, name, Int8Embedding(*_int8(module.weight, empty), width=module.embedding_dim))
        elif (matrix := weight_matrix(module)) is None:
            continue
        elif module is head or precision == "int8":
            _replace(model, name, Int8Linear(*_int8(matrix, empty), _bias(module)))
        else:
            _replace(model, name, Int4Linear(*_int4(matrix, empty), _bias(module), num_outputs=matrix.shape[0]))
    if type(table) is nn.Embedding:
        _tie(model)


def _int8(weight: Tensor, empty: bool) -> tuple[Tensor, Tensor]:
    if not empty:
        return int8_rows(weight)
    rows, inputs = weight.shape
    packed = torch.empty(rows, inputs + -inputs % _INT8_INPUTS, dtype=torch.int8)
    return packed, torch.empty(rows, dtype=torch.bfloat16)


def _int4(weight: Tensor, empty: bool) -> tuple[Tensor, Tensor]:
    if not empty:
        return int4_groups(weight)
    rows, inputs = (size + -size % block for size, block in zip(weight.shape, (_INT4_ROWS, _INT4_GROUP), strict=True))
    scales = torch.empty(inputs // _INT4_GROUP, rows, 2, dtype=torch.bfloat16)
    return torch.empty(rows, inputs // 2, dtype=torch.uint8), scales


def weight_matrix(module: nn.Module) -> Tensor | None:
    """The weight of a linear layer, outputs × inputs; None of any other module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.weight.detach()
    return module.weight.detach().T.contiguous() if isinstance(module, Conv1D) else None


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _replace(model: Any, name: str, module: nn.Module) -> None:
    hand_over(model.get_submodule(name), module)
    replace_module(model, name, module)


def _tied_names(model: Any) -> set[str]:
    """Names of the head's tensors where they are those of the token embedding."""
    if not model.config.tie_word_embeddings:
        return set()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if type(table) not in (nn.Embedding, Int8Embedding):
        # A table that scales what it looks up stays as it is, and the head is packed by itself.
        return set() if isinstance(head, Int8Linear) else _names_of(model, head)
    return _names_of(model, head)


def _names_of(model: Any, head: nn.Module) -> set[str]:
    (name,) = (name for name, module in model.named_modules() if module is head)
    return {f"{name}.{tensor}" for tensor in ("weight", "scale") if hasattr(head, tensor)}


def _tie(model: Any) -> None:
    if not _tied_names(model):
        return
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    head.weight = table.weight
    if isinstance(head, Int8Linear):
        head.scale = table.scale


def _own_tensors(model: Any) -> dict[str, Tensor]:
    """The state dict without what is tied."""
    tied = _tied_names(model)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}


def _hollow(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a config, its weights not set: memory that nothing was written to is not taken."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return complete(AutoModelForCausalLM.from_config(causal_config(folder), dtype=dtype, trust_remote_code=False))


def _fp32_file(model: Any) -> str:
    """As transformers calls it, so that its own loader finds it, or refuses what it cannot build."""
    return ".".join(["model", *variant_of(model.config).values(), "safetensors"])


def _precision(path: Path) -> Precision:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    precision: Precision = header.get("__metadata__", {}).get("precision", "fp32")
    return precision
