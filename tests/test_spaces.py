"""Identity and shape of plans, and the words that constraints are written in."""

import enum
import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces.canonical import LATER, Frozen, canonical_json, file_fingerprint, fingerprint
from spaces.methods.adapter import AdapterTuning
from spaces.methods.cut import SelectLayers, spread
from spaces.methods.distill import Distill
from spaces.methods.distill_feature import DistillFeature
from spaces.methods.distill_in_context import DistillInContext, Episodes, TuneInContext
from spaces.methods.distill_reverse_kl import DistillDivergence
from spaces.methods.experts import DistillExperts, Expert, Gate, Part
from spaces.methods.features import Feature
from spaces.methods.finetune import Finetune, Lora
from spaces.methods.meta import MetaDistill
from spaces.methods.prefix import PrefixTuning
from spaces.methods.pseudo_label import PseudoLabel
from spaces.methods.qlora import Qlora
from spaces.methods.quantized_distill import QuantizedDistill
from spaces.methods.start_from import StartFrom
from spaces.methods.vocabulary import KeepVocabulary
from spaces.methods.width import SelectWidth
from spaces.objectives import OBJECTIVES, parse_constraint
from spaces.plan import Plan
from spaces.shape import Adapters, Shape
from spaces.stages import Chain, Optimisation

_BASE, _DATA = "b" * 64, "d" * 64
_OPTIMISATION = Optimisation(learning_rate=1e-4, epochs=3)
_FULL = Finetune(optimisation=_OPTIMISATION)
_LORA = Finetune(optimisation=_OPTIMISATION, lora=Lora(rank=8, alpha=16))
_ADAPTER = AdapterTuning(optimisation=_OPTIMISATION, adapters=Adapters(placement="houlsby", reduction=16))
_CUT = SelectLayers(layers=(0, 5))
_OTHER = StartFrom(model="s" * 64, name="small")
_HALF = SelectWidth(share=0.5, scores="w" * 64)
_SMALL = KeepVocabulary(vocabulary="v" * 64, num_tokens=6081)
_TEACHER = Chain(base=_BASE, stages=(_FULL,))


def _distill(teacher=_TEACHER, **changes):
    settings = {"temperature": 2.0, "alpha": 0.5, "alpha_end": 0.5, **changes}
    return Distill(optimisation=_OPTIMISATION, teacher=teacher, **settings)


def _aligned(kind, **settings):
    return DistillFeature(optimisation=_OPTIMISATION, teacher=_TEACHER, feature=Feature(kind=kind, **settings))


_PARTS = [Part(split="cluster", index=index, num_parts=2) for index in range(2)]
_EXPERTS = tuple(
    Chain(base=_BASE, stages=(Expert(optimisation=_OPTIMISATION, lora=Lora(rank=8, alpha=16), part=part),))
    for part in _PARTS
)
_MET = MetaDistill(
    optimisation=_OPTIMISATION,
    teacher=_TEACHER,
    teacher_learning_rate=1e-5,
    quiz_share=0.1,
    temperature=2.0,
    alpha=0.5,
)


def _mixed(**changes):
    gate = Gate(optimisation=_OPTIMISATION, experts=_EXPERTS, temperature=2.0, balance=0.1)
    settings = {"weights": "gate", "gate": Chain(base=_BASE, stages=(gate,)), "experts": _EXPERTS, **changes}
    return DistillExperts(optimisation=_OPTIMISATION, temperature=2.0, alpha=0.5, alpha_end=0.5, **settings)


def _plan(*stages, **changes):
    return Plan(**{"base": _BASE, "data": _DATA, "stages": stages, **changes})


# Fingerprints ---------------------------------------------------------------------------------------------------------

# Written down once. A change here means that every user's artifacts are trained again: raise a stage's `version` where
# its result changes, and leave these alone otherwise.
_TAUGHT = {"optimisation": _OPTIMISATION, "teacher": _TEACHER}
_FEW = Episodes(mode="meta", num_demonstrations=4, num_episodes=2, unseen_labels=0.2)
_TUNED = Chain(base="b" * 64, stages=(TuneInContext(episodes=_FEW, optimisation=_OPTIMISATION),))
_SHOWN = DistillInContext(
    episodes=_FEW, teacher=_TUNED, temperature=2.0, alpha=0.5, prompt_weight=0.2, optimisation=_OPTIMISATION
)
_GOLDEN = {
    "diverging": (
        _plan(_CUT, DistillDivergence(divergence="jsd", mix=0.5, temperature=1.0, alpha=0.5, **_TAUGHT)),
        "5b0297f7be332581930ddfe870d01f9c65ad5f2110c2be44b83fc185ad836d23",
    ),
    "labelled": (
        _plan(_CUT, PseudoLabel(unlabeled="u" * 64, confidence=0.7, **_TAUGHT)),
        "c52d068f9b21ae104e5cf7e664a242368b6b02273a6039233f015af3649355d0",
    ),
    "quantized": (
        _plan(_FULL, _CUT, QuantizedDistill(temperature=2.0, **_TAUGHT)),
        "50a216303c778316a192f8fef97d303f8edb9f9f0fc027db3cbdf0f84d6c1fc3",
    ),
    "shown": (_plan(_CUT, _SHOWN), "45da0107df91ae1de0ed05293f1eb0eb3668d2ea13636e328f38531fd99489ca"),
    "full": (_plan(_FULL), "01aba567db1dfe4f5e18029acfc8e7af124de2054e54403df969cc024ebc538b"),
    "four_bits": (
        _plan(Qlora(optimisation=_OPTIMISATION, lora=Lora(rank=8, alpha=16.0))),
        "03939ec9c57995f463e9fa8dd863120280126f4b8b5b37fe7d086aa477486341",
    ),
    "lora": (_plan(_LORA), "6304bd5e27cb66bb1daed220937f2654c2f7614d14c17554cef9f22792b74112"),
    "cut": (_plan(_CUT, _FULL, seed=7), "1318ec17dccf08c11582d0147250fdb11754108a78ea4963d178c9389e088ffd"),
    "mixed": (_plan(_CUT, _mixed()), "e7eaebc653bc1abbc2761d9e077451e36582858ecc289e9f4677d8eac4c84444"),
    "met": (_plan(_CUT, _MET), "f6ea95b9044c1c551864ee807f1869e970e7888c08c9785412d135a1ba77a144"),
    "small": (_plan(_SMALL, _CUT, _FULL), "67359e50de619d0f782d7cf88d01e25cadaf069765e7f0fce71496b7c3d71b18"),
    "listed": (_plan(_OTHER, _FULL), "97567ff942a1fda67a5b15f5a83fef0966406db1c55a45aac110a7f05b55914c"),
    "narrow": (_plan(_HALF, _CUT, _FULL), "23a7a1d0f6b0f9556ce023318597650a1853a9538474bc0bae7f6f6aec793549"),
    "taught": (_plan(_FULL, _CUT, _distill()), "f61fe6f050def149f12fc076e6d8a8269e6d8be57786cf7371b4bd26cbf290c4"),
    "prefix": (
        _plan(PrefixTuning(num_tokens=16, projection=True, optimisation=_OPTIMISATION)),
        "658453cc5fbd852c82d8f40debca853dfbcca6ff25eddf10678321dc57b9abec",
    ),
    "adapter": (_plan(_ADAPTER), "24af9b30db5363f3c92af2e78962493d5bb2bfec321daf54e2f464453cad468e"),
}


@pytest.mark.parametrize("name", _GOLDEN)
def test_fingerprints_stay_what_they_are(name):
    plan, golden = _GOLDEN[name]
    assert plan.fingerprint == golden


def test_fingerprint_is_the_sha256_of_the_canonical_text():
    assert (
        canonical_json({"b": [1, 2.5, None], "a": "ä", "c": (True,)}) == '{"a":"\\u00e4","b":[1,2.5,null],"c":[true]}'
    )
    # printf '{"a":1}' | sha256sum
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), _JSON, min_size=2), st.randoms())
def test_the_order_of_keys_does_not_matter(value, rng):
    keys = list(value)
    rng.shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)


@given(_JSON)
def test_canonical_text_is_json_of_the_value(value):
    assert json.loads(canonical_json(value)) == value


def test_zero_has_one_name():
    assert fingerprint(-0.0) == fingerprint(0.0)


def test_a_model_and_its_content_have_one_name():
    assert canonical_json(Shape(base="x", num_layers=2)) == canonical_json({"num_layers": 2, "base": "x"})


class _Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", Path("a"), _Colour.RED, np.int64(3), np.zeros(2), 1j, lambda: 0]
)
def test_an_unknown_type_is_refused_by_place(value):
    with pytest.raises(TypeError, match=r"value\.stages\[1\]: .* has no canonical form"):
        fingerprint({"stages": [1, value]})


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match=r"value: key 1 is int; keys must be strings"):
        fingerprint({1: 2})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gate": None}, "a gate must be there where it gives the weights"),
        ({"weights": "uniform"}, "and only there, but got uniform"),
        ({"experts": (_EXPERTS[0], Chain(base="c" * 64, stages=_EXPERTS[1].stages))}, "must share one base"),
    ],
)
def test_a_mixture_has_the_gate_it_needs_and_experts_of_one_base(changes, says):
    with pytest.raises(ValidationError, match=says):
        _mixed(**changes)


def test_experts_come_before_their_gate_and_both_before_the_student():
    plan = _plan(_CUT, _mixed(), seed=5)
    parts = list(dict.fromkeys(plan.trained_prefixes()))
    assert [part.stages[-1].kind for part in parts] == ["expert", "expert", "gate", "distill_experts"]
    assert {part.seed for part in parts} == {5} and parts[-1] == plan
    other = list(_plan(_CUT, _mixed(weights="uniform", gate=None), seed=5).trained_prefixes())
    assert other[:2] == parts[:2] and len(other) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"value\.rate: .* needs a finite number"):
        fingerprint({"rate": value})


def test_nan_never_gets_into_a_plan():
    with pytest.raises(ValidationError):
        Optimisation(learning_rate=math.nan, epochs=1)
    with pytest.raises(ValidationError):
        _distill(alpha=math.nan)


def test_a_file_is_named_by_its_bytes_alone(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "elsewhere" / "b.txt") == known


_VARIED = [
    _plan(_FULL),
    _plan(_FULL, seed=1),
    _plan(_FULL, data="e" * 64),
    _plan(_FULL, base="c" * 64),
    _plan(_LORA),
    _plan(Finetune(optimisation=_OPTIMISATION, lora=Lora(rank=8, alpha=16, target="attention"))),
    _plan(_CUT, _FULL),
    _plan(_FULL, _CUT, _FULL),
    _plan(_OTHER, _FULL),
    _plan(_OTHER.model_copy(update={"model": "t" * 64}), _FULL),
    _plan(_HALF, _FULL),
    _plan(_HALF.model_copy(update={"share": 0.25}), _FULL),
    _plan(_HALF.model_copy(update={"scores": "x" * 64}), _FULL),
    _plan(_CUT, _distill()),
    _plan(_CUT, _distill(alpha_end=0.4)),
    _plan(_CUT, _distill(feature=Feature(kind="hidden"), gamma=1.0)),
    _plan(_CUT, _distill(feature=Feature(kind="hidden"), gamma=2.0)),
    _plan(_CUT, DistillDivergence(divergence="jsd", mix=0.5, temperature=1.0, alpha=0.5, **_TAUGHT)),
    _plan(_CUT, DistillDivergence(divergence="jsd", mix=0.5, temperature=1.0, alpha=0.5, lmbda=0.5, **_TAUGHT)),
    _plan(_CUT, _distill(num_draws=50)),
    _plan(_CUT, _distill(num_draws=100)),
    _plan(_CUT, _aligned("hidden")),
    _plan(_CUT, _aligned("attention")),
    _plan(_CUT, _aligned("relation", num_relation_heads=12)),
    _plan(_CUT, _aligned("relation", num_relation_heads=24)),
    _plan(_CUT, _aligned("hidden").model_copy(update={"teacher": Chain(base="c" * 64, stages=(_FULL,))})),
    _plan(_CUT, _distill(teacher=Chain(base="c" * 64, stages=(_FULL,)))),
    _plan(_CUT, _distill(teacher=Chain(base=_BASE, stages=(_LORA,)))),
    *(
        _plan(Finetune(optimisation=_OPTIMISATION.model_copy(update=change)))
        for change in (
            {"learning_rate": 2e-4},
            {"epochs": 4},
            {"batch_size": 16},
            {"warmup_share": 0.2},
            {"weight_decay": 0.0},
            {"max_grad_norm": 2.0},
            {"dropout": 0.1},
        )
    ),
]


def test_every_setting_is_part_of_the_name():
    assert len({plan.fingerprint for plan in _VARIED}) == len(_VARIED)


@pytest.mark.parametrize("kind", [Finetune, SelectLayers, Distill])
def test_a_new_version_of_a_stage_is_another_result(monkeypatch, kind):
    plan = _plan(_FULL, _CUT, _distill())
    before = plan.fingerprint
    monkeypatch.setattr(kind, "version", kind.version + 1)
    assert plan.fingerprint != before


@pytest.mark.parametrize("plan", _VARIED)
def test_a_plan_survives_json(plan):
    again = Plan.model_validate_json(plan.to_json())
    assert again == plan
    assert again.fingerprint == plan.fingerprint


def test_a_plan_cannot_be_changed_and_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError):
        _plan(_FULL).seed = 3
    with pytest.raises(ValidationError, match="workers"):
        _plan(_FULL, workers=2)


@pytest.mark.parametrize("layers", [(), (1, 1), (2, 1), (-1, 0)])
def test_layers_must_rise(layers):
    with pytest.raises(ValidationError):
        SelectLayers(layers=layers)


# Chains ---------------------------------------------------------------------------------------------------------------


def test_teachers_come_before_those_that_need_them():
    teacher = _plan(_LORA)
    plan = _plan(_FULL, _CUT, _distill(teacher=Chain(base=_BASE, stages=(_LORA,))), _FULL)
    assert list(plan.trained_prefixes()) == [plan.prefix(1), teacher, plan.prefix(3), plan]


def test_a_teacher_may_have_a_teacher():
    assistant = Chain(base=_BASE, stages=(_FULL, _CUT, _distill()))
    plan = _plan(_CUT, _distill(teacher=assistant), seed=5)
    expert = _plan(_FULL, seed=5)
    middle = Plan(base=_BASE, stages=assistant.stages, data=_DATA, seed=5)
    assert list(plan.trained_prefixes()) == [expert, expert, middle, plan]


def test_a_cut_alone_is_no_trained_part():
    assert list(_plan(_CUT, _FULL).trained_prefixes()) == [_plan(_CUT, _FULL)]


def test_plans_that_begin_alike_share_a_part():
    one, other = _plan(_FULL, _CUT, _distill()), _plan(_FULL, _CUT, _distill(temperature=4.0))
    shared = {p.fingerprint for p in one.trained_prefixes()} & {p.fingerprint for p in other.trained_prefixes()}
    assert shared == {_plan(_FULL).fingerprint}


def test_the_shape_knows_layers_and_no_weights():
    assert _plan(_FULL).shape == _plan(_LORA, seed=3).shape == Shape(base=_BASE)
    assert _plan(_FULL, _CUT, _distill()).shape == Shape(base=_BASE, num_layers=2)
    assert _plan(SelectLayers(layers=(0, 1, 2)), SelectLayers(layers=(1,)), _FULL).shape.num_layers == 1


@pytest.mark.parametrize(
    ("total", "kept", "layers"),
    [(12, 6, (0, 2, 4, 7, 9, 11)), (6, 3, (0, 3, 5)), (6, 1, (0,)), (6, 6, (0, 1, 2, 3, 4, 5)), (1, 1, (0,))],
)
def test_spread_of_known_students(total, kept, layers):
    assert spread(total, kept) == layers  # 12 → 6 is DistilBERT's


@given(st.integers(1, 60).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_spread_is_even(sizes):
    total, kept = sizes
    layers = spread(total, kept)
    assert len(layers) == kept
    assert layers[0] == 0
    SelectLayers(layers=layers)
    if kept > 1:
        assert layers[-1] == total - 1
        ideal = np.linspace(0, total - 1, kept)
        assert np.abs(ideal - layers).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("total", "kept"), [(6, 0), (6, 7), (0, 1)])
def test_spread_keeps_between_one_and_all(total, kept):
    with pytest.raises(ValueError, match="1 <= kept <= total"):
        spread(total, kept)


# Constraints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "row", "baseline", "holds"),
    [
        ("latency_ms <= 5", {"latency_ms": 5.0}, None, True),
        ("latency_ms < 5", {"latency_ms": 5.0}, None, False),
        ("latency_ms<=5.5e0", {"latency_ms": 5.4}, None, True),
        ("size_mb <= .5", {"size_mb": 0.6}, None, False),
        ("  accuracy  >  0.7 ", {"accuracy": 0.7}, None, False),
        ("accuracy >= 0.95 * baseline", {"accuracy": 0.76}, 0.8, True),
        ("accuracy >= 0.95*baseline", {"accuracy": 0.75}, 0.8, False),
        ("macro_f1 >= baseline", {"macro_f1": 0.8}, 0.8, True),
        ("accuracy >= 0.95 * baseline", {"accuracy": 0.76}, None, None),
        ("latency_ms <= 5", {"latency_ms": None}, None, None),
        ("latency_ms <= 5", {}, None, None),
    ],
)
def test_constraints_hold_or_not(text, row, baseline, holds):
    assert parse_constraint(text).holds(row, baseline=baseline) is holds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a constraint"),
        ("latency_ms = 5", "is not a constraint"),
        ("latency_ms <= five", "is not a constraint"),
        ("latency_ms <= 5 ms", "is not a constraint"),
        ("accuracy >= 0.9 baseline", "is not a constraint"),
        ("accuracy >= 0.9; import os", "is not a constraint"),
        ("latency <= 5", "unknown column 'latency'; did you mean 'latency_ms'"),
        ("zzz <= 5", "unknown column 'zzz'; known: accuracy"),
        ("size_mb <= 0.5 * baseline", "compare it with one of accuracy, macro_f1"),
    ],
)
def test_what_is_no_constraint_is_refused_with_the_way_out(text, says):
    with pytest.raises(ValueError, match=says):
        parse_constraint(text)


@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(["<=", ">=", "<", ">"]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_constraint_is_the_comparison_it_is_written_as(name, op, bound, value):
    reference = {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}[op]
    constraint = parse_constraint(f"{name} {op} {bound!r}")
    assert constraint.holds({name: value}) is reference
    assert constraint.known is OBJECTIVES[name].known


# Stages ---------------------------------------------------------------------------------------------------------------


class _Later(Frozen):
    old: int = 1
    new: Annotated[bool, LATER] = False


def test_a_field_that_came_later_changes_nothing_while_it_has_its_default():
    assert canonical_json(_Later()) == '{"old":1}'
    assert canonical_json(_Later(new=True)) == '{"new":true,"old":1}'


def test_an_unknown_stage_is_named():
    with pytest.raises(ValidationError, match=r"unknown stage .frobnicate.; known: .*finetune"):
        Plan.model_validate_json('{"base": "b", "data": "d", "stages": [{"kind": "frobnicate"}]}')


def test_a_chain_has_the_shape_that_its_stages_leave():
    assert _plan(_FULL).shape == Shape(base=_BASE)
    assert _plan(_FULL, SelectLayers(layers=(0, 2, 5)), _CUT).shape == Shape(base=_BASE, num_layers=2)
