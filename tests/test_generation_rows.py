"""Rows of generation: every format reads alike, what is missing is counted, and no prompt is in two splits."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces.objectives import QUALITY_METRICS
from spaces.task import KIND_OF_BUILTIN, METRICS, Task
from trainers import datasets, generation_rows
from trainers.generation_rows import GenerationRows, GenerationTaskRows, load_generation
from trainers.readers import DataError

ROWS = [{"prompt": f"{i} + 1, is?", "response": str(i + 1), "rationale": f"{i} + 1 = {i + 1}."} for i in range(30)]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> None:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        options = pacsv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pacsv.write_csv(pa.Table.from_pylist(rows), path, options)


def load(folder: Path, seed: int = 0, **settings: Any) -> GenerationTaskRows:
    task = Task(**{"kind": "generation", "train": "train.jsonl", **settings})
    return load_generation(task, seed=seed, folder=folder)


def problems(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, **settings)
    return "\n".join(raised.value.problems)


def exchanges(rows: GenerationRows) -> list[tuple[str, str, str | None]]:
    return list(zip(rows.prompts, rows.responses, rows.rationales, strict=True))


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv", "train.parquet"])
def test_formats_read_alike(name: str, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS, name)
    rows = load(tmp_path, train=name)
    assert rows.fingerprint == load(tmp_path).fingerprint
    assert len(rows.validation) == 3 and rows.test is None and rows.notes == ()
    found = exchanges(rows.train) + exchanges(rows.validation)
    assert sorted(found) == sorted((row["prompt"], row["response"], row["rationale"]) for row in ROWS)


def test_columns_have_the_names_that_the_task_gives(tmp_path: Path) -> None:
    write(tmp_path, [{"q": row["prompt"], "a": int(row["response"]), "why": row["rationale"]} for row in ROWS])
    named = load(tmp_path, prompt="q", response="a", rationale="why")
    write(tmp_path, ROWS)
    assert named.fingerprint == load(tmp_path).fingerprint
    found = problems(tmp_path, prompt="promt", response="answer", rationale="why").splitlines()
    assert [line.split(": ", 2)[2].split(";")[0] for line in found] == [
        f"no column {name!r} (task.{key})"
        for name, key in (("promt", "prompt"), ("answer", "response"), ("why", "rationale"))
    ]
    assert "did you mean 'prompt'?" in found[0]


def test_a_file_without_rationales_is_said_once(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS])
    write(tmp_path, ROWS[:2], "val.jsonl")
    rows = load(tmp_path, validation="val.jsonl")
    assert set(rows.train.rationales) == {None}
    assert rows.train.num_rationales == 0 and rows.validation.num_rationales == 2
    assert rows.notes[-1] == "train: no row has a rationale; strategies that learn from rationales need them"


def test_rows_without_a_rationale_are_kept_and_counted(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS[:25], *({**row, "rationale": " "} for row in ROWS[25:])])
    write(tmp_path, [{"prompt": "p", "response": "r"}], "val.jsonl")
    rows = load(tmp_path, validation="val.jsonl")
    assert len(rows.train) == 30 and rows.train.num_rationales == 25
    assert rows.notes == ("train: 5 of 30 rows without a rationale; they are kept",)
    write(tmp_path, [{**row, "rationale": None} for row in ROWS])
    assert load(tmp_path, validation="val.jsonl").notes == (
        "train: no row has a rationale; strategies that learn from rationales need them",
    )


def test_a_column_that_is_named_and_gives_no_rationale_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "why": " "} for row in ROWS])
    found = problems(tmp_path, rationale="why")
    assert found.startswith("task.rationale: found 'why'; none of the 27 rows has one in this column")
    write(tmp_path, [{**row, "why": "So #### 99"} for row in ROWS])
    assert problems(tmp_path, rationale="why") == found
    assert load(tmp_path, rationale="why", metric="rouge_l").train.num_rationales == 27


def test_a_rationale_that_comes_to_another_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    said = ["0 + 1 = 1.", "The answer is 2.", "#### 3", "The answer is 5", "So #### 6", "none of it"]
    write(tmp_path, [{**row, "rationale": text} for row, text in zip(ROWS, said, strict=False)])
    write(tmp_path, [{"prompt": "p", "response": "r", "rationale": "#### other"}], "val.jsonl")
    rows = load(tmp_path, validation="val.jsonl")
    kept = dict(zip(rows.train.prompts, rows.train.rationales, strict=True))
    assert [kept[row["prompt"]] for row in ROWS[:6]] == [*said[:3], None, None, said[5]]
    assert rows.notes == (
        "train: 2 rationales that come to another answer than their response left out",
        "train: 2 of 6 rows without a rationale; they are kept",
    )
    assert rows.validation.num_rationales == 1, "nothing is learnt from them"
    # Where answers are not what is measured, nobody can tell that they differ.
    assert load(tmp_path, validation="val.jsonl", metric="rouge_l").train.num_rationales == 6


def test_rows_without_prompt_or_response_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [{"prompt": " \n", "response": "1"}, {"prompt": "p", "response": ""}, {"prompt": "q"}, {"response": None}]
    write(tmp_path, [*ROWS, *odd])
    rows = load(tmp_path)
    assert len(rows.train) + len(rows.validation) == 30
    assert rows.notes[:2] == (
        "train: 2 of 34 rows without a prompt left out",
        "train: 2 of 34 rows without a response left out",
    )
    write(tmp_path, odd)
    assert problems(tmp_path) == "task.train: none of the 4 rows has a prompt and a response"


def test_bad_values_are_named_by_line_in_all_splits(tmp_path: Path) -> None:
    write(tmp_path, [ROWS[0], {"prompt": ["p"], "response": "1"}, {"prompt": "p", "response": True}])
    write(tmp_path, [{"prompt": "p", "response": "1", "rationale": {}}], "val.jsonl")
    found = problems(tmp_path, validation="val.jsonl", test="none.jsonl").splitlines()
    assert [line.split(".jsonl: ")[1] for line in found] == [
        "line 2: prompt is ['p']; expected text or a number",
        "line 3: response is True; expected text or a number",
        "line 1: rationale is {}; expected text or a number",
        "no such file; did you mean 'train.jsonl'?",
    ]
    (tmp_path / "empty.csv").write_text("")
    assert "expected rows with columns 'prompt' and 'response'" in problems(tmp_path, train="empty.csv")


def test_numbers_are_responses_and_outer_white_space_is_none_of_them(tmp_path: Path) -> None:
    values, expected = [7, 7.0, 0.5, " 7\n", "07"], ["7", "7", "0.5", "7", "07"]
    write(tmp_path, [{"prompt": f" p{i} ", "response": value} for i, value in enumerate(values)])
    write(tmp_path, [{"prompt": "v", "response": "v"}], "val.jsonl")
    rows = load(tmp_path, validation="val.jsonl").train
    assert dict(zip(rows.prompts, rows.responses, strict=True)) == {f"p{i}": text for i, text in enumerate(expected)}


def test_a_prompt_is_kept_in_one_split(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, {**ROWS[5], "response": "0"}])
    write(tmp_path, [ROWS[0], {**ROWS[1], "response": "0"}], "val.jsonl")
    write(tmp_path, [ROWS[0], ROWS[2]], "test.jsonl")
    rows = load(tmp_path, validation="val.jsonl", test="test.jsonl")
    assert rows.test is not None
    prompts = [set(split.prompts) for split in (rows.train, rows.validation, rows.test)]
    assert [len(found) for found in prompts] == [27, 1, 2]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert rows.notes == (
        "validation: 1 rows whose prompt is also in test left out",
        "train: 2 rows whose prompt is also in test left out",
        "train: 1 rows whose prompt is also in validation left out, 1 of them with another response there",
        "train: 1 prompts occur with different responses",
    )


def test_unlabeled_prompts_are_new_to_validation_and_test_and_there_once(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:2], "val.jsonl")
    write(tmp_path, [ROWS[2]], "test.jsonl")
    files = {"validation": "val.jsonl", "test": "test.jsonl", "limit": 5}
    plain = load(tmp_path, **files)
    # Responses are not read: one that no response could be is no error.
    new = [{"prompt": "new"}, {"prompt": " new "}, {"prompt": None}, {"prompt": "newer", "response": [1]}]
    write(tmp_path, [*ROWS[:4], *new], "more.jsonl")
    rows = load(tmp_path, unlabeled="more.jsonl", **files)
    assert rows.unlabeled is not None
    assert sorted(exchanges(rows.unlabeled)) == [(ROWS[3]["prompt"], "", None), ("new", "", None), ("newer", "", None)]
    assert rows.fingerprint == plain.fingerprint
    assert set(rows.notes) - set(plain.notes) == {
        "unlabeled: 1 of 8 rows without a prompt left out",
        "unlabeled: 1 rows whose prompt is there twice left out",
        "unlabeled: 3 rows whose prompt is also in validation or test left out",
    }
    assert set(rows.splits) == {"train", "validation", "test", "unlabeled"} and "unlabeled" not in plain.splits


def test_unlabeled_prompts_that_are_of_no_use(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:2], "val.jsonl")
    assert "task.unlabeled: no rows are left" in problems(tmp_path, validation="val.jsonl", unlabeled="val.jsonl")
    write(tmp_path, [{"response": "1"}], "more.jsonl")
    assert "no column 'prompt' (task.prompt); found are response" in problems(tmp_path, unlabeled="more.jsonl")


def test_one_prompt_cannot_be_validated(tmp_path: Path) -> None:
    write(tmp_path, [ROWS[0], {**ROWS[0], "response": "0"}])
    assert problems(tmp_path) == "task.validation: no rows are left; add rows, or name a file with others"


def test_limit_keeps_that_many_rows_of_train(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    limited, whole = load(tmp_path, limit=5), load(tmp_path)
    assert exchanges(limited.train) == exchanges(whole.train)[:5]
    assert limited.validation.fingerprint == whole.validation.fingerprint


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 3), shuffled=st.randoms())
def test_the_split_is_disjoint_and_free_of_order(
    share: float, seed: int, shuffled: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "exchanges"
    folder.mkdir(exist_ok=True)
    table = [*ROWS, {**ROWS[3], "rationale": "Other."}, {**ROWS[4], "rationale": None}]
    write(folder, table)
    first = load(folder, validation=share, seed=seed)
    shuffled.shuffle(table)
    write(folder, table)
    assert load(folder, validation=share, seed=seed).fingerprint == first.fingerprint
    train, validation = set(first.train.prompts), set(first.validation.prompts)
    assert not train & validation and len(train | validation) == 30
    assert len(validation) == min(29, max(1, round(share * 30)))


def test_identity_is_of_every_column(tmp_path: Path) -> None:
    fingerprints = set()
    for change in ({}, {"prompt": "x"}, {"response": "x"}, {"rationale": "x"}, {"rationale": None}):
        write(tmp_path, [*ROWS[1:], {**ROWS[0], **change}])
        fingerprints.add(load(tmp_path).fingerprint)
    assert len(fingerprints) == 5
    assert load(tmp_path, seed=1).fingerprint not in fingerprints


def test_arithmetic_brings_its_splits() -> None:
    rows = load(Path("/"), train="builtin:arithmetic")
    assert rows.test is not None
    assert [len(split) for split in (rows.train, rows.validation, rows.test)] == [4000, 400, 400]
    assert rows.notes == () and rows.train.num_rationales == 4000
    assert load(Path("/"), train="builtin:arithmetic", limit=10).test.fingerprint == rows.test.fingerprint
    assert "there are no such rows; did you mean 'arithmetic'?" in problems(Path("/"), train="builtin:arithmetics")


@pytest.mark.parametrize(
    ("given_keys", "key", "expected"),
    [
        ({"kind": "generation", "text": "t"}, "text", "kind generation takes no such key; name columns by prompt"),
        ({"kind": "generation", "label": "t"}, "label", "found 't'; kind generation takes no such key"),
        ({"kind": "generation", "metric": "accuracy"}, "metric", "exact_match, rouge_l or perplexity"),
        ({"kind": "generation", "train": "builtin:docstrings"}, "train", "set task.kind: classification"),
        ({"prompt": "p"}, "prompt", "kind classification takes no such key; name columns by text, label and domain"),
        ({"response": "p"}, "response", "kind classification takes no such key"),
        ({"rationale": "p"}, "rationale", "kind classification takes no such key"),
        ({"metric": "rouge_l"}, "metric", "accuracy or macro_f1"),
        ({"train": "builtin:arithmetic"}, "train", "set task.kind: generation"),
    ],
)
def test_keys_of_the_other_kind_are_refused_by_name(given_keys: dict[str, Any], key: str, expected: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Task(**{"train": "x", **given_keys})
    (problem,) = raised.value.errors()
    assert problem["loc"] == (key,)
    assert expected in problem["msg"]


def test_a_task_with_every_default_written_out_is_the_same() -> None:
    for kind, metrics in METRICS.items():
        task = Task(train="x", kind=kind)
        assert task.metric == metrics[0]
        assert Task(**task.model_dump()) == task
    assert sorted(QUALITY_METRICS) == sorted(name for metrics in METRICS.values() for name in metrics)


def test_every_builtin_has_a_kind() -> None:
    kinds = dict.fromkeys(datasets.BUILTINS, "classification") | dict.fromkeys(generation_rows.BUILTINS, "generation")
    assert kinds == KIND_OF_BUILTIN
