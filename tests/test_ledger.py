"""The ledger: written once, read whole, nothing lost or doubled; on a disk and on an object store."""

import dataclasses
import json
import uuid
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import RunSettings, make_record, make_run, make_space

from search.ledger import Ledger, LedgerError, Proposal, read_table, write_table
from search.records import Record, from_row, schema, to_row
from spaces.draw import opening
from trainers.storage import Storage


@pytest.fixture(params=["disk", "memory"])
def storage(request, tmp_path):
    return Storage(tmp_path / "run" if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run")


def _proposal(number=0):
    return Proposal(number=number, draw=next(opening(make_space())), variants=(("fp32", "cpu"), ("int8", "cpu")))


_NUMBERS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
_RECORDS = st.builds(
    Record,
    record_id=st.text(),
    trial_id=st.text(),
    number=st.integers(-1, 10**6),
    strategy=st.text(),
    plan=st.text(),
    fingerprint=st.text(),
    params=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(-5, 5), st.floats(0, 1))),
    precision=st.text(),
    target=st.text(),
    estimated=st.booleans(),
    status=st.sampled_from(["complete", "stopped", "failed", "infeasible"]),
    error=st.text(),
    quality=_NUMBERS,
    latency_ms=_NUMBERS,
    train_seconds=_NUMBERS,
    curve=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1))).map(tuple),
    versions=st.dictionaries(st.text(), st.text()),
    predictions=st.lists(st.integers(0, 10**6)).map(tuple),
)


@given(_RECORDS, st.sampled_from(["accuracy", "macro_f1"]))
def test_a_record_survives_its_row(record, metric):
    row = to_row(record, metric)
    assert from_row(row, metric) == record
    assert set(row) == set(schema(metric).names)


def test_columns_carry_the_name_of_the_metric():
    names = schema("macro_f1").names
    assert {"macro_f1", "macro_f1_low", "macro_f1_high"} <= set(names)
    assert not any(name.startswith("quality") for name in names)


def test_what_was_written_is_read_again(storage):
    ledger = Ledger(storage, metric="accuracy")
    record = make_record(3, params={"lora_rank": 8, "teacher": "long"}, curve=((0.5, 0.6),), predictions=(1, 0, 2))
    ledger.append(record)
    ledger.propose(_proposal())
    again = Ledger(storage, metric="accuracy")
    assert again.records == ledger.records == [dataclasses.replace(record, predictions=())]
    assert again.predictions(record.record_id) == [1, 0, 2]
    assert again.proposals == ledger.proposals == [_proposal()]


def test_what_a_proposal_goes_on_with_is_written_and_read(storage):
    ledger = Ledger(storage, metric="accuracy")
    ledger.propose(_proposal())
    rest = replace(_proposal(), number=1, resumes=0)
    ledger.propose(rest)
    again = Ledger(storage, metric="accuracy")
    assert again.proposals == [_proposal(), rest]
    assert (rest.resumed_id, _proposal().resumed_id) == ("t00000", "")
    assert ledger.num_trials == again.num_trials == 1
    assert "resumes" not in storage.child("proposals").read_json("00000.json")


def test_a_ledger_from_before_a_column_was_there_is_read(storage):
    record = make_record(0, overfit=0.2, forgetting=0.1, train_memory_mb=700.0)
    row = to_row(record, "accuracy")
    new = ("train_memory_mb", "forgetting", "overfit")
    table = pa.Table.from_pylist([{name: value for name, value in row.items() if name not in new}])
    write_table(table, storage.child("records"), f"{record.record_id}.parquet")
    old = Ledger(storage, metric="accuracy")
    assert old.records == [dataclasses.replace(record, **dict.fromkeys(new))]
    later = dataclasses.replace(record, record_id="t00001-fp32-cpu")
    old.append(later)
    again = Ledger(storage, metric="accuracy")
    assert {r.record_id: r.overfit for r in again.records} == {record.record_id: None, later.record_id: 0.2}
    assert again.table()["train_memory_mb"].null_count == 1


def test_a_record_is_written_once_and_never_changed(storage):
    ledger = Ledger(storage, metric="accuracy")
    ledger.append(make_record(0, quality=0.7))
    ledger.append(make_record(0, quality=0.9))
    assert [record.quality for record in Ledger(storage, metric="accuracy").records] == [0.7]


def test_a_number_is_given_once(storage):
    ledger = Ledger(storage, metric="accuracy")
    ledger.propose(_proposal())
    with pytest.raises(LedgerError, match="proposal 0 is there already"):
        ledger.propose(_proposal())


def test_a_proposal_is_unfinished_until_every_variant_is_there(storage):
    ledger = Ledger(storage, metric="accuracy")
    proposal = _proposal()
    ledger.propose(proposal)
    ledger.append(make_record(0))
    assert Ledger(storage, metric="accuracy").unfinished() == [proposal]
    ledger.append(make_record(0, record_id="t00000-int8-cpu", precision="int8"))
    assert Ledger(storage, metric="accuracy").unfinished() == []


@pytest.mark.parametrize("status", ["failed", "stopped", "infeasible"])
def test_one_record_that_says_why_finishes_a_proposal(storage, status):
    ledger = Ledger(storage, metric="accuracy")
    ledger.propose(_proposal())
    ledger.append(make_record(0, quality=None, status=status, error="because"))
    assert ledger.unfinished() == []


def test_drafts_of_a_killed_writer_are_not_read(tmp_path):
    ledger = Ledger(Storage(tmp_path), metric="accuracy")
    ledger.append(make_record(0))
    (tmp_path / "records" / ".t00001.parquet.tmp").write_bytes(b"half")
    (tmp_path / "records" / ".t00002.parquet").write_bytes(b"half")
    assert len(Ledger(Storage(tmp_path), metric="accuracy").records) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("records/t00000-fp32-cpu.parquet", b"PAR1 broken"),
        ("records/t00000-fp32-cpu.parquet", b""),
        ("proposals/00000.json", b"{"),
        ("proposals/00000.json", b'{"number": 0}'),
    ],
)
def test_a_broken_file_is_named_with_the_way_out(tmp_path, name, content):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LedgerError, match=f"{name} cannot be read .*delete it"):
        Ledger(Storage(tmp_path), metric="accuracy")


def test_a_record_of_another_metric_is_refused(tmp_path):
    Ledger(Storage(tmp_path), metric="accuracy").append(make_record(0))
    with pytest.raises(LedgerError, match="expected one row with column macro_f1"):
        Ledger(Storage(tmp_path), metric="macro_f1")


def test_the_table_holds_every_record_without_predictions(tmp_path):
    ledger = Ledger(make_run(tmp_path, RunSettings(trials=4)), metric="accuracy")
    table = ledger.table()
    assert table.num_rows == len(ledger.records) == 16
    assert "predictions" not in table.column_names
    assert json.loads(table["params"][0].as_py())
    write_table(table, Storage(tmp_path), "trials.parquet")
    assert read_table(Storage(tmp_path), "trials.parquet").equals(table)
