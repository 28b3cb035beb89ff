"""A tiny task that a tiny model can learn: which of three words a text holds."""

from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import WORDS, tiny_model

from spaces.methods.finetune import Finetune, Lora
from spaces.plan import Plan
from spaces.stages import Optimisation, Stage
from trainers.context import Context
from trainers.datasets import Rows
from trainers.models import inspect_model
from trainers.tokens import tokenise

LABELS = ("cat", "dog", "sun")
_OTHERS = [word for word in WORDS if word not in LABELS]


def task_rows(count: int, *, seed: int) -> Rows:
    """Texts of 1 to 9 words, of which one is a label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(LABELS), size=count)
    texts = []
    for label in labels:
        words = rng.choice(_OTHERS, size=rng.integers(0, 9)).tolist()
        texts.append(" ".join(rng.permutation([*words, LABELS[label]])))
    return Rows(texts=tuple(texts), labels=labels)


def tiny_context(folder: Path, *, kind: str = "bert", num_layers: int = 2, rows: int = 45, **settings: Any) -> Context:
    """Base model ``base`` and tokenised rows in a new store below ``folder``; float32, so that results compare."""
    model = tiny_model(folder / "model", kind, num_layers=num_layers)
    plain = {"artifacts": str(folder / "artifacts"), "cache": str(folder / "cache"), "models": {"base": str(model)}}
    empty = Context(**plain, tokens={}, labels=LABELS)
    splits = {"train": task_rows(rows, seed=0), "validation": task_rows(20, seed=1)}
    tokens = {
        split: tokenise(found, inspect_model(str(model)), empty.store, max_tokens=16).fingerprint
        for split, found in splits.items()
    }
    defaults: dict[str, Any] = {"compute": "fp32", "labels": LABELS}
    return Context(**plain, tokens={"base": tokens}, **defaults | settings)


def fitting(**settings: Any) -> Optimisation:
    """A few short epochs."""
    return Optimisation(**{"learning_rate": 1e-2, "epochs": 3, "batch_size": 8, **settings})


def finetuning(lora: Lora | None = None, **settings: Any) -> Finetune:
    """A fine-tuning of a few short epochs."""
    return Finetune(optimisation=fitting(**settings), lora=lora)


def plan_of(*stages: Stage, seed: int = 0) -> Plan:
    """A plan on the tiny task."""
    return Plan(base="base", stages=stages, data="rows", seed=seed)
