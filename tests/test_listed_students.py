"""Students that are pretrained models of their own: listed, checked, drawn, trained, deployed and handed over."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_models import VOCABULARY, tiny_causal, tiny_model
from tiny_search import tiny_spec
from tiny_writing import writing_spec
from training_task import finetuning, plan_of

from search import foresee
from search.clerk import Clerk
from search.export import export_record
from search.goals import Goals
from search.ledger import Ledger
from search.prepare import COST_TABLE, Prepared, prepare
from search.records import Record
from search.report.build import build
from search.run import load_run
from search.run_folder import RunFolder
from search.spec import SpecError, load_spec
from search.words import say_plan
from spaces.choosers import FixedChooser
from spaces.draw import Draw, draw, opening, shapes
from spaces.methods.cut import SelectLayers
from spaces.methods.distill import DFT_FEATURE
from spaces.methods.start_from import StartFrom
from spaces.objectives import parse_constraint
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Student
from trainers.carry_out import carry_out
from trainers.cost import CostRow, write_cost_table
from trainers.kinds import kind_of, split_tokens
from trainers.model_files import ModelError
from trainers.models import inspect_model, load_classifier
from trainers.ranks import solo
from trainers.results import Result
from trainers.storage import Storage

SMALL = StartFrom(model="s" * 64, name="small")
_RECIPES = {"standard": {"learning_rate": 1e-2, "epochs": 1}}


def silent(_: Any) -> None:
    pass


# Stages ---------------------------------------------------------------------------------------------------------


def test_a_plan_begins_at_the_other_model() -> None:
    plan = plan_of(SMALL, SelectLayers(layers=(0,)), finetuning())
    assert (plan.base, plan.start, plan.reader) == ("base", "s" * 64, "s" * 64)
    assert plan.shape == Shape(base="s" * 64, num_layers=1)
    assert say_plan(plan).startswith("start from small → keep 1 layer")
    again = Plan.model_validate_json(plan.to_json())
    assert again == plan and say_plan(again) == say_plan(plan)


def test_what_a_model_is_called_does_not_change_what_it_is() -> None:
    plans = [plan_of(StartFrom(model=model, name=name), finetuning()) for model, name in ("ab", "ac", "bb")]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint
    assert plan_of(finetuning()).fingerprint not in {plan.fingerprint for plan in plans}


def test_it_comes_first() -> None:
    with pytest.raises(ValidationError, match="`start from small` must be the first stage"):
        plan_of(finetuning(), SMALL, finetuning())


# What a spec lists ----------------------------------------------------------------------------------------------


def small_model(folder: Path) -> Path:
    """Of another family, deeper and wider than the base."""
    return tiny_model(folder / "small", "distilbert", num_layers=3, hidden_size=48, seed=7)


def prepared(spec: Path) -> tuple[Prepared, list[str]]:
    heard: list[str] = []
    return prepare(load_spec(spec), Storage(spec.parent / "run"), threads=1, say=heard.append), heard


def test_only_listed_models_where_no_layers_are_named(tmp_path: Path) -> None:
    small_model(tmp_path / "a")
    small = tiny_model(tmp_path / "b" / "small", num_layers=1, seed=3)
    model = {"students": ["./a/small", str(small)], "student_layers": None}
    found, _ = prepared(tiny_spec(tmp_path, model=model))
    assert found.space.student_layers == ()
    infos = [inspect_model(str(tmp_path / name / "small")) for name in "ab"]
    assert found.space.students == tuple(
        Student(name=info.reference, model=info.fingerprint, num_layers=info.num_layers) for info in infos
    )
    students = [one.params["student"] for one in opening(found.space) if "student" in one.params]
    assert students == [infos[index % 2].reference for index in range(len(students))]
    assert {one.plan.reader for one in opening(found.space)} == {found.space.base, *(i.fingerprint for i in infos)}


@pytest.mark.parametrize(("students", "other"), [(["./model"], "base"), (["./small", "./copy"], "students")])
def test_a_model_is_listed_once(tmp_path: Path, students: list[str], other: str) -> None:
    small_model(tmp_path)
    (tmp_path / "copy").symlink_to(tmp_path / "small")
    spec = tiny_spec(tmp_path, model={"students": students})
    with pytest.raises(SpecError, match=rf"model.students: found {tmp_path}.*it is the model in model.{other}"):
        prepared(spec)


def test_there_is_no_vocabulary_to_cut_where_all_are_listed(tmp_path: Path) -> None:
    small_model(tmp_path)
    model = {"students": ["./small"], "student_layers": None, "vocabulary": "task"}
    with pytest.raises(
        SpecError, match=r"model\.vocabulary: found task; models in model\.students keep their own tokens"
    ):
        load_spec(tiny_spec(tmp_path, model=model))
    both, _ = prepared(tiny_spec(tmp_path, model={**model, "student_layers": [1]}))
    assert both.space.vocabulary is not None
    cut = {
        one.plan.start: both.space.vocabulary in one.plan.stages
        for one in opening(both.space)
        if "student" in one.params
    }
    assert cut == {both.space.base: True, both.space.students[0].model: False}


def test_a_list_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.students"):
        load_spec(tiny_spec(tmp_path, model={"students": []}))


def swap_ids(model: Path) -> None:
    """Give two words of the tokenizer each other's ids."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["the"], ids["small"] = ids["small"], ids["the"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_what_compares_tokens_goes_without_students_that_read_others(tmp_path: Path) -> None:
    small = small_model(tmp_path)
    swap_ids(small)
    found, heard = prepared(tiny_spec(tmp_path, model={"students": ["./small"]}))
    assert "distill_feature" not in found.space.strategies and found.space.options(DFT_FEATURE) == ("none",)
    (line,) = (line for line in heard if "distill_feature is left out" in line)
    assert f"{tmp_path / 'model'} does not read the tokens of {small}: training row" in line
    assert f"leave {small} out of model.students" in line
    spec = tiny_spec(tmp_path, model={"students": ["./small"]}, search={"strategies": ["distill_feature"]})
    larger = next(line for line in heard if line.startswith("teacher: "))
    assert f"fewer than {small} (" in larger and "leave them out of model.students" in larger
    with pytest.raises(SpecError, match=r"search\.strategies: distill_feature needs a teacher and one tokenizer"):
        prepared(spec)


def test_a_model_that_writes_must_share_its_teachers_vocabulary(tmp_path: Path) -> None:
    swap_ids(tiny_causal(tmp_path / "small", num_layers=1))
    spec = writing_spec(tmp_path, model={"students": ["./small"]})
    with pytest.raises(ModelError) as refused:
        prepared(spec)
    assert f"{tmp_path / 'small'}: it has {len(VOCABULARY)} tokens, the student {len(VOCABULARY)}" in str(refused.value)
    assert f"leave {tmp_path / 'small'} out of model.students" in str(refused.value)


def measured(shape: Shape, precision: Any, _context: Any, *, reference: Shape, sequence_length: int) -> CostRow:  # noqa: ARG001
    """A row that costs nothing to measure."""
    numbers = ("latency_ms", "latency_p95_ms", "latency_ratio", "reference_ms", "size_mb", "memory_mb", "energy_j")
    facts = {"flops": 1.0, "weights": 1.0, "activations": 1.0, "num_ops": 1}
    return CostRow(
        shape=shape,
        precision=precision,
        target="cpu",
        estimated=False,
        sequence_length=sequence_length,
        **dict.fromkeys(numbers, 1.0),  # type: ignore[arg-type]
        **facts,  # type: ignore[arg-type]
    )


def test_what_would_run_is_said_of_every_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_model(tmp_path)
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(foresee, "ray_running", lambda _: nullcontext())
    monkeypatch.setattr(foresee, "lay_out", lambda *_, **__: SimpleNamespace(seats=1, cpus=1, workers=1))
    monkeypatch.setattr(foresee, "export_shapes", lambda _: lambda _shapes: None)
    monkeypatch.setattr(foresee, "probe_apart", measured)
    model = {"students": ["./small"], "student_layers": [1, 2], "student_widths": [1.0, 0.5]}
    spec = load_spec(tiny_spec(tmp_path, model=model, search={"strategies": ["small_finetune"]}, targets=["cpu"]))
    found = foresee.foresee(spec, say=lambda _: None)
    lines = foresee.render(found).splitlines()
    assert "students    1, 2 layers at 1, 0.5 of the width and small" in lines
    sizes = {line.split("fp32")[0].strip() for line in lines if "fp32" in line}
    assert sizes == {"1", "2", "1 × 0.5", "2 × 0.5", "small"}
    json.dumps(found.to_json())


# Drawn, trained, deployed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A prepared search."""

    prepared: Prepared
    folder: RunFolder

    def draw(self, strategy: str, **picks: Any) -> Draw:
        """A plan of these picks, at the opening's for all others."""
        params = next(one for one in opening(self.prepared.space) if one.strategy == strategy).params
        return draw(self.prepared.space, FixedChooser({"strategy": strategy, **params, **picks}))

    def carry_out(self, one: Draw) -> Result:
        result = carry_out(one.plan, ["fp32"], self.prepared.context, ranks=solo(), report=silent)
        assert result is not None
        return result


def ready(spec: Path) -> Ready:
    parsed = load_spec(spec)
    folder = RunFolder.open(parsed, new=False)
    found = prepare(parsed, folder.storage, threads=1, say=lambda _: None)
    folder.claim(parsed, found.context, found.rows)
    return Ready(found, folder)


@pytest.fixture(scope="module")
def classifying(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("listed")
    small_model(folder)
    search = {"space": {"epochs": 2, "student_learning_rate": 1e-2}, "teacher_recipes": _RECIPES}
    return ready(tiny_spec(folder, model={"students": ["./small"], "student_layers": [1]}, search=search))


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("writing")
    tiny_causal(folder / "small", "gpt2", num_layers=1, hidden_size=16, seed=5)
    search = {"strategies": ["distill_soft"], "space": {"epochs": 1}, "teacher_recipes": _RECIPES}
    search |= {"objectives": ["exact_match", "latency_ms"]}
    return ready(writing_spec(folder, model={"students": ["./small"]}, search=search))


def test_both_kinds_of_student_are_drawn(classifying: Ready) -> None:
    space = classifying.prepared.space
    (small,) = space.students
    assert small.name == "small" and small.num_layers == 3
    own = classifying.draw("finetune_then_distill", student="small")
    assert "student_layers" not in classifying.draw("small_finetune", student="small").plan.to_json()
    assert [stage.kind for stage in own.plan.stages] == ["start_from", "distill"]
    assert own.plan.stages[1].teachers[0].base == space.base
    cut = classifying.draw("finetune_then_distill", student="cut", student_layers=1)
    assert [stage.kind for stage in cut.plan.stages] == ["finetune", "select_layers", "distill"]
    assert {Shape(base=small.model), Shape(base=space.base, num_layers=1)} <= set(shapes(space))


@pytest.mark.parametrize("strategy", ["small_finetune", "distill_feature"])
def test_it_is_trained_deployed_and_measured(classifying: Ready, strategy: str) -> None:
    found = classifying.draw(strategy, student="small")
    result = classifying.carry_out(found)
    context = classifying.prepared.context
    artifact = context.store.find(found.plan.fingerprint)
    assert artifact is not None and result.variants[0].value > 1 / 3
    config = load_classifier(artifact.folder, labels=context.labels).config
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("distilbert", 3, 48)


@pytest.fixture(scope="module")
def costs(classifying: Ready) -> CostRow:
    """Of the listed student, measured beside itself."""
    shape = Shape(base=classifying.prepared.space.students[0].model)
    context = classifying.prepared.context
    return kind_of(context).probe(shape, "fp32", context, reference=shape, sequence_length=8)


@pytest.fixture(scope="module")
def record(classifying: Ready) -> Record:
    """Of the listed student, fine-tuned."""
    found = classifying.draw("small_finetune", student="small")
    result = classifying.carry_out(found)
    return Record(
        record_id="0-fp32-cpu",
        trial_id="0",
        number=0,
        strategy=found.strategy,
        plan=found.plan.to_json(),
        fingerprint=found.plan.fingerprint,
        params=dict(found.params),
        precision="fp32",
        target="cpu",
        estimated=False,
        status="complete",
        quality=result.variants[0].value,
        quality_low=result.variants[0].low,
        quality_high=result.variants[0].high,
        latency_ms=1.0,
        size_mb=1.0,
        train_seconds=1.0,
    )


def test_its_costs_are_its_own(classifying: Ready, costs: CostRow) -> None:
    context = classifying.prepared.context
    model = load_classifier(context.base_folder(costs.shape.base), labels=context.labels)
    assert costs.shape.base == classifying.prepared.space.students[0].model
    assert costs.size_mb == pytest.approx(4e-6 * model.num_parameters(), rel=0.1)


def test_it_is_handed_over_under_its_own_name(classifying: Ready, record: Record, tmp_path: Path) -> None:
    exported = export_record(load_run(classifying.folder.storage.location), record, tmp_path / "out")
    card = (exported / "README.md").read_text()
    assert "base_model: small" in card and "start from small → fine-tune" in card
    assert inspect_model(str(exported)).model_type == "distilbert"


def test_a_report_calls_it_by_its_name(classifying: Ready, record: Record, costs: CostRow) -> None:
    storage = classifying.folder.storage
    base, other = (replace(costs, shape=Shape(base=name)) for name in (classifying.prepared.space.base, "o" * 64))
    write_cost_table([costs, base, other], storage, COST_TABLE)
    Ledger(storage, metric="accuracy").append(record)
    report = build(load_run(storage.location))
    assert [row.size for row in report.best] == ["small"]
    assert [row["size"] for row in report.costs] == ["small", "all layers", "model oooooooooooo…"]


def test_shapes_that_are_ruled_out_are_told_apart(tmp_path: Path) -> None:
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    bound = Goals(
        metric="accuracy",
        objectives=("accuracy", "latency_ms"),
        constraints=(parse_constraint("size_mb <= 1"),),
        targets=("cpu",),
    )
    shapes = [Shape(base="b", num_layers=2), Shape(base="b", num_layers=2, width=0.5), Shape(base="s" * 64)]
    clerk = Clerk(
        ledger=ledger,
        goals=bound,
        costs={(shape, "fp32", "cpu"): {"size_mb": 5.0} for shape in shapes},
        estimated=frozenset(),
        base_layers=6,
        names={"s" * 64: "small"},
        versions={},
        clock=lambda: 0.0,
    )
    clerk.rule_out(shapes, began=0.0)
    found = {row.record_id: row.params["size"] for row in Ledger(Storage(tmp_path), metric="accuracy").records}
    assert found == {
        "shape-2-fp32-cpu": "2 layers",
        "shape-2-width0.5-fp32-cpu": "2 layers at 0.5 of the width",
        "shape-model-ssssssssssss-fp32-cpu": "small",
    }


def test_a_model_that_writes_learns_from_the_base(writing: Ready) -> None:
    found = writing.draw("distill_soft", student="small")
    result = writing.carry_out(found)
    context, space = writing.prepared.context, writing.prepared.space
    artifact = context.store.find(found.plan.fingerprint)
    assert artifact is not None and json.loads((artifact.folder / "config.json").read_text())["model_type"] == "gpt2"
    assert result.variants[0].low <= result.variants[0].value
    assert split_tokens(context, base=found.plan.reader, split="train")
    shape = Shape(base=space.students[0].model)
    row = kind_of(context).probe(shape, "fp32", context, reference=space.reference, sequence_length=4)
    assert row.shape == shape and row.flops > 0
