"""Problem files and their tables: what is read, and what is said of those that cannot be used."""

import math

import pytest
import yaml
from tables import CURVES, PLAIN, curve_columns, plain_columns, write_problem

from search.simulation.problem import load_problem
from search.simulation.recorded import ONLY
from search.simulation.table import read_table
from search.spec_errors import SpecError


def _table(folder, *args, **changes):
    return read_table(load_problem(write_problem(folder, *args, **changes)))


def _said(folder, *args, **changes):
    with pytest.raises(SpecError) as error:
        _table(folder, *args, **changes)
    return str(error.value)


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "table.parquet"])
def test_every_row_is_a_training_where_there_is_no_id(tmp_path, name):
    table = _table(tmp_path, table=name)
    assert len(table.trainings) == 12
    first = table.trainings[0]
    assert (first.name, first.params) == ("1", {"depth": 1, "rate": 0.001})
    assert (first.steps, first.costs, first.cost) == ((1,), (1.0,), 1.0)
    assert first.variants[ONLY].known == {"size": 10.0}
    assert first.variants[ONLY].quality == pytest.approx(0.591)


def test_rows_of_one_id_are_one_training_at_rising_fidelity(tmp_path):
    table = _table(tmp_path, CURVES, curve_columns())
    assert [training.name for training in table.trainings] == ["r0", "r1", "r2", "r3"]
    found = table.trainings[1]
    assert found.params == {"strategy": "lora", "rate": 0.002, "rank": 5}
    assert table.trainings[0].params == {"strategy": "full", "rate": 0.001}
    assert found.steps == (1, 2, 3)
    assert found.qualities == pytest.approx((0.12, 0.14, 0.16))
    assert [share for share, _ in found.curve] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found.costs == (20.0, 40.0, 60.0)
    assert {name: (variant.quality, variant.known["size"]) for name, variant in found.variants.items()} == {
        "fp32": (pytest.approx(0.16), 9.0),
        "int8": (pytest.approx(0.15), 3.0),
    }
    assert found.learned == {"seconds": 60.0}


def test_the_order_of_rows_does_not_matter_within_an_id(tmp_path):
    columns = curve_columns()
    turned = {name: values[::-1] for name, values in columns.items()}
    (tmp_path / "turned").mkdir()
    before = {training.name: training for training in _table(tmp_path, CURVES, columns).trainings}
    for training in _table(tmp_path / "turned", CURVES, turned).trainings:
        assert training.costs == before[training.name].costs
        assert dict(training.variants) == dict(before[training.name].variants)


def test_a_shared_beginning_costs_its_rows_median_everywhere(tmp_path):
    parts = [training.parts for training in _table(tmp_path, CURVES, curve_columns(num=6)).trainings]
    assert parts == [{}, {"teacher=long": 93.0}, {"teacher=long": 93.0}, {}, *[{"teacher=long": 93.0}] * 2]


def test_what_was_spent_stays_spent(tmp_path):
    columns = curve_columns(num=2)
    columns["seconds"][:4] = [10.0, 30.0, 25.0, 25.0]
    assert _table(tmp_path, CURVES | {"shared": {}}, columns).trainings[0].costs == (10.0, 30.0, 30.0)


def test_without_a_cost_each_training_costs_one_in_equal_steps(tmp_path):
    problem = {name: value for name, value in CURVES.items() if name != "train_cost"} | {"shared": {}}
    assert _table(tmp_path, problem, curve_columns()).trainings[2].costs == pytest.approx((1 / 3, 2 / 3, 1.0))


@pytest.mark.parametrize("column", ["accuracy", "seconds"])
def test_an_end_without_a_result_is_a_variant_that_failed(tmp_path, column):
    columns = curve_columns(num=2)
    columns[column][3] = None
    variants = _table(tmp_path, CURVES | {"train_cost": None, "shared": {}}, columns).trainings[0].variants
    assert math.isnan(variants["int8"].quality)
    assert variants["fp32"].quality == pytest.approx(0.06)


def test_a_quality_that_lacks_half_way_is_left_open(tmp_path):
    columns = curve_columns(num=2)
    columns["accuracy"][1] = None
    found = _table(tmp_path, CURVES | {"shared": {}}, columns).trainings[0]
    assert math.isnan(found.qualities[1])
    assert found.curve == ((pytest.approx(1 / 3), 0.02), (1.0, pytest.approx(0.06)))
    assert found.variants["fp32"].quality == pytest.approx(0.06)


def test_fidelities_may_be_shares(tmp_path):
    columns = curve_columns()
    columns["epoch"] = [{1: 0.1, 2: 0.3, 3: 0.8}[epoch] for epoch in columns["epoch"]]
    found = _table(tmp_path, CURVES, columns).trainings[0]
    assert [share for share, _ in found.curve] == pytest.approx([0.125, 0.375, 1.0])


def test_rows_before_the_end_need_no_variant(tmp_path):
    columns = curve_columns()
    before = _table(tmp_path, CURVES, columns).trainings
    columns["precision"] = [
        name if epoch == 3 else None for name, epoch in zip(columns["precision"], columns["epoch"], strict=True)
    ]
    assert _table(tmp_path, CURVES, columns).trainings == before


def test_a_number_that_is_none_is_no_option(tmp_path):
    columns = curve_columns()
    columns["rank"] = [math.nan if rank is None else float(rank) for rank in columns["rank"]]
    params = CURVES["params"] | {"rank": {"type": "categorical", "when": {"strategy": "lora"}}}
    (axis,) = [axis for axis in _table(tmp_path, CURVES | {"params": params}, columns).axes if axis.name == "rank"]
    assert axis.options == (5.0, 7.0)


def test_truth_values_are_options_like_others(tmp_path):
    columns = plain_columns() | {"bias": [True, False] * 6}
    problem = PLAIN | {"params": PLAIN["params"] | {"bias": {"type": "categorical"}}}
    assert [axis.options for axis in _table(tmp_path, problem, columns).axes if axis.name == "bias"] == [(0, 1)]


def test_the_fan_out_as_a_parameter_makes_each_variant_a_training(tmp_path):
    table = _table(tmp_path, CURVES, curve_columns()).unfolded()
    assert [training.params["precision"] for training in table.trainings] == ["fp32", "int8"] * 4
    int8 = table.trainings[3]
    assert int8.qualities[-1] == int8.variants[ONLY].quality == pytest.approx(0.15)
    assert int8.costs == (20.0, 40.0, 60.0)
    assert table.variants == (ONLY,)
    plain = _table(tmp_path)
    assert plain.unfolded() is plain


# What is wrong --------------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    said = _said(
        tmp_path,
        tabel="x.csv",
        params={"depth": {"type": "integer"}, "rate": {"type": "float", "lgo": True}},
        quality={"column": "accuracy"},
    )
    lines = said.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{tmp_path}/problem.yaml: ") for line in lines)
    assert "tabel: unknown key; did you mean 'table'?" in said
    assert "params.depth.type: found 'integer'; expected 'float', 'int' or 'categorical'" in said
    assert "params.rate.lgo: unknown key; did you mean 'log'?" in said
    assert "quality.direction: missing; expected max or min" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "table.txt"}, "table: found 'table.txt'; expected a file that ends in .csv, .csv.gz, .parquet"),
        ({"fidelity": "epoch"}, "fidelity: found without `id`"),
        ({"fan_out": "precision"}, "fan_out: found without `id`"),
        ({"known_costs": []}, "known_costs: found no cost; name at least one column"),
        ({"known_costs": ["size", "accuracy"]}, "column 'accuracy' has 2 meanings"),
        ({"known_costs": ["size", "size"]}, "known_costs: column 'size' has 2 meanings"),
        ({"learned_costs": ["depth"]}, "params.depth: column 'depth' has 2 meanings"),
        ({"reference": {"accuracy": 0}}, "reference: found no size; give every objective, or none"),
        ({"reference": {"accuracy": 0, "size": 9, "tim": 1}}, "reference.tim: no objective"),
        ({"params": {"depth": {"type": "categorical", "log": True}}}, "params.depth.log: found on a categorical"),
        ({"params": {"depth": {"type": "int", "when": {"lora": 1}}}}, "params.depth.when.lora: no parameter"),
        (
            {"params": {"depth": {"type": "int", "when": {"rate": 1}}, "rate": {"type": "float"}}},
            "params.depth.when.rate: found a parameter of type float; expected a categorical one",
        ),
        (
            {
                "params": {
                    "depth": {"type": "categorical", "when": {"rate": 1}},
                    "rate": {"type": "categorical", "when": {"depth": 1}},
                }
            },
            "params: found conditions (`when`) that go round in a circle",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, changes, said):
    assert said in _said(tmp_path, **changes)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (PLAIN | {"table": "other.csv"}, "other.csv: no such file"),
        (PLAIN | {"known_costs": ["siez"]}, "known_costs: no column 'siez'; did you mean 'size'?"),
        (PLAIN | {"params": {"rate": {"type": "int"}}}, "params.rate.type: found 0.001 in row 1 and 11 more"),
    ],
)
def test_a_table_that_lacks_what_the_file_names_is_refused(tmp_path, problem, said):
    write_problem(tmp_path)
    (tmp_path / "problem.yaml").write_text(yaml.safe_dump(problem))
    with pytest.raises(SpecError) as error:
        read_table(load_problem(tmp_path / "problem.yaml"))
    assert said in str(error.value)


def _with(column, row, value):
    columns = plain_columns()
    columns[column][row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({name: values[:0] for name, values in plain_columns().items()}, "found no rows"),
        (_with("size", 3, None), "known_costs: column 'size' holds nan in row 4; expected a finite number"),
        (_with("rate", 0, None), "params.rate: no value in row 1"),
        (_with("rate", 0, -0.5), "params.rate.log: found -0.5 in row 1; expected numbers above 0"),
        (plain_columns() | {"accuracy": ["high"] * 12}, "quality.column: column holds string; expected numbers"),
    ],
)
def test_values_that_cannot_be_used_are_named_with_their_row(tmp_path, columns, said):
    assert said in _said(tmp_path, PLAIN, columns)


def _curves_with(column, row, value):
    columns = curve_columns()
    columns[column][row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (_curves_with("epoch", 1, 1), "id r0: row 2 says the same place as the row before; expected them to differ in"),
        (_curves_with("rate", 1, 0.5), "id r0: params.rate differs in row 2"),
        (_curves_with("epoch", 3, 4), "id r0: its end has no row for fp32"),
        (_curves_with("run", 0, None), "id: nothing stands in row 1"),
        (_curves_with("seconds", 0, -1.0), "learned_costs: column 'seconds' holds -1 in row 1"),
        (_curves_with("epoch", 0, 0), "fidelity: column 'epoch' holds 0 in row 1; expected a number above 0"),
        (_curves_with("teacher_seconds", 4, None), "shared.teacher: column 'teacher_seconds' holds nan in row 5"),
        (_curves_with("rank", 4, None), "params.rank: no value in row 5"),
        (_curves_with("precision", 3, None), "id r0: its end has no row for int8"),
    ],
)
def test_rows_that_contradict_each_other_are_named(tmp_path, columns, said):
    assert said in _said(tmp_path, CURVES, columns)


def test_an_option_that_no_row_has_is_named(tmp_path):
    params = CURVES["params"] | {"rank": {"type": "int", "when": {"strategy": ["lora", "qlora"]}}}
    said = _said(tmp_path, CURVES | {"params": params}, curve_columns())
    assert "params.rank.when.strategy: found 'qlora', which no row has; expected some of 'full', 'lora'" in said


def test_the_same_fault_in_many_trainings_is_told_of_ten(tmp_path):
    columns = curve_columns(num=30)
    columns["epoch"] = [1] * len(columns["epoch"])
    assert _said(tmp_path, CURVES, columns).splitlines()[10].endswith("and 20 more")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = write_problem(tmp_path, table="table.parquet")
    (tmp_path / "table.parquet").write_bytes(b"no table")
    with pytest.raises(SpecError, match="cannot be read"):
        read_table(load_problem(path))
