"""Pretrained causal language models: checked, loaded. What they share with encoders is in ``trainers.models``."""

from pathlib import Path
from typing import TYPE_CHECKING

from trainers.families import DECODERS
from trainers.model_files import ModelError
from trainers.models import (
    ModelInfo,
    complete,
    inspect_model,
    read_tokenizer,
    read_weights,
    set_dropout,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def inspect_causal(reference: str) -> ModelInfo:
    """Find a causal language model and check that it can be searched over, without loading its weights.

    Raises:
        ModelError: as ``inspect_model``; or its tokenizer has no token that ends a text.
    """
    info = inspect_model(reference, families=DECODERS, what="causal language models")
    tokenizer = read_tokenizer(reference, info.folder, info.vocab_size)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{reference}: its tokenizer has no eos_token, so that no response would end; name one in "
            f"{info.folder / 'tokenizer_config.json'}"
        )
    return info


def check_same_tokens(student: ModelInfo, teacher: ModelInfo, *, max_tokens: int, way_out: str) -> None:
    """A teacher's distribution over tokens means something only to a student that reads and writes the same tokens.

    Raises:
        ModelError: their vocabularies differ, names both sizes and ends in ``way_out``; or rows of up to ``max_tokens``
            are cut in one alone.
    """
    shorter, longer = sorted((min(max_tokens, student.max_tokens), min(max_tokens, teacher.max_tokens)))
    if shorter != longer:
        raise ModelError(
            f"{teacher.reference} takes {teacher.max_tokens} tokens, {student.reference} {student.max_tokens}: they "
            f"would read different rows; set task.max_tokens to {shorter} or less"
        )
    if teacher.vocabulary_fingerprint == student.vocabulary_fingerprint and teacher.vocab_size == student.vocab_size:
        return
    same_size = teacher.vocab_size == student.vocab_size
    raise ModelError(
        f"{teacher.reference} cannot teach {student.reference}: it has {teacher.vocab_size} tokens, the student "
        f"{student.vocab_size}{', and they are not the same ones' if same_size else ''}; name a teacher with the "
        f"student's own vocabulary, or {way_out}"
    )


def causal_config(folder: Path, *, dropout: float = 0.0) -> "PretrainedConfig":
    """The config in ``folder`` with this dropout everywhere."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    set_dropout(config, dropout)
    return config


def load_causal(folder: Path, *, dropout: float = 0.0) -> "PreTrainedModel":
    """A causal language model in float32, in evaluation mode.

    Raises:
        ModelError: the weights do not fill it.
    """
    from transformers import AutoModelForCausalLM

    model, missing = read_weights(AutoModelForCausalLM, folder, causal_config(folder, dropout=dropout))
    if lost := sorted(missing):
        raise ModelError(f"{folder}: {len(lost)} tensors of the model are not in the weights, such as {lost[0]}")
    return complete(model, folder).eval()
