"""Recording a table of trainings: an interruption changes no row, and the problem file says what the table holds."""

import argparse
import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import record_table
from record_rows import problem_of, rows_of
from record_table import arguments, patient_probe, proposals, record_all, recorded_task
from tasks import silent
from tiny_search import FAST, LABELS, tiny_spec, write_rows

from search.simulation.problem import load_problem
from search.simulation.table import read_table
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Optimisation
from trainers.progress import Progress
from trainers.storage import Storage

STRATEGIES = ("small_finetune", "distill_soft", "pseudo_label")
SECONDS = ("train_seconds", "shared_seconds", "stages")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of examples, of which one is a tiny task with rows of its own."""
    folder = tmp_path_factory.mktemp("examples")
    space = {**FAST, "epochs": [2, 3], "confidence": 0.3}
    search = {"strategies": list(STRATEGIES), "space": space, "batch_size": 16}
    task = {"train": "train.jsonl", "validation": "val.jsonl", "unlabeled": "train.jsonl"}
    tiny_spec(folder, task=task, search=search).rename(folder / "clinc150.yaml")
    write_rows(folder / "val.jsonl", 40, seed=2)
    return folder


def asked(examples: Path, folder: Path, *, plans: int) -> argparse.Namespace:
    """The options of a recording below ``folder``."""
    sizes = ["--rows", "60", "--validation-rows", "30", "--only", ",".join(LABELS), "--plans", str(plans)]
    places = ["--data", str(examples), "--folder", str(folder / "run"), "--tables", str(folder / "tables")]
    return arguments(["--task", "clinc150", "--name", "tiny", *sizes, *places])


def record(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Record, and read the table's rows."""
    record_all(recorded_task(options), options, measure_cost=patient_probe)
    return pq.read_table(options.tables / "tiny.parquet").to_pylist()


def interrupting(*, at: int) -> Any:
    """A report that ends everything at the ``at``-th epoch that it hears of."""
    left = iter(range(at, 0, -1))

    def report(progress: Progress) -> None:
        silent(progress)
        if next(left) == 1:
            raise KeyboardInterrupt

    return report


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def test_an_interruption_changes_no_row(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record_table, "EXAMPLES", examples)
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    whole = record(asked(examples, tmp_path / "whole", plans=4))
    options = asked(examples, tmp_path / "parts", plans=4)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        # An early plan is kept, and a later one under way.
        interrupted.setattr(record_table, "silent", interrupting(at=7))
        record(options)
    kept = Storage(options.folder).child("plans").names()
    assert 1 <= len(kept) < 4
    # Of a deletion that was killed half-way, and of a model that was being written.
    (options.folder / "store" / "artifacts" / kept[0].removesuffix(".json")).mkdir()
    (options.folder / "store" / "artifacts" / ".half-written").mkdir()
    capsys.readouterr()
    assert without_seconds(record(options)) == without_seconds(whole)
    assert "1/4" not in capsys.readouterr().out
    assert {row["strategy"] for row in whole} == set(STRATEGIES)
    models = [
        path for path in (options.folder / "store").rglob("artifact.json") if '"kind": "model"' in path.read_text()
    ]
    assert len(models) == len({row["shared_id"] for row in whole} - {None}), "teachers alone are kept"

    problem = load_problem(options.tables / "tiny.yaml")
    table = read_table(problem)
    assert set(problem.columns) <= set(whole[0])
    assert table.variants == ("fp32", "int8")
    assert {training.curve[-1][0] for training in table.trainings} == {1.0}
    about = json.loads(pq.read_schema(options.tables / "tiny.parquet").metadata[b"distune"])
    assert about["plans"] == len({row["id"] for row in whole}) == 4
    assert str(tmp_path) not in about["command"] + (options.tables / "tiny.yaml").read_text()


def test_a_longer_recording_begins_like_a_shorter_one() -> None:
    space = Space(
        base="base",
        base_layers=4,
        data="rows",
        seed=3,
        strategies=("full", "distill_soft", "dft"),
        student_layers=(1, 2),
        teacher_recipes={"standard": Optimisation(learning_rate=1e-4, epochs=3)},
    )
    found = list(islice(proposals(space, 0), 100))
    assert found[:40] == list(islice(proposals(space, 0), 40))
    first = [one.strategy for one in found if one.plan.seed == 3]
    assert first[:6] == [*space.strategies, *space.strategies]
    twins = [(one, two) for one, two in pairwise(found) if two.plan.seed == 4]
    assert 5 < len(twins) < 35
    for one, two in twins:
        assert two == replace(one, plan=one.plan.model_copy(update={"seed": 4}))


def recorded(strategy: str, **changes: Any) -> dict[str, Any]:
    """A plan of two epochs and one precision."""
    curve = [{"fidelity": 0.5, "quality": 0.4, "seconds": 1.0}, {"fidelity": 1.0, "quality": 0.5, "seconds": 2.0}]
    variants = [{"precision": "fp32", "quality": 0.6, "low": 0.5, "high": 0.7}]
    shared = {"shared_id": None, "shared_seconds": None}
    plain = {"strategy": strategy, "params": {}, "seed": 0, "num_layers": 1, "shape": {"base": "b"}, **shared}
    return {"id": strategy, "config": strategy, **plain, "curve": curve, "variants": variants, **changes}


COSTS = {(Shape(base="b"), "fp32", "cpu"): {"latency_ms": 1.0, "size_mb": 2.0, "memory_mb": 3.0}}


def test_the_end_is_what_was_deployed_and_the_way_there_is_the_curve() -> None:
    begun, ended = rows_of([recorded("full")], COSTS, metric="accuracy")
    assert (begun["accuracy"], begun["train_seconds"], begun["fidelity"]) == (0.4, 1.0, 0.5)
    assert (ended["accuracy"], ended["train_seconds"], ended["fidelity"]) == (0.6, 2.0, 1.0)
    assert ended["latency_ms"] == begun["latency_ms"] == 1.0
    assert "shared_id" not in ended, "nothing stands in that column"


def test_a_failed_plan_is_a_row_without_a_quality() -> None:
    failed = recorded("lora", curve=None, variants=None, error="diverged", seconds=7.0)
    *_, row = rows_of([recorded("full"), failed], COSTS, metric="accuracy")
    assert (row["id"], row["accuracy"], row["train_seconds"], row["fidelity"]) == ("lora", None, 7.0, 1.0)


def test_conditions_name_the_strategies_and_the_option_that_open_a_parameter() -> None:
    dft = {"learning_rate": 1e-4, "dft_feature": "none"}
    records = [
        recorded("full", id="1", params={"learning_rate": 1e-4}),
        recorded("dft", id="2", params=dft),
        recorded("dft", id="3", params={**dft, "dft_feature": "hidden", "gamma": 0.5}),
        recorded("dft", id="4", params={"learning_rate": 2e-4, "dft_feature": "hidden", "gamma": 1.5}),
    ]
    problem = problem_of(rows_of(records, COSTS, metric="accuracy"), metric="accuracy", table="t.parquet")
    assert problem["params"] == {
        "strategy": {"type": "categorical"},
        "learning_rate": {"type": "float", "log": True},
        "dft_feature": {"type": "categorical", "when": {"strategy": ["dft"]}},
        "gamma": {"type": "float", "log": True, "when": {"strategy": ["dft"], "dft_feature": ["hidden"]}},
    }
    rates = ({"learning_rate": 1e-4}, {"learning_rate": 2e-4}, {})
    records = [recorded("full", id=str(index), params=params) for index, params in enumerate(rates)]
    with pytest.raises(ValueError, match=r"learning_rate: no other parameter tells"):
        problem_of(rows_of(records, COSTS, metric="accuracy"), metric="accuracy", table="t.parquet")
