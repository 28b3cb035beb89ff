"""Low-rank adapters over a base in four bits."""

from typing import Any

import torch

from spaces.methods.qlora import Qlora
from trainers.finetune import adapted_modules, add_adapters, gold_loss
from trainers.loop import Fitted, Job, fit
from trainers.models import replace_module
from trainers.nf4 import Nf4Linear


def qlora(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``Qlora`` stage on ``model``: the dequantised base with the adapters merged into it, which is what
    they were trained on; a layer without adapter comes back dequantised as well.
    """
    stage: Qlora = job.stage
    torch.manual_seed(job.seed("adapters"))
    adapted = add_adapters(in_four_bits(model), stage.lora)
    fitted = fit(adapted, gold_loss, job)
    return merged(adapted), fitted


def in_four_bits(model: Any) -> Any:
    """``model`` with the matrices of all its layers in NF4; embeddings and head stay as they are."""
    for name in adapted_modules(model, "all"):
        replace_module(model, name, Nf4Linear(model.get_submodule(name)))
    return model


@torch.no_grad()
def merged(adapted: Any) -> Any:
    """The model of ``adapted``, float32, each update added to the dequantised matrix that it was trained beside."""
    from peft.tuners.lora import LoraLayer

    layers = [(n, m) for n, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)]
    updates = {name: layer.get_delta_weight(layer.active_adapters[0]) for name, layer in layers}
    model = adapted.unload()
    for name, module in list(model.named_modules()):
        if isinstance(module, Nf4Linear):
            replace_module(model, name, module.restored(updates.get(name)))
    return model.requires_grad_(True)
