"""A search over models that write that takes a minute: a tiny random Llama, responses that repeat the prompt's end."""

import json
from pathlib import Path
from typing import Any

import yaml
from generation_task import repeating_rows
from tiny_models import tiny_causal

_RATES = {name: [3e-3, 1e-2] for name in ("learning_rate", "lora_learning_rate", "student_learning_rate")}


def writing_spec(folder: Path, **changes: Any) -> Path:
    """Write model, rows and spec below ``folder``; ``changes`` extend sections of the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_causal(folder / "model")
    for name, count, seed in (("train", 120, 0), ("test", 40, 1)):
        found = repeating_rows(count, seed=seed)
        rows = [{"prompt": p, "response": r} for p, r in zip(found.prompts, found.responses, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sections: dict[str, Any] = {
        "name": "writing",
        "task": {
            "kind": "generation",
            "train": "train.jsonl",
            "validation": 0.25,
            "test": "test.jsonl",
            "max_new_tokens": 4,
        },
        "model": {"base": "./model", "student_layers": [1]},
        "search": {
            "strategies": ["full", "lora", "distill_soft"],
            "objectives": ["exact_match", "latency_ms"],
            "space": {**_RATES, "epochs": [2, 3], "quantization": ["fp32", "int8"]},
            "teacher_recipes": {"standard": {"learning_rate": 1e-2, "epochs": 3}},
        },
        "budget": {"trials": 3},
        "storage": str(folder / "runs"),
    }
    for key, value in changes.items():
        sections[key] = {**sections[key], **value} if isinstance(sections.get(key), dict) else value
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(sections))
    return spec
