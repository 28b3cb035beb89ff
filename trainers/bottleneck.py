"""Bottleneck adapters as modules in a model of any family.

An adapter belongs to the linear map that its sub-layer ends in, and changes what that gives before the skip connection
is added. All other weights keep their names and values.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from spaces.shape import Adapters
from trainers.model_files import ModelError

if TYPE_CHECKING:
    from trainers.families import Family

_NAME = "adapter"
"""Of an adapter, as a child of its linear map: ``….output.dense.adapter.down.weight``."""


class Bottleneck(nn.Module):
    """h + U relu(D h + d) + u for outputs h of a sub-layer; U and u are zero at first, so that it changes nothing.

    [Houlsby2019] § 2.1, with the ReLU of [Pfeiffer2021]. D begins as [He2015] has it for layers before a ReLU.
    """

    def __init__(self, size: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, bottleneck)
        self.up = nn.Linear(bottleneck, size)
        nn.init.kaiming_uniform_(self.down.weight, nonlinearity="relu")
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, output_BLH: Tensor) -> Tensor:
        """What goes on to the skip connection; the shape stays."""
        return output_BLH + self.up(functional.relu(self.down(output_BLH)))


def insert(model: Any, adapters: Adapters, family: "Family") -> None:
    """Put new adapters into every layer of ``model``; those from torch's generator, and nothing else, are random.

    Raises:
        ModelError: the model has adapters already.
    """
    size = model.config.hidden_size
    for place in _places(model, adapters, family):
        if hasattr(place, _NAME):
            raise ModelError("the model has adapters already; fine-tune it in full, or begin at its own base")
        _put_behind(place, Bottleneck(size, max(1, size // adapters.reduction)).to(place.weight.device))


def hand_over(place: nn.Module, successor: nn.Module) -> None:
    """Put the adapter of the linear map ``place``, if it has one, behind what is to stand there in its stead."""
    if isinstance(adapter := getattr(place, _NAME, None), nn.Module):
        _put_behind(successor, adapter)


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All weights of the adapters in ``model``."""
    return (parameter for name, parameter in model.named_parameters() if f".{_NAME}." in name)


def _places(model: Any, adapters: Adapters, family: "Family") -> Iterator[Any]:
    """The linear maps that sub-layers end in, in the model's order."""
    names = [family.ffn_output] if adapters.placement == "pfeiffer" else [family.attention_output, family.ffn_output]
    for layer in model.base_model.get_submodule(family.layers):
        yield from (layer.get_submodule(name) for name in names)


def _put_behind(place: nn.Module, adapter: nn.Module) -> None:
    place.add_module(_NAME, adapter)
    place.register_forward_hook(_adapt)


def _adapt(linear: Any, _inputs: Any, output: Tensor) -> Tensor:
    adapted: Tensor = linear.adapter(output)
    return adapted
