"""The catalogue: every strategy by name, in the order in which they are tried first, and every parameter."""

from collections.abc import Mapping

from spaces.methods import (
    adapter,
    distill,
    distill_cot,
    distill_feature,
    distill_in_context,
    distill_reverse_kl,
    experts,
    finetune,
    meta,
    prefix,
    pseudo_label,
    qlora,
    quantized_distill,
)
from spaces.ranges import Parameter
from spaces.strategy import Strategy

_STRATEGIES = (
    finetune.FULL,
    finetune.LORA,
    qlora.QLORA,
    adapter.ADAPTER,
    finetune.SMALL_FINETUNE,
    distill.DISTILL_SOFT,
    distill.FINETUNE_THEN_DISTILL,
    distill.DISTILL_THEN_FINETUNE,
    distill.DFT,
    experts.MOE_DFT,
    distill_feature.DISTILL_FEATURE,
    distill_reverse_kl.DISTILL_REVERSE_KL,
    pseudo_label.PSEUDO_LABEL,
    meta.META_DISTILL,
    prefix.PREFIX,
    quantized_distill.QUANTIZED_DISTILL,
    distill_cot.DISTILL_COT,
    distill_in_context.DISTILL_IN_CONTEXT,
)

CATALOGUE: Mapping[str, Strategy] = {strategy.name: strategy for strategy in _STRATEGIES}
PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter for strategy in _STRATEGIES for parameter in strategy.parameters
}
"""Every parameter by its name. Strategies that open one of the same name share it."""
