"""Training on gold labels: all weights, or low-rank adapters that are merged at the end."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from spaces.methods.finetune import Finetune, Lora, LoraTarget
from trainers.batches import Batch
from trainers.families import FAMILIES
from trainers.loop import Fitted, Job, fit
from trainers.losses import cross_entropy

_ATTENTION = {"attention", "attn", "self_attn"}
"""How the handled families call the attention in a layer."""


def finetune(model: Any, job: Job) -> tuple[Any, Fitted]:
    """Carry out a ``Finetune`` stage on ``model``: the trained model, adapters merged."""
    stage: Finetune = job.stage
    if stage.lora is None:
        return model, fit(model, gold_loss, job)
    torch.manual_seed(job.seed("adapters"))
    adapted = add_adapters(model, stage.lora)
    fitted = fit(adapted, gold_loss, job)
    return adapted.merge_and_unload(), fitted


def gold_loss(outputs: Any, batch: Batch, _share: float) -> Tensor:
    """Cross-entropy with the gold labels."""
    return cross_entropy(batch.at_positions(outputs.logits), batch.labels_P, count=batch.count)


def add_adapters(model: Any, lora: Lora) -> Any:
    """``model`` with adapters in its layers; what requires a gradient are they, and what may be new: a classifier's
    head and pooler.
    """
    # Half of a worker's start would be this import, and most plans have no adapters.
    from peft import LoraConfig, get_peft_model

    adapted_names = adapted_modules(model, lora.target)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=adapted_names,
        fan_in_fan_out=not isinstance(model.get_submodule(adapted_names[0]), nn.Linear),
        use_rslora=lora.rank_stabilised,
        use_dora=lora.decomposed,
    )
    own = new_parts(model)
    with warnings.catch_warnings():
        # PEFT still asks transformers for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config)
    for parameter in own:
        parameter.requires_grad_(True)
    return adapted


def adapted_modules(model: Any, target: LoraTarget) -> list[str]:
    """Full names of the linear layers that carry an adapter: those in transformer layers, in attention or outside."""
    from transformers.pytorch_utils import Conv1D

    layers = f"{model.base_model_prefix}.{FAMILIES[model.config.model_type].layers}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(layers)
        and (target == "all" or (target == "attention") is bool(_ATTENTION & set(name.split("."))))
    ]


def new_parts(model: Any) -> list[nn.Parameter]:
    """What is trained in full beside adapters: a classifier's head and, if it has one, its pooler."""
    if model.get_output_embeddings() is not None:
        # A language model's head is as old as its layers.
        return []
    # A pooler belongs to the encoder by name, but many checkpoints have none: it may be as new as the head.
    encoder = f"{model.base_model_prefix}."
    return [p for name, p in model.named_parameters() if not name.startswith(encoder) or "pooler" in name]
