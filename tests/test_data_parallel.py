"""Several workers, in processes of their own over gloo, against one alone."""

import dataclasses
import json
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from generation_task import generation_context
from safetensors.torch import load_file
from torch import distributed, multiprocessing
from training_task import finetuning, fitting, plan_of, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.distill_cot import DistillCot
from spaces.methods.distill_feature import DistillFeature
from spaces.methods.distill_reverse_kl import DistillDivergence
from spaces.methods.experts import DistillExperts, Expert, Gate, Part
from spaces.methods.features import Feature
from spaces.methods.finetune import Lora
from spaces.methods.meta import MetaDistill
from spaces.stages import Chain
from trainers.context import Context, Stopped
from trainers.loop import TrainingError
from trainers.progress import Progress
from trainers.ranks import RankError, Ranks, solo
from trainers.run_stage import run_plan

WORKERS = 2
# 41 rows in batches of 8: the last batch is a single row, so that one worker has none.
ROWS = 41
FULL = plan_of(finetuning(learning_rate=1e-3))
TAUGHT = plan_of(
    SelectLayers(layers=(0,)),
    Distill(
        optimisation=fitting(learning_rate=1e-3, epochs=2),
        teacher=Chain(base="base", stages=FULL.stages),
        temperature=2.0,
        alpha=0.5,
        alpha_end=0.2,
    ),
    finetuning(Lora(rank=2, alpha=4), epochs=1),
)
PARTS = [Part(split="cluster", index=index, num_parts=2) for index in range(2)]
EXPERTS = tuple(
    Chain(base="base", stages=(Expert(optimisation=fitting(epochs=1), lora=Lora(rank=2, alpha=4), part=part),))
    for part in PARTS
)
MIXED = plan_of(
    SelectLayers(layers=(0,)),
    DistillExperts(
        optimisation=fitting(learning_rate=1e-3, epochs=1),
        experts=EXPERTS,
        weights="gate",
        gate=Chain(base="base", stages=(Gate(optimisation=fitting(), experts=EXPERTS, temperature=2.0, balance=0.1),)),
        temperature=2.0,
        alpha=0.5,
        alpha_end=0.5,
    ),
)
# Different rows have different numbers of tokens: no worker's mean is the batch's.
ALIGNED = {
    kind: plan_of(
        SelectLayers(layers=(0,)),
        DistillFeature(
            optimisation=fitting(learning_rate=1e-3, epochs=2),
            teacher=Chain(base="base", stages=FULL.stages),
            feature=Feature(kind=kind, num_relation_heads=heads),
        ),
    )
    for kind, heads in (("hidden", None), ("attention", None), ("relation", 8))
}
META = plan_of(
    SelectLayers(layers=(0,)),
    MetaDistill(
        # With a quiz of four rows, one batch of which is a single row, workers without one are met here too.
        optimisation=fitting(learning_rate=1e-3, epochs=2, batch_size=3),
        teacher=Chain(base="base", stages=FULL.stages),
        teacher_learning_rate=1e-4,
        quiz_share=0.1,
        temperature=2.0,
        alpha=0.7,
    ),
)
# A loss over the tokens of responses, which are of different lengths, against draws; a rationale each for the second.
TEXT = plan_of(SelectLayers(layers=(0,)), TAUGHT.stages[1].model_copy(update={"num_draws": 20}), *TAUGHT.stages[2:])
# Text that the student writes, its luck by the row and not by the worker.
OWN = plan_of(
    SelectLayers(layers=(0,)),
    DistillDivergence(
        optimisation=fitting(learning_rate=1e-3, epochs=2),
        teacher=Chain(base="base", stages=FULL.stages),
        divergence="jsd",
        mix=0.5,
        temperature=1.0,
        alpha=0.5,
        lmbda=0.6,
    ),
)
REASONED = plan_of(DistillCot(mode="multitask", alpha=0.3, optimisation=fitting(learning_rate=1e-3, epochs=2)))
STOPPED = plan_of(finetuning(learning_rate=2e-3))
BROKEN = plan_of(finetuning(learning_rate=3e-3))
DIVERGING = plan_of(finetuning(learning_rate=1e38, warmup_share=0.0))


Contexts = dict[str, Context]
"""By the kind of task."""


def contexts_in(folder: Path) -> Contexts:
    return {
        "classification": tiny_context(folder / "labels", rows=ROWS),
        "generation": generation_context(folder / "text", rows=ROWS, rationales=True, max_tokens=40),
    }


def work(rank: int, folder: str, contexts: Contexts) -> None:
    """One worker: every scenario in turn, what came of it written down."""
    meeting = f"file://{folder}/meeting"
    patience = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS, timeout=patience)
    ranks, outcomes = Ranks(rank, WORKERS), {}
    for name, (plan, report) in SCENARIOS.items():
        told: list[Progress] = []
        try:
            run_plan(plan, contexts[kind_of(name)], ranks=ranks, report=lambda p, t=told, r=report: (t.append(p), r(p)))
            outcomes[name] = "done"
        except (Stopped, RankError, TrainingError, KeyError):
            outcomes[name] = traceback.format_exc().splitlines()[-1]
        outcomes[f"{name} told"] = [dataclasses.asdict(p) for p in told]
    Path(folder, f"outcomes-{rank}.json").write_text(json.dumps(outcomes))
    distributed.destroy_process_group()


def kind_of(name: str) -> str:
    return "generation" if name in ("text", "reasoned", "own") else "classification"


def nothing(_: Progress) -> None:
    pass


def stop(progress: Progress) -> None:
    if progress.epoch == 2:
        raise Stopped("enough")


def fail(_: Progress) -> None:
    raise KeyError("a fault of the listener")


SCENARIOS = {
    "taught": (TAUGHT, nothing),
    "mixed": (MIXED, nothing),
    **{kind: (plan, nothing) for kind, plan in ALIGNED.items()},
    "meta": (META, nothing),
    "text": (TEXT, nothing),
    "reasoned": (REASONED, nothing),
    "own": (OWN, nothing),
    "stopped": (STOPPED, stop),
    "broken": (BROKEN, fail),
    "diverging": (DIVERGING, nothing),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contexts, list[dict]]:
    """The stores of two workers, and what each of them saw."""
    folder = tmp_path_factory.mktemp("together")
    contexts = contexts_in(folder)
    multiprocessing.spawn(work, args=(str(folder), contexts), nprocs=WORKERS)
    return contexts, [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(WORKERS)]


@pytest.mark.parametrize("name", ["taught", "mixed", "meta", *ALIGNED, "text", "reasoned", "own"])
def test_two_workers_train_what_one_does(name: str, together: tuple[Contexts, list[dict]], tmp_path: Path) -> None:
    contexts, outcomes = together
    context, alone, (plan, _) = contexts[kind_of(name)], contexts_in(tmp_path)[kind_of(name)], SCENARIOS[name]
    told: list[Progress] = []
    run_plan(plan, alone, ranks=solo(), report=told.append)
    assert [seen[name] for seen in outcomes] == ["done", "done"]
    assert outcomes[1][f"{name} told"] == []
    # A teacher that was in the store did not have to be trained.
    seen = outcomes[0][f"{name} told"]
    for found, expected in zip(seen, told[-len(seen) :], strict=True):
        assert found["train_loss"] == pytest.approx(expected.train_loss, abs=1e-4)
        assert found["quality"] == expected.quality
    for part in plan.trained_prefixes():
        pair = (store.find(part.fingerprint) for store in (context.store, alone.store))
        two, one = (load_file(next(artifact.folder.glob("*.safetensors"))) for artifact in pair if artifact)
        for tensor, weights in one.items():
            torch.testing.assert_close(two[tensor], weights, atol=1e-4, rtol=1e-4)


def test_a_stop_ends_every_worker(together: tuple[Contexts, list[dict]]) -> None:
    contexts, outcomes = together
    assert all("Stopped" in seen["stopped"] for seen in outcomes)
    assert [p["epoch"] for p in outcomes[0]["stopped told"]] == [1, 2]
    assert not contexts["classification"].store.has(STOPPED.fingerprint)


def test_a_fault_of_the_listener_ends_every_worker(together: tuple[Contexts, list[dict]]) -> None:
    _, (first, second) = together
    assert "KeyError" in first["broken"]
    assert "RankError" in second["broken"] and "a fault of the listener" in second["broken"]


def test_a_divergence_is_seen_by_every_worker(together: tuple[Contexts, list[dict]]) -> None:
    _, outcomes = together
    assert all("TrainingError" in seen["diverging"] for seen in outcomes)
