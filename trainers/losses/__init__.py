"""What training minimises. Pure functions of tensors.

Every loss is computed in float32 (float64 stays), summed over the valid positions and divided by their number; a
divergence is in nats. ``count`` is that number where the positions at hand are only a part: a rank's share, or one of
several accumulated batches. Adding up the parts then gives the loss of the whole, and so do their gradients.

Shapes: P = positions (any leading dimensions), C = classes or vocabulary.
"""

from trainers.losses.divergences import forward_kl, generalized_jsd, reverse_kl, skewed_kl
from trainers.losses.features import attention_mse, hidden_mse, relation_kl
from trainers.losses.labels import IGNORED, cross_entropy, soft_label_loss
from trainers.losses.mixtures import camkd_weights, load_balance, mixture_log_probs
from trainers.losses.sparse import (
    SampledTargets,
    Targets,
    TopKTargets,
    kept_forward_kl,
    sampled_forward_kl,
    top_k_forward_kl,
)

__all__ = [
    "IGNORED",
    "SampledTargets",
    "Targets",
    "TopKTargets",
    "attention_mse",
    "camkd_weights",
    "cross_entropy",
    "forward_kl",
    "generalized_jsd",
    "hidden_mse",
    "kept_forward_kl",
    "load_balance",
    "mixture_log_probs",
    "relation_kl",
    "reverse_kl",
    "sampled_forward_kl",
    "skewed_kl",
    "soft_label_loss",
    "top_k_forward_kl",
]
