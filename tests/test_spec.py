"""The spec: everything wrong is told at once, and what is right survives a round trip."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search.spec import Spec, SpecError, load_spec, space_of, spec_differences, spec_to_yaml
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.draw import opening

EXAMPLES = Path(__file__).parents[1] / "examples"
GOOD = {
    "name": "intents",
    "task": {"train": "train.jsonl"},
    "model": {"base": "owner/name"},
    "budget": {"trials": 3},
}


def write(folder: Path, spec: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
    return path


def problems(folder: Path, spec: Any, *overrides: str) -> list[str]:
    """What is said about a bad spec, without the file's name."""
    path = write(folder, spec)
    with pytest.raises(SpecError) as raised:
        load_spec(path, overrides)
    return [problem.removeprefix(f"{path}: ") for problem in raised.value.problems]


def changed(key: str, value: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(GOOD))
    section = spec
    *parents, last = key.split(".")
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
    return spec


def test_the_least_spec_gets_every_default(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    assert spec.search.objectives == ("accuracy", "latency_ms")
    assert set(spec.strategies) | set(spec.left_out) == set(CATALOGUE)
    assert "task.unlabeled names no rows" in spec.left_out["pseudo_label"]
    assert spec.precisions == ("fp32", "int8")
    assert spec.targets == ("cpu",)
    assert list(spec.search.teacher_recipes) == ["standard", "long"]
    assert spec.resources.max_concurrent == "auto"


def test_default_objectives_follow_the_metric(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, changed("task.metric", "macro_f1"))).search.objectives[0] == "macro_f1"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_examples_are_good_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    spec = load_spec(EXAMPLES / name)
    assert load_spec(write(tmp_path, spec_to_yaml(spec))) == spec


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("search.space.lora_rank", [64, 8], "low 64 is above high 8; swap the bounds"),
        ("search.space.lora_rank", [0, 8], "expected whole numbers from 1 up"),
        ("search.space.epochs", [1.5, 3], "expected whole numbers from 1 up"),
        ("search.space.temperature", [0, 3], "low 0 is not above 0"),
        ("search.space.alpha", [0.1, 2], "expected bounds from 0 to 1"),
        ("search.space.alpha", [0.1], "expected [low, high], or one number"),
        ("search.space.learning_rate", ["x", 1], "found 'x'; expected a valid number"),
        ("search.space.lora", 3, "unknown key; did you mean 'lora_rank'?"),
        ("search.space.drawn_temperature", 2, "it needs a model that writes, but task.kind is classification; leave"),
        ("search.space.lmbda", 0.5, "it needs a model that writes, but task.kind is classification; leave lmbda out"),
        ("search.space.expert_split", "domain", "no column tells domains apart; name one in task.domain"),
        ("search.space.quantization", ["int9"], "unknown precision 'int9'; did you mean 'int8'?"),
        ("search.space.quantization", ["fp32", "int4"], "found int4; none of the targets cpu runs it"),
        ("search.strategies", ["lorra"], "unknown strategy 'lorra'; did you mean 'lora'?"),
        ("search.strategies", ["lora", "lora"], "strategy 'lora' is listed twice"),
        ("search.objectives", ["accuracy", "size"], "unknown objective 'size'; did you mean 'size_mb'?"),
        (
            "search.objectives",
            ["size_mb", "latency_ms"],
            "found no quality metric; expected the task's metric",
        ),
        ("search.objectives", ["macro_f1", "size_mb"], "found macro_f1; expected the task's metric, accuracy"),
        ("search.constraints", ["size_mb < = 3"], "is not a constraint; write NAME <= NUMBER"),
        ("search.objectives", ["accuracy", "forgetting"], "name labelled ones in task.retain"),
        ("search.constraints", "forgetting <= 0.1", "'forgetting <= 0.1' is measured on rows of another kind"),
        ("search.constraints", ["macro_f1 > 0.5"], "is about another metric than the task's; constrain accuracy"),
        ("search.sampler", "nsga2", "'nsga2' is not in this version; use known_cost, tpe or random"),
        ("search.seed", -1, "found -1; expected greater than or equal to 0"),
        ("search.sed", 1, "unknown key; did you mean 'seed'?"),
        ("search.lora_rank", [2, 8], "unknown key; move it to search.space.lora_rank"),
        ("search.teacher_recipes.a", {"learning_rate": 0, "epochs": 1}, "found 0; expected greater than 0"),
        ("targets", ["phon"], "unknown target 'phon'; did you mean 'phone'?"),
        ("targets", [], "expected at least 1 item"),
        ("task.kind", "writing", "found 'writing'; expected 'classification' or 'generation'"),
        ("task.metric", "f1", "found 'f1'; expected 'accuracy', 'macro_f1', 'exact_match', 'rouge_l' or 'perplexity'"),
        ("task.metric", "rouge_l", "expected a metric of kind classification: accuracy or macro_f1"),
        (
            "task.prompt",
            "q",
            "found 'q'; kind classification takes no such key; name columns by text, label and domain",
        ),
        ("task.train", "builtin:arithmetic", "its rows are for kind generation, not classification; set task.kind"),
        ("task.validation", 1.5, "a share must be above 0 and below 1"),
        ("task.lable", "x", "unknown key; did you mean 'label'?"),
        ("budget", {"usd": 5}, "a budget in money is not in this version"),
        ("budget", {}, "found no limit; give at least one of trials, minutes, device_hours"),
        ("budget.trials", 2.5, "found 2.5; expected a valid integer"),
        ("budget", None, "found None; expected keys with values below it"),
        ("resources.max_concurrent", "many", "found 'many'; expected a valid integer"),
        ("model.student_layers", [0, 2], "found 0; expected greater than or equal to 1"),
        ("model.student_layers", [], "found no sizes"),
        ("name", "a/b", "found 'a/b'; expected letters, digits"),
        ("storage", 3, "found 3; expected a valid string"),
    ],
)
def test_each_mistake_is_told_with_its_key(key: str, value: Any, expected: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, changed(key, value))
    assert problem.startswith(key)
    assert expected in problem


def test_forgetting_is_an_objective_where_there_are_rows_to_retain(tmp_path: Path) -> None:
    overrides = ["task.retain=general.jsonl", "search.objectives=[accuracy, forgetting]"]
    spec = load_spec(write(tmp_path, GOOD), [*overrides, "search.constraints=[forgetting <= 0.1]"])
    assert spec.task.retain == str(tmp_path / "general.jsonl")
    assert "forgetting" in spec.search.objectives


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    spec = {
        "task": {"trian": "x", "kind": "writing"},
        "model": {"base": "a/b"},
        "search": {"sampler": "tpee", "constraints": "x"},
        "metric": "accuracy",
        "budget": {"trials": 0},
    }
    keys = {problem.split(":")[0] for problem in problems(tmp_path, spec)}
    assert keys == {
        "name",
        "task.train",
        "task.trian",
        "task.kind",
        "search.sampler",
        "search.constraints",
        "metric",
        "budget.trials",
    }


def test_a_relative_constraint_needs_the_baseline_at_fp32(tmp_path: Path) -> None:
    spec = changed("search.space.quantization", "int8")
    spec["search"]["constraints"] = ["accuracy >= 0.9 * baseline"]
    assert "add fp32 to search.space.quantization" in problems(tmp_path, spec)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "line 1, column 5"),
        ("name: a\ntask: {}\nname: b\n", "line 3, column 1: key 'name' is given twice"),
        ("", "found NoneType; expected keys"),
        ("- 1", "found list; expected keys"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable key"),
        ("\x00", "not allowed"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_place(text: str, expected: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, text)
    assert expected in problem


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "latin.yaml")


def test_paths_start_at_the_specs_folder_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    spec = {
        **GOOD,
        "task": {"train": "data/*.csv", "validation": "hf://a/b/c", "test": "s3://bucket/x.jsonl"},
        "model": {"base": "encoder", "teacher": "owner/name"},
    }
    loaded = load_spec(write(tmp_path, spec))
    assert loaded.task.train == str(tmp_path.resolve() / "data/*.csv")
    assert (loaded.task.validation, loaded.task.test) == ("hf://a/b/c", "s3://bucket/x.jsonl")
    assert loaded.model.base == str(tmp_path.resolve() / "encoder")
    assert loaded.model.teacher == "owner/name"
    untouched = changed("task.train", "builtin:docstrings") | {"model": {"base": "package:x"}}
    loaded = load_spec(write(tmp_path, untouched))
    assert (loaded.task.train, loaded.model.base) == ("builtin:docstrings", "package:x")


def test_overrides_are_yaml_and_may_name_new_keys(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    spec = load_spec(path, ["search.space.learning_rate=[1e-5, 1e-3]", "targets=[cpu, phone]", "task.limit=100"])
    assert spec.search.space.learning_rate == (1e-5, 1e-3)  # type: ignore[attr-defined]
    assert (spec.targets, spec.task.limit) == (("cpu", "phone"), 100)
    for override, expected in (("seed", "key.path=value"), ("name.x=1", "holds a value"), ("search.seed=[", "line 1")):
        with pytest.raises(SpecError, match=expected):
            load_spec(path, [override])


def test_differences_leave_out_what_a_run_goes_on_with(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    old = load_spec(path)
    same = load_spec(path, ["budget.trials=9", "resources.max_concurrent=2", "storage=elsewhere"])
    assert spec_differences(old, same) == []
    new = load_spec(path, ["search.seed=3", "search.space.alpha=[0.2, 0.3]", "targets=[cpu, phone]"])
    assert spec_differences(old, new) == [
        "search.space.alpha: None -> [0.2, 0.3]",
        "search.seed: 0 -> 3",
        "targets: ['cpu'] -> ['cpu', 'phone']",
    ]


def model(layers: int, fingerprint: str = "f" * 64) -> Any:
    return SimpleNamespace(fingerprint=fingerprint, num_layers=layers)


@pytest.mark.parametrize(("layers", "sizes"), [(6, (1, 2, 3, 4)), (12, (1, 2, 3, 4, 6, 8, 10)), (2, (1,)), (1, (1,))])
def test_default_student_sizes(layers: int, sizes: tuple[int, ...], tmp_path: Path) -> None:
    space = space_of(load_spec(write(tmp_path, GOOD)), base=model(layers), data="d", teacher=None)
    assert space.student_layers == sizes
    assert [found.strategy for found in opening(space)] == list(space.strategies)


def test_the_space_has_the_specs_ranges_with_defaults_inside(tmp_path: Path) -> None:
    overrides = ["search.space.temperature=[5, 6]", "search.space.epochs=1", "search.batch_size=8", "search.seed=4"]
    spec = load_spec(write(tmp_path, GOOD), overrides)
    space = space_of(spec, base=model(6), data="d", teacher=model(12, "t" * 64))
    assert (space.narrowed["temperature"].low, space.narrowed["temperature"].default) == (5, 5.48)
    assert (space.narrowed["epochs"].low, space.narrowed["epochs"].high) == (1, 1)
    assert space.range(PARAMETERS["alpha"]) == PARAMETERS["alpha"]
    assert space.teacher_base == "t" * 64
    assert space.teacher_recipes["long"].batch_size == space.batch_size == 8
    assert space.seed == 4
    assert space_of(spec, base=model(6), data="d", teacher=model(6)).teacher_base is None


def test_a_student_above_the_base_is_refused(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, changed("model.student_layers", [2, 9])))
    with pytest.raises(SpecError, match=r"model.student_layers: found 9; owner/name has 6 layers"):
        space_of(spec, base=model(6), data="d", teacher=None)


def test_a_spec_made_in_python_is_checked_alike() -> None:
    with pytest.raises(ValidationError, match="none of the targets cpu runs it; expected fp32, int8"):
        Spec.model_validate(changed("search", {"space": {"quantization": "int4"}}))


def test_the_json_schema_describes_every_key() -> None:
    definitions = {"Spec": Spec.model_json_schema(), **Spec.model_json_schema()["$defs"]}
    for section in definitions.values():
        for name, key in section["properties"].items():
            assert key.get("description") or "$ref" in key, name


def test_nothing_heavy_is_imported() -> None:
    code = "import search.spec, sys; print(*{'torch', 'ray', 'transformers', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_KEYS = ["name", "task", "model", "search", "targets", "budget", "resources", "task.validation", "search.space"]
_KEYS += [
    "search.objectives",
    "search.constraints",
    "search.space.alpha",
    "search.teacher_recipes",
    "search.strategies",
]


@given(key=st.sampled_from(_KEYS), value=_json)
def test_any_value_is_taken_or_refused_with_its_key(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    try:
        spec = load_spec(path)
    except SpecError as error:
        assert error.problems
    else:
        assert Spec.model_validate(yaml.safe_load(spec_to_yaml(spec))) == spec
