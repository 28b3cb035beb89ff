"""Whole searches on a real Ray: finished, interrupted in every way and gone on with, refused where they must be."""

import json
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_search import FAST, Running, distune, run_to_end, still_alive, tiny_spec
from transformers import pipeline

from search.export import ExportError, export_record
from search.ledger import Ledger
from search.run import Run, load_run
from search.run_folder import context_of
from spaces.plan import Plan
from spaces.shape import Shape
from trainers.artifacts import MANIFEST, ArtifactStore
from trainers.kinds import split_tokens
from trainers.run_stage import missing_prefixes
from trainers.serving import predict
from trainers.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS = 7
SEARCH = {"strategies": ["full", "lora", "small_finetune", "distill_soft", "finetune_then_distill", "dft"]}
"""Of few shapes, so that little has to be measured; ``test_catalogue.py`` has every strategy."""
OUTPUTS = (
    "spec.yaml",
    "records",
    "trials.parquet",
    "front.parquet",
    "selection.json",
    "report.html",
    "cost_table.parquet",
    "artifacts",
    "best",
    "log",
)
INTERRUPTED = 130


@dataclass(frozen=True)
class Finished:
    """A search that ran to its end, undisturbed, from a folder full of the user's own modules."""

    spec: Path
    code: int
    text: str
    left_over: list[str]
    second: tuple[int, str]
    """Exit code and output of the same command, while it ran."""

    @property
    def folder(self) -> Path:
        return self.spec.parent / "runs" / "tiny"

    @property
    def run(self) -> Run:
        return load_run(self.folder)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Serving costs are measured once for all searches of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    spec = tiny_spec(folder, search=SEARCH, budget={"trials": TRIALS})
    _modules_of_the_user(folder)
    with distune("search", spec, cwd=folder, cache=cache) as running:
        running.until("epoch")
        second = run_to_end(["search", spec], cwd=folder, cache=cache)
        code = running.end()
        return Finished(spec, code, running.text, still_alive(running.family()), second)


def test_a_finished_search_leaves_everything(finished: Finished) -> None:
    assert finished.code == 0, finished.text
    assert [name for name in OUTPUTS if not (finished.folder / name).exists()] == []
    selection = json.loads((finished.folder / "selection.json").read_text())
    assert selection["record"]["record_id"] in pq.read_table(finished.folder / "front.parquet")["record_id"].to_pylist()
    assert json.loads((finished.folder / "confirmation.json").read_text())
    assert_whole(finished.run, trials=TRIALS)


def test_what_it_says_is_its_own(finished: Finished) -> None:
    noise = [line for line in finished.text.splitlines() if re.search(r"raylet|ray\.io|warn|Configuration", line, re.I)]
    assert noise == []


def test_a_second_search_in_the_same_folder_is_refused(finished: Finished) -> None:
    code, text = finished.second
    assert (code, "is searching here" in text, "--new" in text) == (2, True, True), text


def test_no_process_is_left_over(finished: Finished) -> None:
    assert finished.left_over == []


def test_the_best_loads(finished: Finished) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(finished.folder / "best"))
    assert {answer["label"] for answer in classify(["a red cat", "the big sun"])} <= {"cat", "dog", "sun"}


def test_the_export_answers_as_it_was_measured(finished: Finished, tmp_path: Path) -> None:
    """transformers loads the folder, and the graph gives the recorded predictions."""
    run = finished.run
    record = run.front_records("cpu")[0]
    folder = export_record(run, record, tmp_path / "model")
    texts = [json.loads(line)["text"] for line in (finished.spec.parent / "test.jsonl").read_text().splitlines()[:5]]
    found = pipeline("text-classification", model=str(folder))(texts)
    assert all(answer["label"] in ("cat", "dog", "sun") for answer in found)
    tokens = split_tokens(context_of(run.storage), base=Plan.model_validate_json(record.plan).base, split="validation")
    graph = folder / f"model_{record.precision}.onnx"
    assert predict(graph, tokens, threads=1).tolist() == run.ledger.predictions(record.record_id)
    assert str(finished.spec.parent) not in (folder / "README.md").read_text()
    with pytest.raises(ExportError, match="not empty"):
        export_record(run, record, folder)
    with pytest.raises(ExportError, match="after export"):
        export_record(run, replace(record, quality=1.1), tmp_path / "worse")
    assert not (tmp_path / "worse").exists()


def test_the_same_command_again_does_nothing_new(finished: Finished, cache: Path) -> None:
    before = _files(finished.folder / "records")
    code, text = run_to_end(["search", finished.spec], cwd=finished.spec.parent, cache=cache)
    assert code == 0, text
    assert "started" not in text
    assert _files(finished.folder / "records") == before


def test_a_changed_spec_is_refused_or_starts_beside(finished: Finished, cache: Path) -> None:
    changed = ["search", finished.spec, "--set", "search.seed=5"]
    code, text = run_to_end(changed, cwd=finished.spec.parent, cache=cache)
    assert (code, "search.seed: 0 -> 5" in text, "--new" in text) == (2, True, True), text
    with distune(*changed, "--new", "--set", "budget.trials=1", cwd=finished.spec.parent, cache=cache) as running:
        assert running.until("run folder").endswith("tiny-2")
        assert running.end(signal.SIGTERM) == INTERRUPTED, running.text


def test_a_raised_budget_goes_on(finished: Finished, cache: Path) -> None:
    before = _files(finished.folder / "records")
    raised = ["search", finished.spec, "--set", f"budget.trials={TRIALS + 2}"]
    code, text = run_to_end(raised, cwd=finished.spec.parent, cache=cache)
    assert code == 0, text
    assert_whole(finished.run, trials=TRIALS + 2)
    assert before.items() <= _files(finished.folder / "records").items()


def test_interrupted_in_every_way(tmp_path: Path, cache: Path) -> None:
    """Ctrl-C, SIGTERM, a killed driver, a killed worker, one after the other: then the search is what it would be."""
    search = {**SEARCH, "space": {**FAST, "epochs": [12, 16]}}
    spec = tiny_spec(tmp_path, search=search, budget={"trials": TRIALS})
    runs, before = tmp_path / "runs" / "tiny", {}
    command = ["search", spec, "--set", "resources.max_concurrent=1"]

    with distune("search", spec, cwd=tmp_path, cache=cache) as running:
        running.until("epoch 3/")
        running.family()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.end() == INTERRUPTED, running.text
        assert "the same command goes on" in running.text
        assert still_alive(running.family()) == []

    for number, code in ((signal.SIGTERM, INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)):
        before |= _artifacts(runs)
        missing = _missing(runs)
        with distune(*command, cwd=tmp_path, cache=cache) as running:
            running.until("epoch 3/")
            assert running.end(number) == code, running.text
            # Ray's agents look for their killed parent about twice a minute.
            assert still_alive(running.family(), within_s=120) == []
            assert_trains_only(missing, running)

    before |= _artifacts(runs)
    missing = _missing(runs)
    with distune(*command, cwd=tmp_path, cache=cache) as running:
        running.until("epoch 2/")
        running.workers("ray::RayTrainWorker")[0].kill()
        assert running.end() == 0, running.text
        assert "its worker died" in running.text
        assert_trains_only(missing, running)
    assert_whole(load_run(runs), trials=TRIALS)
    assert before.items() <= _artifacts(runs).items()


def test_two_workers_and_a_plan_that_diverges(tmp_path: Path, cache: Path) -> None:
    """The plan that diverges is a row that says why; the other one is carried out by two workers together."""
    search = {"strategies": ["full", "small_finetune"], "space": {**FAST, "epochs": 2, "learning_rate": 1e30}}
    resources = {"workers_per_trial": 2, "cpus_per_worker": 1, "max_concurrent": 1}
    spec = tiny_spec(tmp_path, search=search, resources=resources, budget={"trials": 2})
    code, text = run_to_end(["search", spec], cwd=tmp_path, cache=cache)
    assert code == 0, text
    run = load_run(tmp_path / "runs" / "tiny")
    assert_whole(run, trials=2)
    (failed,) = [record for record in run.records if record.status == "failed"]
    assert failed.strategy == "full"
    assert "learning rate 1e+30" in failed.error
    assert {record.strategy for record in run.records if record.status == "complete"} == {"small_finetune"}


def test_on_an_object_store_with_sizes_ruled_out(
    tmp_path: Path, cache: Path, finished: Finished, object_store: str
) -> None:
    """What the known costs forbid is a row that says so, and is never proposed."""
    plain = [row for row in finished.run.cost_table.to_pylist() if not Shape.of_row(row).additions]
    student, base = sorted({row["size_mb"] for row in plain if row["precision"] == "fp32"})
    search = {
        "strategies": ["full", "small_finetune"],
        "constraints": [f"size_mb <= {(student + base) / 2}"],
        "space": {**FAST, "epochs": 2, "quantization": "fp32"},
    }
    spec = tiny_spec(tmp_path, search=search, storage=object_store, budget={"trials": 2}, targets=["cpu"])
    command = ["search", spec, "--set", "resources.max_concurrent=1"]
    code, text = run_to_end(command, cwd=tmp_path, cache=cache)
    assert code == 0, text
    run = Run(Storage(object_store).child("tiny"))
    assert {proposal.draw.strategy for proposal in run.ledger.proposals} == {"small_finetune"}
    ruled_out = [record for record in run.records if record.status == "infeasible"]
    assert {record.trial_id for record in ruled_out} == {"shape-2"}
    assert all("size_mb" in record.error for record in ruled_out)
    assert [name for name in OUTPUTS if name != "log" and not run.storage.exists(name)] == []
    code, text = run_to_end(command, cwd=tmp_path, cache=cache)
    assert (code, "started" in text) == (0, False), text


@pytest.mark.parametrize("folder", ["records", "artifacts"])
def test_storage_that_fails_ends_the_search_and_no_plan(tmp_path: Path, cache: Path, folder: str) -> None:
    """What cannot be written is nobody's failed plan: exit 1, and later the same command goes on."""
    spec = tiny_spec(tmp_path, search=SEARCH, budget={"trials": 4})
    place, away = tmp_path / "runs/tiny" / folder, tmp_path / "away"
    command = ["search", spec, "--set", "resources.max_concurrent=1"]
    with distune(*command, cwd=tmp_path, cache=cache) as running:
        running.until("t00000 done")
        place.rename(away)
        place.write_text("in the way")
        assert running.end() == 1, running.text
        assert f"/{folder}: " in running.lines[-1], running.text
    place.unlink()
    away.rename(place)
    code, text = run_to_end(command, cwd=tmp_path, cache=cache)
    assert code == 0, text
    assert_whole(load_run(tmp_path / "runs" / "tiny"), trials=4)


def test_what_cannot_be_met_ends_before_training(tmp_path: Path, cache: Path) -> None:
    spec = tiny_spec(tmp_path, search={**SEARCH, "constraints": ["size_mb <= 0.001"]})
    code, text = run_to_end(["search", spec], cwd=tmp_path, cache=cache)
    assert (code, "size_mb" in text, "started" in text) == (3, True, False), text


def assert_whole(run: Run, *, trials: int) -> None:
    """The budget is met exactly, every proposal has the records it must have, none is there twice."""
    assert [proposal.number for proposal in run.ledger.proposals] == list(range(trials))
    assert run.ledger.unfinished() == []
    table = pq.read_table(f"{run.storage.location}/trials.parquet")
    ids = table["record_id"].to_pylist()
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert set(ids) == {record.record_id for record in run.records}
    found = Counter(record.number for record in run.records if record.number >= 0)
    expected = {
        proposal.number: len(proposal.variants) if _is_complete(run, proposal.number) else 1
        for proposal in run.ledger.proposals
    }
    assert found == expected
    assert all(run.front_records(target) for target in run.goals.targets)


def assert_trains_only(missing: dict[str, int], running: Running) -> None:
    """Of a plan that was proposed before, no more stages are trained than were missing when the search went on."""
    for line in running.lines:
        if found := re.search(r"(t\d{5})\s+stage \d+/(\d+)", line):
            trial, stages = found[1], int(found[2])
            assert stages <= missing.get(trial, stages), f"{line}: {missing}"


def _is_complete(run: Run, number: int) -> bool:
    return all(record.status == "complete" for record in run.records if record.number == number)


def _missing(folder: Path) -> dict[str, int]:
    """How many stages every unfinished plan has still to train."""
    ledger = Ledger(Storage(folder), metric="accuracy")
    store = ArtifactStore(Storage(folder / "artifacts"), folder / "artifacts")
    plans: dict[str, Plan] = {proposal.trial_id: proposal.draw.plan for proposal in ledger.unfinished()}
    return {trial: len(missing_prefixes(plan, store)) for trial, plan in plans.items()}


def _artifacts(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "artifacts").glob(f"*/{MANIFEST}")}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _modules_of_the_user(folder: Path) -> None:
    for name in ("search.py", "spaces.py", "trainers/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise RuntimeError('the user own module was imported')\n")
