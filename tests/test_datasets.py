"""Rows: every format reads alike, bad rows are named, and no text is in two splits."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.task import Task
from trainers.datasets import RETAIN_ROWS, DataError, TaskRows, load_task, quotas, sorted_labels

ROWS = [{"text": f"text {i}, with a comma", "label": ("red", "green", "blue")[i % 3]} for i in range(30)]


def write(folder: Path, rows: list[Any], name: str = "train.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        options = pacsv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
        pacsv.write_csv(pa.Table.from_pylist(rows), path, options)
    return path


def load(folder: Path, seed: int = 0, **settings: Any) -> TaskRows:
    return load_task(Task(**{"train": "train.jsonl", **settings}), seed=seed, folder=folder)


def problems(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, **settings)
    return "\n".join(raised.value.problems)


def pairs(rows: TaskRows, split: str) -> list[tuple[str, str]]:
    found = getattr(rows, split)
    return [(text, rows.labels[label]) for text, label in zip(found.texts, found.labels, strict=True)]


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv", "train.parquet"])
def test_formats_read_alike(name: str, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS, name)
    rows = load(tmp_path, train=name)
    assert rows.labels == ("blue", "green", "red")
    assert rows.fingerprint == load(tmp_path).fingerprint
    assert sorted(pairs(rows, "train") + pairs(rows, "validation")) == sorted(tuple(row.values()) for row in ROWS)


def test_globs_and_object_stores(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:10], "parts/a.jsonl")
    write(tmp_path, ROWS[10:], "parts/deep/b.csv")
    expected = load(tmp_path).fingerprint
    assert load(tmp_path, train="parts/**/*.*").fingerprint == expected
    assert load(Path("/"), train=str(tmp_path / "parts/**/*.*")).fingerprint == expected
    fsspec.filesystem("memory").pipe("/rows/train.jsonl", (tmp_path / "train.jsonl").read_bytes())
    assert load(tmp_path, train="memory://rows/train.jsonl").fingerprint == expected


def test_a_split_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ROWS)
    files = fsspec.filesystem("memory")
    for config in ("default", "other"):
        path = write(tmp_path, ROWS, f"{config}.parquet")
        files.pipe(f"/datasets/owner/{config}@~parquet/default/train/0000.parquet", path.read_bytes())
        files.pipe(f"/datasets/owner/two@~parquet/{config}/train/0000.parquet", path.read_bytes())

    class Hub:
        def glob(self, pattern: str) -> list[str]:
            return [str(path) for path in files.glob(f"/{pattern}")]

        def read_bytes(self, path: str) -> bytes:
            return bytes(files.cat_file(path))

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    expected = load(tmp_path).fingerprint
    assert load(tmp_path, train="hf://owner/default/train").fingerprint == expected
    assert load(tmp_path, train="hf://owner/two/other/train").fingerprint == expected
    assert "several configurations, default, other" in problems(tmp_path, train="hf://owner/two/train")
    assert "no Parquet files of such a split" in problems(tmp_path, train="hf://owner/none/train")
    assert "expected hf://owner/name/split" in problems(tmp_path, train="hf://owner")


def test_a_hub_out_of_reach_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def glob(self, pattern: str) -> list[str]:
            raise ConnectionError(f"no route for {pattern}")

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Away)
    found = problems(tmp_path, train="hf://owner/name/train")
    assert "task.train: hf://owner/name/train: cannot be read: no route" in found
    assert "name files on this machine" in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b'{"text": "a", "label": 1}\n\n{"text": "b", "label"\n', "line 3: broken JSON: Expecting ':' delimiter"),
        (b'{"text": "a", "label": 1}\n[1]\n', "line 2: found list; expected one object a line"),
        (b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 2}\n', "line 2: byte 0xff is not UTF-8"),
        (b'\xef\xbb\xbf{"text": "a", "label": 1}\n{"text": "\xff", "label": 2}\n', "line 2: byte 0xff is not UTF-8"),
        (b'{"txt": "a", "label": 1}\n', "no column 'text' (task.text); found are txt, label; did you mean 'txt'?"),
        (b'{"text": 3, "label": 1}\n', "line 1: text is 3; expected text"),
        (b'{"text": "a", "label": [1]}\n', "line 1: label is [1]; expected text, a whole number"),
        (b'{"text": "a", "label": 0.5}\n', "line 1: label is 0.5"),
        (b'{"text": "", "label": 1}\n{"text": "a", "label": null}', "none of the 2 rows has a text and a label"),
        (b'{"text": "a", "label": 1}\n{"text": "b", "label": 1}', "one class only, '1'; expected at least two"),
        (b"{" * 100_000, "line 1: broken JSON"),
    ],
)
def test_bad_json_lines_are_named(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    found = problems(tmp_path)
    assert found.startswith("task.train: ")
    assert expected in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"text,label\na,1\nb,2,3\n", "line 3: found 3 columns; expected 2; put quotes around"),
        (b"text,label\na,1\n\xff,2\n", "line 3: byte 0xff is not UTF-8"),
        (b"text,lable\na,1\n", "no column 'label' (task.label); found are text, lable; did you mean 'lable'?"),
        (b'text,label\n"a\nb",1\nb,2,3\n', "line 4: found 3 columns; expected 2"),
        (b"text,label,text\na,1,b\n", "column 'text' is there twice; rename one of them"),
        (b"text,label\n", "has no rows"),
    ],
)
def test_bad_csv_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    assert expected in problems(tmp_path, train="train.csv")


def test_bad_parquet_and_unknown_formats(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    assert "is no whole Parquet file" in problems(tmp_path, train="x.parquet")
    (tmp_path / "x.xlsx").write_bytes(b"x")
    assert "found a file of type '.xlsx'; expected one of .jsonl" in problems(tmp_path, train="x.xlsx")
    assert "there are no such rows; did you mean 'docstrings'?" in problems(tmp_path, train="builtin:docstrngs")


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n" * 20)
    found = problems(tmp_path).splitlines()
    assert len(found) == 6
    assert found[-1].endswith("and 15 more lines")


def test_problems_of_all_splits_at_once(tmp_path: Path) -> None:
    write(tmp_path, ROWS, "train.jsonl")
    found = problems(tmp_path, validation="trian.jsonl", test="no/such.csv").splitlines()
    assert found[0].endswith("trian.jsonl: no such file; did you mean 'train.jsonl'?")
    assert "there is no folder" in found[1]
    assert "is a folder; expected a file" in problems(tmp_path.parent, train=tmp_path.name)
    assert "no file matches" in problems(tmp_path, train="*.csv")


def test_a_label_that_train_lacks_is_named(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, [{"text": "new", "label": "bleu"}, {"text": "text", "label": "red"}], "val.jsonl")
    expected = "task.validation: label 'bleu' (1 rows) does not occur in train; did you mean 'blue'?"
    assert expected in problems(tmp_path, validation="val.jsonl")


def test_rows_without_text_or_label_are_left_out_and_noted(tmp_path: Path) -> None:
    odd = [{"text": None, "label": "red"}, {"text": " \t", "label": "red"}, {"text": "x", "label": None}, {"text": "y"}]
    write(tmp_path, [*ROWS, *odd, {"text": float("nan"), "label": "red"}, {"text": "z", "label": float("nan")}])
    rows = load(tmp_path)
    assert len(rows.train) + len(rows.validation) == len(ROWS)
    assert rows.notes == (
        "train: 3 of 36 rows without a text left out",
        "train: 3 of 36 rows without a label left out",
    )


def test_labels_of_every_type_have_one_name(tmp_path: Path) -> None:
    for values, names in (
        ([10, 2, 1], ("1", "2", "10")),
        ([True, False], ("false", "true")),
        (["b", "a ", "a"], ("a", "b")),
    ):
        rows = [{"text": f"{value} {i}", "label": value} for value in values for i in range(10)]
        write(tmp_path, rows)
        assert load(tmp_path).labels == names
    write(tmp_path, [{"text": f"{i}", "label": i % 2 if i else None} for i in range(20)], "train.parquet")
    assert load(tmp_path, train="train.parquet").labels == ("0", "1")
    assert sorted_labels({"1", "01", "a"}) == ("01", "1", "a")


def test_a_text_is_kept_in_one_split_and_contradictions_are_noted(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, {"text": ROWS[5]["text"], "label": "red"}])
    write(tmp_path, [ROWS[0], {"text": ROWS[1]["text"], "label": "red"}], "val.jsonl")
    write(tmp_path, [ROWS[0], ROWS[2]], "test.jsonl")
    rows = load(tmp_path, validation="val.jsonl", test="test.jsonl")
    assert rows.test is not None
    texts = [set(split.texts) for split in (rows.train, rows.validation, rows.test)]
    assert [len(found) for found in texts] == [27, 1, 2]
    assert sum(map(len, texts)) == len(set.union(*texts))
    assert rows.notes == (
        "validation: 1 rows whose text is also in test left out",
        "train: 2 rows whose text is also in test left out",
        "train: 1 rows whose text is also in validation left out, 1 of them with another label there",
        "train: 1 texts occur with different labels",
    )


def test_a_class_with_one_example_stays_in_train(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, {"text": "only one", "label": "rare"}])
    rows = load(tmp_path, validation=0.5)
    assert ("only one", "rare") in pairs(rows, "train")
    assert "1 classes have one text only" in rows.notes[0] and "rare" in rows.notes[0]


def test_classes_of_one_example_each_cannot_be_validated(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "a", "label": 1}, {"text": "b", "label": 2}])
    assert "task.validation: no rows are left" in problems(tmp_path)


def test_texts_of_any_length_and_broken_surrogates(tmp_path: Path) -> None:
    long = "word, " * 20_000
    write(tmp_path, [*ROWS, {"text": "half \ud800 pair", "label": "red"}, {"text": long, "label": "red"}])
    everything = {text for split in ("train", "validation") for text, _ in pairs(load(tmp_path), split)}
    assert {"half ? pair", long} <= everything
    write(tmp_path, [*ROWS, {"text": long, "label": "red"}], "train.csv")
    rows = load(tmp_path, train="train.csv")
    assert long in rows.train.texts + rows.validation.texts


def test_lines_end_only_at_line_ends(tmp_path: Path) -> None:
    table = [*ROWS, {"text": "a\u2028b", "label": "red"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in table]
    (tmp_path / "train.jsonl").write_bytes("\r\n".join(lines).encode())
    rows = load(tmp_path)
    assert "a\u2028b" in rows.train.texts + rows.validation.texts


def test_limit_takes_the_same_share_of_each_class(tmp_path: Path) -> None:
    write(tmp_path, [{"text": f"{label} {i}", "label": label} for label, n in (("a", 60), ("b", 30)) for i in range(n)])
    rows = load(tmp_path, limit=27)
    assert Counter(label for _, label in pairs(rows, "train")) == {"a": 18, "b": 9}
    assert len(rows.validation) == 9
    write(tmp_path, ROWS)
    assert "task.limit: found 2; train has 3 classes" in problems(tmp_path, limit=2)


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_every_row_of_train_has_the_domain_it_came_with(name: str, tmp_path: Path) -> None:
    rows = [{**row, "shop": ("bank", 7, None)[i % 3] if i else "x"} for i, row in enumerate(ROWS)]
    again = [{**rows[3], "shop": "a"}]
    write(
        tmp_path, [{**row, "shop": None if row["shop"] is None else str(row["shop"])} for row in [*rows, *again]], name
    )
    found = load(tmp_path, train=name, domain="shop")
    expected = {row["text"]: str(row["shop"] or "") for row in rows} | {ROWS[3]["text"]: "a"}
    assert found.domains == tuple(expected[text] for text in found.train.texts)
    plain = load(tmp_path, train=name)
    assert plain.domains is None and plain.fingerprint == found.fingerprint


def test_domains_must_be_in_train_alone(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    assert "no column 'shop' (task.domain)" in problems(tmp_path, domain="shop")
    with pytest.raises(ValueError, match="the rows of builtin:docstrings have no domains"):
        load(tmp_path, train="builtin:docstrings", domain="shop")
    write(tmp_path, [{**row, "shop": "ab"[i % 2]} for i, row in enumerate(ROWS)])
    write(tmp_path, [{"text": "new", "label": "red"}], "validation.jsonl")
    assert set(load(tmp_path, domain="shop", validation="validation.jsonl").domains or ()) == {"a", "b"}


@pytest.mark.parametrize(("shop", "said"), [("a", "'a'"), (None, "empty")])
def test_a_domain_that_tells_nothing_apart_is_an_error(shop: str | None, said: str, tmp_path: Path) -> None:
    write(tmp_path, [{**row, "shop": shop} for row in ROWS])
    assert f"task.domain: found 'shop', which is {said} in all " in problems(tmp_path, domain="shop")


def test_unlabeled_texts_are_new_to_validation_and_test_and_there_once(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:4], "val.jsonl")
    write(tmp_path, [ROWS[5]], "test.jsonl")
    more = [*ROWS[:6], {"text": "new"}, {"text": "new"}, {"text": None}, {"text": "newer", "label": [1]}]
    files = {"validation": "val.jsonl", "test": "test.jsonl"}
    plain = load(tmp_path, **files)
    found = {}
    for name, table in (("more.jsonl", more), ("more.csv", [{"n": 1, "text": row["text"]} for row in more])):
        write(tmp_path, table, name)
        rows = load(tmp_path, unlabeled=name, **files)
        assert rows.unlabeled is not None
        assert sorted(rows.unlabeled.texts) == ["new", "newer", ROWS[4]["text"]]
        assert rows.unlabeled.labels.tolist() == [-1, -1, -1]
        assert rows.fingerprint == plain.fingerprint and rows.labels == plain.labels
        assert set(rows.notes) - set(plain.notes) == {
            "unlabeled: 1 of 10 rows without a text left out",
            "unlabeled: 1 rows whose text is there twice left out",
            "unlabeled: 5 rows whose text is also in validation or test left out",
        }
        found[name] = rows.unlabeled.fingerprint
    assert found["more.jsonl"] == found["more.csv"]
    assert plain.unlabeled is None
    assert set(rows.splits) == {"train", "validation", "test", "unlabeled"}


def test_unlabeled_texts_that_are_of_no_use(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:4], "val.jsonl")
    assert "task.unlabeled: no rows are left" in problems(tmp_path, validation="val.jsonl", unlabeled="val.jsonl")
    write(tmp_path, [{"label": "red"}], "more.jsonl")
    assert "no column 'text' (task.text); found are label" in problems(tmp_path, unlabeled="more.jsonl")
    (tmp_path / "more.csv").write_text("")
    assert "is empty; expected rows with columns 'text'" in problems(tmp_path, unlabeled="more.csv")


def test_rows_to_retain_have_labels_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    general = [{"text": f"general {i}", "label": ("verb", "noun")[i % 2]} for i in range(10)]
    write(tmp_path, [*general, general[0], {"text": "none", "label": None}], "general.jsonl")
    rows = load(tmp_path, retain="general.jsonl")
    assert rows.retain is not None
    assert sorted(zip(rows.retain.texts, rows.retain.labels.tolist(), strict=True)) == [
        (f"general {i}", 1 - i % 2) for i in range(10)
    ]
    assert (rows.labels, rows.fingerprint) == (("blue", "green", "red"), load(tmp_path).fingerprint)
    assert rows.notes == (
        "retain: 1 of 12 rows without a label left out",
        "retain: 1 rows whose text is there twice left out",
    )
    write(tmp_path, [general[0], general[1], general[3]], "general.jsonl")
    expected = "task.retain: found 2 classes with 3 texts; expected at least two"
    assert expected in problems(tmp_path, retain="general.jsonl")


def test_of_many_rows_to_retain_some_are_used(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, [{"text": f"{i}", "label": "ab"[i % 4 == 0]} for i in range(RETAIN_ROWS + 400)], "general.jsonl")
    rows = load(tmp_path, retain="general.jsonl")
    assert rows.retain is not None
    assert np.bincount(rows.retain.labels).tolist() == [3 * RETAIN_ROWS // 4, RETAIN_ROWS // 4]
    assert rows.notes == ("retain: 4000 of 4400 rows used",)


def test_identity_is_of_content_and_not_of_seed_alone(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    first = load(tmp_path)
    assert load(tmp_path, seed=1).fingerprint != first.fingerprint
    write(tmp_path, [*ROWS[1:], {"text": ROWS[0]["text"], "label": "blue"}])
    assert load(tmp_path).fingerprint != first.fingerprint
    write(tmp_path, [{**row, "label": row["label"].upper()} for row in ROWS])
    assert load(tmp_path).fingerprint != first.fingerprint


_rows = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), min_size=1, max_size=2), st.sampled_from("abc")), max_size=60
)


@given(rows=_rows, share=st.floats(0.05, 0.9), shuffled=st.randoms())
def test_the_split_is_stratified_disjoint_and_free_of_order(
    rows: list[tuple[str, str]], share: float, shuffled: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "split"
    table = [{"text": f"x{text}", "label": label} for text, label in rows]
    table += [{"text": f"{label} {i}", "label": label} for label in "abc" for i in range(10)]
    write(folder, table)
    first = load(folder, validation=share)
    shuffled.shuffle(table)
    write(folder, table)
    assert load(folder, validation=share).fingerprint == first.fingerprint
    train, validation = set(first.train.texts), set(first.validation.texts)
    assert not train & validation
    assert train | validation == {row["text"] for row in table}
    assert abs(len(validation) - share * len(train | validation)) <= 3


@given(
    counts=st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=12),
    share=st.floats(0, 1),
    least=st.integers(0, 1),
)
def test_quotas_are_within_one_of_the_exact_share(counts: dict[str, int], share: float, least: int) -> None:
    total = max(round(share * sum(counts.values())), least * len(counts))
    given_out = quotas(counts, total, least=least)
    assert sum(given_out.values()) == total
    assert all(least <= given_out[name] <= count for name, count in counts.items())
    if not least:
        exact = {name: total * count / sum(counts.values()) for name, count in counts.items()}
        assert all(abs(given_out[name] - exact[name]) < 1 + 1e-9 for name in counts)
