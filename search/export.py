"""Handing over a trained variant: a folder that ``transformers`` and ONNX Runtime load, with a model card.

What transformers has no modules for, adapters, is served by what was measured alone; transformers then refuses the
folder, and the card says so.
It is measured again after it was written: a model that answers worse after export is an error, not a surprise.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from search.records import Record
from search.run import Run
from search.run_folder import context_of
from search.students import short_reference
from search.words import say, say_interval, say_name, say_plan, student_names
from spaces.objectives import OBJECTIVES
from spaces.plan import Plan
from trainers.artifacts import Artifact
from trainers.context import Context
from trainers.kinds import asked_tokens, kind_of

_PIPELINES = {"classification": "text-classification", "generation": "text-generation"}
_HOW_SERVED = {
    "classification": ", row by row",
    "generation": "; greedily, a prompt and its response joined by one space. `trainers.packed.open_packed` loads it",
}
_LOAD = """```python
from transformers import pipeline

model = pipeline("{task}", model="path/to/this/folder")
```"""
_LOAD_ADDED = {
    "classification": """transformers has no modules for {additions}, so it refuses the weights in this folder,
`model.adapted.safetensors`. The graph needs ONNX Runtime alone:

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
session = onnxruntime.InferenceSession("path/to/this/folder/{graph}")
row = tokenizer("a text", return_tensors="np")
logits = session.run(["logits"], {{name: row[name] for name in ("input_ids", "attention_mask")}})[0]
```

In torch, with distune installed: `trainers.models.load_classifier(pathlib.Path(folder), labels=[…])`, with the labels
in the order below.""",
    "generation": """transformers has no modules for {additions}, so it refuses the weights in this folder. With distune
installed:

```python
from pathlib import Path

from trainers.generate import greedy
from trainers.packed import open_packed
from transformers import AutoTokenizer

folder = Path("path/to/this/folder")
model, tokenizer = open_packed(folder / "{graph}"), AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("a prompt", return_tensors="np")["input_ids"][0]
(ids,) = greedy(model, [prompt], max_new_tokens=64, end_ids={{tokenizer.eos_token_id}}, pad_id=0)
print(tokenizer.decode(ids))
```""",
}
_LIBRARIES = {"classification": "onnx", "generation": "distune"}
"""What loads a model that transformers has no modules for."""


class ExportError(Exception):
    """The variant cannot be handed over; says why and what would help."""


def export_record(run: Run, record: Record, to: Path) -> Path:
    """Write the variant of ``record`` to the folder ``to``, which must be empty or not there; returns it.

    Raises:
        ExportError: the folder holds something, the trained model is gone, or the export answers worse.
    """
    if to.exists() and any(to.iterdir()):
        raise ExportError(f"{to} is not empty; name a folder that is not there yet")
    if record.status != "complete":
        raise ExportError(f"{record.record_id} is {record.status}, not complete; pick a record of the front")
    context, plan = context_of(run.storage), Plan.model_validate_json(record.plan)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=to.parent) as draft:
        folder = Path(draft) / "model"
        deployed = _write(run, record, plan, context, folder)
        _check(run, record, plan, context, deployed)
        if to.exists():
            to.rmdir()
        folder.rename(to)
    return to


def trained_model(record: Record, context: Context) -> Artifact:
    """The model that the plan of ``record`` ends in.

    Raises:
        ExportError: it is gone.
    """
    model = context.store.find(record.fingerprint)
    if model is None:
        raise ExportError(
            f"{record.record_id}: its trained model {record.fingerprint[:12]}… is not in {context.artifacts}; "
            "run the search again: it trains what is missing"
        )
    return model


def write_best(run: Run, record: Record) -> str:
    """Export ``record`` as the run's ``best/``, in place of an earlier one; returns where."""
    with tempfile.TemporaryDirectory(prefix="distune-best-") as draft:
        folder = export_record(run, record, Path(draft) / "best")
        run.storage.remove("best")
        run.storage.upload(folder, "best", last="README.md")
    return f"{run.storage.shown}/best"


def _write(run: Run, record: Record, plan: Plan, context: Context, folder: Path) -> Path:
    """Write the folder; returns what serves in it."""
    model = trained_model(record, context)
    folder.mkdir(parents=True)
    for path in [*model.folder.glob("model*.safetensors*"), *model.folder.glob("*config.json")]:
        shutil.copyfile(path, folder / path.name)
    _copy_tokenizer(context.tokenizer_folder(plan.reader), folder)
    precision: Any = record.precision
    deployed = kind_of(context).deploy(model, plan=plan, precision=precision, context=context, folder=folder)
    (folder / "distune.json").write_text(
        json.dumps(_facts(run, record, plan, context), indent=1, sort_keys=True) + "\n"
    )
    (folder / "README.md").write_text(_card(run, record, plan, context, deployed.name))
    return deployed


def _copy_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    if not source.exists():
        raise ExportError(f"{source}: the base model is not there any more; put it back, its tokenizer is needed")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _check(run: Run, record: Record, plan: Plan, context: Context, deployed: Path) -> None:
    """Measure what was written on the validation rows; the recorded quality must be reached."""
    kind, tokens = kind_of(context), asked_tokens(plan, context, split="validation")
    value = kind.quality(kind.serve(deployed, tokens, context=context), tokens, context=context).value
    assert record.quality is not None, "a complete record has a quality"
    score = OBJECTIVES[run.metric].score
    if score(value) < score(record.quality) - 1.0 / len(tokens):
        raise ExportError(
            f"{record.record_id}: {run.metric} is {value:.4f} after export, {record.quality:.4f} before; "
            "another version of ONNX Runtime may be installed now: search again with it, or export with the old one"
        )


def _facts(run: Run, record: Record, plan: Plan, context: Context) -> dict[str, Any]:
    confirmed = run.confirmed.get(record.record_id)
    return {
        "record_id": record.record_id,
        "strategy": record.strategy,
        "precision": record.precision,
        "target": record.target,
        "plan": json.loads(plan.to_json()),
        "prompt_prefix": kind_of(context).opening(plan, context),
        "validation": {run.metric: record.quality, "low": record.quality_low, "high": record.quality_high},
        "test": None
        if confirmed is None
        else {run.metric: confirmed.value, "low": confirmed.low, "high": confirmed.high},
        "costs": {name: record.value(name, run.metric) for name in ("latency_ms", "size_mb", "memory_mb")},
        "versions": dict(record.versions),
    }


def _card(run: Run, record: Record, plan: Plan, context: Context, deployed: str) -> str:
    metric, confirmed = run.metric, run.confirmed.get(record.record_id)
    task = run.spec.get("task", {})
    validation = f"{say(metric, record.quality)} ({say_interval(metric, record.quality_low, record.quality_high)})"
    estimated = " (estimated)" if record.estimated else ""
    head = yaml.safe_dump(
        {
            "library_name": _LIBRARIES[context.kind] if plan.shape.additions else "transformers",
            "pipeline_tag": _PIPELINES[context.kind],
            "base_model": next(iter(student_names(plan).values()), short_reference(run.spec["model"]["base"])),
        },
        sort_keys=True,
    )
    test = (
        f"| {metric}, test | {say(metric, confirmed.value)} ({say_interval(metric, confirmed.low, confirmed.high)}) |\n"
        if confirmed
        else ""
    )
    load = _LOAD_ADDED[context.kind] if plan.shape.additions else _LOAD
    load = load.format(task=_PIPELINES[context.kind], additions=" and ".join(plan.shape.additions), graph=deployed)
    return f"""---
{head}---
# {run.name}: {record.strategy}, {record.precision}

{say_plan(plan)}.

| | |
| --- | --- |
| {metric}, validation | {validation} |
{test}| latency on {record.target}{estimated} | {say("latency_ms", record.latency_ms)} |
{_writing_costs(record)}| size of `{deployed}` | {say("size_mb", record.size_mb)} |
| training | {say("train_seconds", record.train_seconds)} |

Intervals are 95 %. Metrics are of what is deployed, `{deployed}`{_HOW_SERVED[context.kind]}.

{load}

{_prompt(plan)}{_labels(context.labels)}- Data: {short_reference(str(task.get("train")))}, {_columns(task)}
- Seed: {record.seed}; plan {record.fingerprint[:16]}; record {record.record_id}
- Versions: {", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))}
"""


def _writing_costs(record: Record) -> str:
    """Rows of the card's table that a classifier does not have."""
    costs = [(name, getattr(record, name)) for name in ("first_token_ms", "token_ms")]
    return "".join(f"| {say_name(name)} | {say(name, value)} |\n" for name, value in costs if value is not None)


def _prompt(plan: Plan) -> str:
    """How the model is to be asked and read, where that is not plain."""
    stage, lines = plan.last_training, []
    if stage and stage.prefix:
        lines.append(f"- Prompts: begin each with `{stage.prefix}` and a space; it was trained and measured so.\n")
    if stage and stage.num_shots:
        lines.append(
            f"- Prompts: put the text `prompt_prefix` of `distune.json`, {stage.num_shots} rows of train with their "
            "responses, before each as it stands; it was trained and measured so.\n"
        )
    if stage and stage.reasons:
        lines.append("- Output: a rationale, then `####`, then the response, which alone is measured.\n")
    return "".join(lines)


def _labels(labels: Sequence[str]) -> str:
    return f"- Labels: {', '.join(labels)}\n" if labels else ""


def _columns(task: dict[str, Any]) -> str:
    question, answer = ("prompt", "response") if task.get("kind") == "generation" else ("text", "label")
    return f"column `{task.get(question)}` → `{task.get(answer)}`"
