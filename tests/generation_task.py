"""A tiny generation task that a tiny model can learn: the response repeats the last two words of the prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import WORDS, tiny_causal

from trainers.causal_models import inspect_causal
from trainers.context import Context
from trainers.generation_rows import GenerationRows
from trainers.generation_tokens import tokenise_exchanges


def repeating_rows(count: int, *, seed: int) -> GenerationRows:
    """Prompts of two to six words."""
    rng = np.random.default_rng(seed)
    prompts = [rng.choice(WORDS, size=size).tolist() for size in rng.integers(2, 7, size=count)]
    return GenerationRows(
        prompts=tuple(" ".join(words) for words in prompts),
        responses=tuple(" ".join(words[-2:]) for words in prompts),
        rationales=(None,) * count,
    )


def with_rationales(rows: GenerationRows) -> GenerationRows:
    """The same rows, the last word of each prompt their rationale."""
    return replace(rows, rationales=tuple(prompt.split()[-1] for prompt in rows.prompts))


def prompts_alone(rows: GenerationRows) -> GenerationRows:
    """The same rows as unlabeled ones are: without responses."""
    return replace(rows, responses=("",) * len(rows))


def generation_context(
    folder: Path,
    *,
    kind: str = "llama",
    rows: int = 60,
    max_tokens: int = 16,
    rationales: bool = False,
    unlabeled: int = 0,
    **settings: Any,
) -> Context:
    """Base model ``base`` of two layers and tokenised rows in a new store below ``folder``; trained in float32."""
    model = tiny_causal(folder / "model", kind)
    plain = Context(
        artifacts=str(folder / "artifacts"),
        cache=str(folder / "cache"),
        models={"base": str(model)},
        tokens={},
        labels=(),
        kind="generation",
        compute="fp32",
        **{"metric": "exact_match", "max_new_tokens": 4, **settings},
    )
    splits = {"train": repeating_rows(rows, seed=0), "validation": repeating_rows(30, seed=1)}
    if rationales:
        splits = {split: with_rationales(found) for split, found in splits.items()}
    if unlabeled:
        splits["unlabeled"] = prompts_alone(repeating_rows(unlabeled, seed=5))
    lengths = {"max_tokens": max_tokens, "max_new_tokens": plain.max_new_tokens}
    tokens = {
        split: tokenise_exchanges(found, inspect_causal(str(model)), plain.store, **lengths).fingerprint
        for split, found in splits.items()
    }
    return Context(**{**vars(plain), "tokens": {"base": tokens}})
