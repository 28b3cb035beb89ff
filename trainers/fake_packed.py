"""Computing as packed int8 weights will compute: what is trained is what is deployed.

``trainers.packed`` keeps matrices and the token embedding as int8, symmetric, one scale a row, and everything else as
bfloat16, in which values are as well; a matrix product is added up in float32 and rounded once. Rounding passes
gradients as if it were not there. [Bengio2013]
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from trainers.fake_int8 import straight_through
from trainers.packed import int8_rows, weight_matrix


@contextlib.contextmanager
def fake_packed_int8(model: Any) -> Iterator[None]:
    """Inside the block the causal ``model`` answers as its int8 deployment does, and trains through it.

    In training with bfloat16 autocast, what int8 stands for is rounded to bfloat16 once more. A token embedding that is
    not the head as well is not trained: most of its rows are rows that no data uses.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    with contextlib.ExitStack() as stack:
        if head.weight is not table.weight:
            stack.callback(table.weight.requires_grad_, table.weight.requires_grad)
            table.weight.requires_grad_(False)
        for module in list(model.modules()):
            if module is table and type(module) is nn.Embedding:
                _compute_by(stack, module, _look_up)
            elif weight_matrix(module) is not None:
                _compute_by(stack, module, _multiply)
            else:
                for name, _ in list(module.named_parameters(recurse=False)):
                    parametrize.register_parametrization(module, name, _BFloat16(), unsafe=True)
                    stack.callback(parametrize.remove_parametrizations, module, name, leave_parametrized=False)
        yield


def int8_values(weight: Tensor) -> Tensor:
    """The numbers that int8 keeps of ``weight`` (rows × inputs), float32: what a product is computed with."""
    whole, scale = int8_rows(weight.bfloat16())
    return whole[:, : weight.shape[1]].float() * scale.float()[:, None]


def _compute_by(stack: contextlib.ExitStack, module: Any, forward: Any) -> None:
    module.forward = partial(forward, module)
    stack.callback(delattr, module, "forward")


def _multiply(layer: Any, values: Tensor) -> Tensor:
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    found = functional.linear(values.float(), straight_through(weight, int8_values(weight.detach()))).bfloat16()
    return found if layer.bias is None else found + layer.bias.bfloat16()


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    rows = functional.embedding(ids.flatten(), table.weight, table.padding_idx)
    return straight_through(rows, int8_values(rows.detach())).bfloat16().view(*ids.shape, -1)


class _BFloat16(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.bfloat16()
