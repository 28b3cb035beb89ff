"""Drawing plans: every draw is in the space and can be drawn again; only what is used is asked for."""

import importlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import make_space

from search.goals import Goals
from search.prepare import first_draws
from spaces.catalogue import CATALOGUE, PARAMETERS
from spaces.choosers import FixedChooser, MiddleChooser, RandomChooser, RecordingChooser
from spaces.draw import draw, opening, restrict, shapes
from spaces.methods.distill import Distill
from spaces.methods.finetune import Finetune, baseline
from spaces.methods.vocabulary import KeepVocabulary
from spaces.needs import NEEDS
from spaces.objectives import parse_constraint
from spaces.plan import Plan
from spaces.ranges import Choice
from spaces.space import CUT, Space, Student
from spaces.stages import Optimisation, Stage, Training


@st.composite
def _ranges(draw_):
    """The usual ranges, narrowed to any two of their values: fixed numbers and awkward digits included."""
    found = {}
    for name, span in PARAMETERS.items():
        if isinstance(span, Choice):
            chosen = draw_(st.lists(st.sampled_from(span.options), min_size=1, unique=True))
            found[name] = replace(span, options=tuple(chosen))
            continue
        if span.kind == "integer":
            bounds = st.integers(int(span.low), int(span.high))
        else:
            bounds = st.floats(span.low, span.high)
        low, high = sorted((draw_(bounds), draw_(bounds)))
        found[name] = replace(span, low=low, high=high, default=min(high, max(low, span.default)))
    return found


@st.composite
def _spaces(draw_):
    total = draw_(st.integers(1, 24))
    students = tuple(
        Student(name=f"small-{layers}", model=f"{layers}" * 64, num_layers=layers)
        for layers in draw_(st.sets(st.integers(1, 9), max_size=2))
    )
    sizes = tuple(sorted(draw_(st.sets(st.integers(1, total), min_size=not students, max_size=5))))
    return Space(
        base="b" * 64,
        base_layers=total,
        data="d" * 64,
        seed=draw_(st.integers(0, 9)),
        strategies=tuple(draw_(st.lists(st.sampled_from(sorted(CATALOGUE)), min_size=1, unique=True))),
        student_layers=sizes,
        student_widths=draw_(st.sampled_from([(1.0,), (1.0, 0.5), (0.25,)])),
        width_scores="w" * 64,
        students=students,
        narrowed=draw_(_ranges()),
        teacher_recipes={
            "a": Optimisation(learning_rate=1e-4, epochs=3),
            "b": Optimisation(learning_rate=2e-4, epochs=5),
        },
        unlabeled="u" * 64,
        teacher_base=draw_(st.sampled_from([None, "t" * 64])),
        batch_size=draw_(st.sampled_from([8, 32])),
        domains="e" * 64,
        vocabulary=draw_(st.sampled_from([None, KeepVocabulary(vocabulary="v" * 64, num_tokens=500)])),
    )


_SEEDS = st.integers(0, 2**32)


def _random(space, seed):
    return draw(space, RandomChooser(random.Random(seed)))


@given(_spaces(), _SEEDS)
def test_every_draw_is_a_member_and_can_be_drawn_again(space, seed):
    found = _random(space, seed)
    assert draw(space, FixedChooser({"strategy": found.strategy, **found.params})) == found


@given(_spaces(), _SEEDS)
def test_every_value_is_within_its_range(space, seed):
    found = _random(space, seed)
    strategy = CATALOGUE[found.strategy]
    assert set(found.params) <= {span.name for span in strategy.parameters} | {
        "student",
        "student_layers",
        "student_width",
        "teacher",
    }
    cut = found.params.get("student", CUT) == CUT
    assert ("student" in found.params) is (strategy.student and bool(space.students))
    assert ("student_layers" in found.params) is (strategy.student and cut)
    assert ("student_width" in found.params) is (strategy.student and cut and space.student_widths != (1.0,))
    assert cut is (found.plan.start == space.base)
    taught = "teacher" in strategy.needs or found.params.get("rationales") == "teacher"
    assert ("teacher" in found.params) is taught
    for name, value in found.params.items():
        span = space.narrowed.get(name)
        if isinstance(span, Choice):
            assert value in span.options
        elif span is not None:
            assert span.low <= value <= span.high
            assert isinstance(value, int if span.kind == "integer" else float)
    assert found.params.get("student_layers", space.base_layers) in {*space.student_layers, space.base_layers}
    assert found.plan.shape in strategy.ends_in(space)
    assert found.plan.shape in shapes(space)


@given(_spaces(), _SEEDS)
def test_a_drawn_plan_survives_json(space, seed):
    plan = _random(space, seed).plan
    assert Plan.model_validate_json(plan.to_json()) == plan


@given(_SEEDS, _SEEDS)
def test_parameters_that_are_not_active_change_nothing(seed, other_seed):
    space = make_space()
    found, other = _random(space, seed), _random(space, other_seed)
    values = {**other.params, "strategy": found.strategy, **found.params, "unheard_of": 3}
    assert draw(space, FixedChooser(values)) == found


@given(_SEEDS, st.sampled_from(sorted(PARAMETERS)))
def test_the_range_of_a_parameter_that_is_not_active_changes_no_fingerprint(seed, name):
    space = replace(make_space(), domains="e" * 64)
    found = _random(space, seed)
    span = PARAMETERS[name]
    at = span.options[-1] if isinstance(span, Choice) else 1
    changes = {"options": (at,)} if isinstance(span, Choice) else {"low": at, "high": at, "default": at}
    # Where the only option left opens parameters that were not asked for before, they have a value too.
    usual = {span.name: span.default for span in PARAMETERS.values()}
    values = {**usual, "strategy": found.strategy, **found.params, **({name: at} if name in found.params else {})}
    again = draw(replace(space, narrowed={name: replace(span, **changes)}), FixedChooser(values))
    assert (again.plan.fingerprint == found.plan.fingerprint) is (found.params.get(name, at) == at)


@settings(deadline=None)
@given(st.sampled_from(sorted(CATALOGUE)))
def test_every_parameter_of_a_strategy_can_be_asked_for(name):
    space = replace(make_space(), strategies=(name,), domains="e" * 64)
    spaces = (space, replace(space, num_draws=50), replace(space, lacking={"writes": "not here"}))
    asked = {parameter for of in spaces for seed in range(60) for parameter in _random(of, seed).params}
    assert asked >= {span.name for span in CATALOGUE[name].parameters}


_CHAINS = {
    "full": ["finetune"],
    "lora": ["finetune"],
    "adapter": ["adapter"],
    "prefix": ["prefix"],
    "small_finetune": ["select_layers", "finetune"],
    "distill_soft": ["select_layers", "distill"],
    "finetune_then_distill": ["finetune", "select_layers", "distill"],
    "distill_then_finetune": ["finetune", "select_layers", "distill", "finetune"],
    "dft": ["select_layers", "distill"],
    "moe_dft": ["select_layers", "distill_experts"],
    "meta_distill": ["select_layers", "meta_distill"],
    "distill_feature": ["finetune", "select_layers", "distill_feature", "distill"],
}


@pytest.mark.parametrize("name", _CHAINS)
def test_a_strategy_is_the_chain_it_says(name):
    space = replace(make_space(), strategies=(name,))
    assert [stage.kind for stage in _random(space, 3).plan.stages] == _CHAINS[name]
    assert all(_random(space, seed).plan.stages[-1].lora is not None for seed in range(9) if name == "lora")


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_strategy_ends_in_training_at_the_size_it_says(name):
    plan = _random(replace(make_space(), strategies=(name,)), 3).plan
    assert isinstance(plan.stages[-1], Training)
    assert CATALOGUE[name].student is (plan.shape.num_layers is not None)


@pytest.mark.parametrize(
    "name", ["distill_soft", "finetune_then_distill", "distill_then_finetune", "dft", "distill_feature"]
)
def test_a_student_is_taught_by_one_of_the_recipes_whose_first_is_the_baseline(name):
    space = replace(make_space(), strategies=(name,), teacher_recipes={"only": make_space().teacher_recipes["long"]})
    plan = _random(space, 0).plan
    teachers = [teacher for stage in plan.stages for teacher in stage.teachers]
    assert {plan.on_same_data(teacher) for teacher in teachers} == {baseline(space)}


def test_experts_learn_by_domain_only_where_the_rows_have_domains():
    space = replace(make_space(), strategies=("moe_dft",))
    plain = {_random(space, seed).params["expert_split"] for seed in range(40)}
    drawn = [_random(replace(space, domains="e" * 64), seed) for seed in range(40)]
    assert plain == {"cluster", "seed"} and {found.params["expert_split"] for found in drawn} == {*plain, "domain"}
    for found in drawn:
        parts = [chain.stages[0].part for chain in found.plan.stages[-1].experts]
        assert [part.index for part in parts] == list(range(found.params["num_experts"]))
        assert {part.domains is None for part in parts} == {found.params["expert_split"] != "domain"}


@pytest.mark.parametrize("name", ["finetune_then_distill", "distill_then_finetune", "distill_feature"])
def test_a_student_of_another_model_starts_at_the_base(name):
    space = replace(make_space(), strategies=(name,), teacher_base="t" * 64)
    plan = _random(space, 0).plan
    assert plan.base == space.base
    assert plan.stages[0].kind == "select_layers"
    assert next(stage for stage in plan.stages if isinstance(stage, Distill)).teacher.base == "t" * 64


@given(_spaces())
def test_the_opening_tries_every_strategy_once(space):
    draws = list(opening(space))
    assert [found.strategy for found in draws] == list(space.strategies)
    for found in draws:
        assert draw(space, FixedChooser({"strategy": found.strategy, **found.params})) == found


def test_a_search_opens_with_what_takes_least_behind_the_baseline():
    space = replace(make_space(), strategies=("dft", "small_finetune", "lora", "distill_feature"))
    plain = Goals(metric="accuracy", objectives=("accuracy", "latency_ms"))
    names = [found.strategy for found in first_draws(space, plain)]
    assert names.index("small_finetune") < names.index("dft") < names.index("distill_feature")
    relative = replace(plain, constraints=(parse_constraint("accuracy >= 0.98 * baseline"),))
    assert [found.strategy for found in first_draws(space, relative)] == ["baseline", *names]


def test_the_opening_stands_at_the_defaults_and_spreads_the_sizes():
    draws = list(opening(make_space()))
    sizes = [found.params["student_layers"] for found in draws if "student_layers" in found.params]
    assert sizes == [(4, 3, 2, 1)[index % 4] for index in range(len(sizes))]
    for found in draws:
        for name in set(found.params) & set(PARAMETERS):
            assert found.params[name] == PARAMETERS[name].default


@given(_spaces(), st.integers(0, 24), _SEEDS)
def test_restrict_takes_out_what_is_not_feasible(space, most, seed):
    def feasible(shape):
        return space.num_layers(shape) <= most

    left = restrict(space, feasible)
    assert left.student_layers == tuple(size for size in space.student_layers if size <= most)
    assert left.students == tuple(student for student in space.students if student.num_layers <= most)
    for name in space.strategies:
        ends = CATALOGUE[name].ends_in(replace(space, student_layers=left.student_layers, students=left.students))
        assert (name in left.strategies) is (bool(ends) and all(map(feasible, ends)))
    if left.strategies:
        assert feasible(_random(left, seed).plan.shape)


def test_restrict_with_nothing_forbidden_is_the_space():
    assert restrict(make_space(), lambda _: True) == make_space()


# Choosers -------------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans(), _SEEDS)
def test_chance_stays_within_bounds(one, other, log, seed):
    low, high = sorted((one, other))
    chooser = RecordingChooser(RandomChooser(random.Random(seed)))
    assert low <= chooser.real("x", low, high, log=log) <= high
    whole_low, whole_high = int(low) + 1, int(high) + 1
    assert chooser.integer("n", whole_low, whole_high, log=log) in range(whole_low, whole_high + 1)
    assert set(chooser.picked) == {"x", "n"}


def test_chance_spreads_evenly_in_the_logarithm():
    chooser = RandomChooser(random.Random(0))
    reals = [chooser.real("x", 1e-5, 1e-1, log=True) for _ in range(2000)]
    wholes = [chooser.integer("n", 1, 64, log=True) for _ in range(2000)]
    assert 0.45 < sum(value < 1e-3 for value in reals) / 2000 < 0.55
    assert 0.45 < sum(value <= 7 for value in wholes) / 2000 < 0.55
    assert set(wholes) >= {1, 2, 3, 64}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "x: no value given"),
        ({"x": 3.5}, r"x: 3.5 is not within \[1, 3\]"),
        ({"x": "two"}, "x: 'two' is not within"),
        ({"x": float("nan")}, "x: nan is not within"),
    ],
)
def test_fixed_values_must_be_there_and_fit(values, says):
    with pytest.raises(ValueError, match=says):
        FixedChooser(values).real("x", 1, 3)


def test_a_fixed_whole_number_must_be_whole():
    assert FixedChooser({"n": 2.0}).integer("n", 1, 3) == 2
    with pytest.raises(ValueError, match=r"n: 2.5 is not a whole number within \[1, 3\]"):
        FixedChooser({"n": 2.5}).integer("n", 1, 3)


def test_a_fixed_choice_must_be_offered():
    with pytest.raises(ValueError, match=r"c: 'z' is none of \['a', 'b'\]"):
        FixedChooser({"c": "z"}).categorical("c", ["a", "b"])


def test_the_middle_is_geometric_where_the_range_is_logarithmic():
    middle = MiddleChooser({"d": 100.0, "c": "b"})
    assert middle.real("x", 1, 4) == 2.5
    assert middle.real("x", 1, 4, log=True) == 2
    assert middle.real("d", 1, 4) == 4  # a default outside the bounds is moved to the nearest
    assert middle.categorical("c", ["a", "b"]) == "b"
    assert middle.categorical("other", ["a", "b"]) == "a"


def test_reals_are_kept_with_three_digits():
    chooser = RecordingChooser(FixedChooser({"x": 0.123456}))
    assert chooser.real("x", 0, 1) == 0.123 == chooser.picked["x"]


def test_a_plan_of_full_depth_has_no_cut():
    space = replace(make_space(), strategies=("small_finetune",), student_layers=(6,))
    assert _random(space, 0).plan.stages[0] == Finetune(optimisation=_random(space, 0).plan.stages[0].optimisation)
    assert _random(space, 0).plan.shape == space.shape(6)


def _stage_kinds():
    pending, found = [Stage], {}
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "kind" in kind.model_fields and isinstance(kind.model_fields["kind"].default, str):
            found[kind.model_fields["kind"].default] = kind
    return found


def test_where_draws_are_kept_students_share_a_few_temperatures():
    space = replace(make_space(), strategies=("distill_soft",), num_draws=50)
    found = [_random(space, seed) for seed in range(20)]
    stages = [draw_.plan.stages[-1] for draw_ in found]
    assert {(stage.num_draws, stage.temperature) for stage in stages} == {(50, 1.0), (50, 2.0), (50, 4.0)}
    assert all("temperature" not in draw_.params for draw_ in found)
    plain = [_random(replace(space, num_draws=None), seed) for seed in range(20)]
    assert all(draw_.plan.stages[-1].num_draws is None for draw_ in plain)
    assert not any("drawn_temperature" in draw_.params for draw_ in plain)


@pytest.mark.parametrize("name", sorted(_stage_kinds()))
def test_every_stage_names_a_function_that_is_there(name):
    module, _, function = _stage_kinds()[name].carried_out_by.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_stage_can_be_said_to_people(name):
    plan = _random(replace(make_space(), strategies=(name,)), 1).plan
    assert all(stage.say() for stage in plan.stages)


# What fits a task -----------------------------------------------------------------------------------------------------


def test_a_strategy_says_what_it_cannot_serve():
    needy = replace(CATALOGUE["full"], needs=("teacher", "unlabeled"), kinds=("generation",))
    lacking = {"unlabeled": "none are named", "rationales": "none are there"}
    assert needy.misfit(kind="classification", lacking={}) == "is for generation, and the task is classification"
    found = needy.misfit(kind="generation", lacking=lacking)
    assert found == "needs a teacher and unlabeled texts, but none are named"
    assert needy.misfit(kind="generation", lacking={"rationales": "none are there"}) is None


def test_what_options_need_is_known_and_can_be_said():
    choices = [span for span in PARAMETERS.values() if isinstance(span, Choice)]
    for choice in choices:
        assert set(choice.needs) <= set(choice.options) and set(choice.needs.values()) <= set(NEEDS)
    assert {choice.name for choice in choices if choice.needs} == {
        "dft_feature",
        "expert_split",
        "cot_mode",
        "rationales",
        "in_context_mode",
    }


@given(_spaces(), _SEEDS, st.sampled_from(sorted(NEEDS)))
def test_an_option_whose_need_is_lacking_is_never_drawn(space, seed, need):
    without = replace(space, lacking={need: "not here"}, narrowed={})
    found = _random(without, seed)
    assert not any(
        isinstance(span := PARAMETERS.get(name), Choice) and span.needs.get(value) == need
        for name, value in found.params.items()
    )
    assert not any(name in PARAMETERS and PARAMETERS[name].need == need for name in found.params)
