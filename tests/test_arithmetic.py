"""Arithmetic made from a seed: stories that say what their rationales compute, and a base that has read such text."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.arithmetic_base import Pretraining, _packed_rows, arithmetic_base, facts_right, make_tokenizer, pretrain
from trainers.arithmetic_text import LARGEST, NUM_STEPS, SPLITS, Problem, arithmetic_corpus, arithmetic_problems, facts
from trainers.losses import IGNORED
from trainers.model_files import ModelError, content_hashes, find_model

_CHANGES = (
    (r"(?:has|starts with) (\d+) \w+\.", lambda have, n: have + n),
    (r"(?:buys|finds) (\d+) more", lambda have, n: have + n),
    (r"(?:loses|sells) (\d+) \w+\.", lambda have, n: have - n),
    (r"(?:gets|buys) (\d+) (?:boxes|bags) (?:with|of) (\d+)", lambda have, k, n: have + k * n),
    (r"gives (\d+) \w+ to each of (\d+)", lambda have, n, k: have - k * n),
    (r"sells (\d+) bags of (\d+)", lambda have, k, n: have - k * n),
    (r"has (\d+) times as many \w+\.", lambda have, k: have * k),
    (r"shares .* between (\d+) boxes", lambda have, k: have / k),
    (r"puts .* into (\d+) bags\.", lambda have, k: have / k),
    (r"has (\d+) times as many \w+ as", lambda have, k: have * k),
    (r"has (\d+) \w+ fewer than", lambda have, n: have - n),
    (r"has (\d+) \w+ more than", lambda have, n: 2 * have + n),
)


def understood(prompt: str) -> float:
    """The answer, by reading the story and not its rationale."""
    sentences = re.findall(r"[^.?]+[.?]", prompt)
    assert sentences[-1].startswith(" How many ")
    who = re.match(r"(?:At first )?(\w+)", sentences[0])
    assert who is not None
    have = 0.0
    for sentence in sentences[:-1]:
        if gift := re.fullmatch(r" (\w+) gives (\w+) (\d+) \w+\.", sentence):
            have += int(gift[3]) if gift[2] == who[1] else -int(gift[3])
            continue
        (change,) = [(match, change) for pattern, change in _CHANGES if (match := re.search(pattern, sentence))]
        have = change[1](have, *map(int, change[0].groups()))
    return have


def computed(rationale: str) -> tuple[int, list[tuple[int, str, int]]]:
    """The last result and all steps of a rationale, every one of them checked."""
    steps = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)\.", rationale)
    assert " ".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in steps) == rationale
    for a, sign, b, c in steps:
        exact = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b), "/": int(a) / int(b)}[sign]
        assert exact == int(c) and 1 <= int(c) <= LARGEST
    return int(steps[-1][3]), [(int(a), sign, int(b)) for a, sign, b, _ in steps]


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    return arithmetic_problems(sizes={"train": 600, "validation": 100, "test": 100})


def test_stories_say_what_their_rationales_compute(problems: dict[str, list[Problem]]) -> None:
    for problem in itertools.chain(*problems.values()):
        result, steps = computed(problem.rationale)
        assert str(result) == problem.response
        assert understood(problem.prompt) == result
        assert len(steps) in NUM_STEPS


def test_every_operation_number_of_steps_and_way_of_asking_is_frequent(problems: dict[str, list[Problem]]) -> None:
    train = [computed(problem.rationale)[1] for problem in problems["train"]]
    assert all(count > 150 for count in Counter(map(len, train)).values())
    signs = Counter(sign for steps in train for _, sign, _ in steps)
    assert set(signs) == set("+-x/") and min(signs.values()) > 100
    questions = Counter(problem.prompt.split()[-1] for problem in problems["train"])
    assert set(questions) == {"now?", "bag?", "have?", "together?"} and min(questions.values()) > 60


def test_the_commonest_answer_is_rare(problems: dict[str, list[Problem]]) -> None:
    answers = Counter(problem.response for problem in problems["train"])
    assert answers.most_common(1)[0][1] < 0.1 * len(problems["train"])


def test_no_calculation_is_in_two_problems(problems: dict[str, list[Problem]]) -> None:
    everything = [problem for split in problems.values() for problem in split]
    assert [len(split) for split in problems.values()] == [600, 100, 100]
    assert list(problems) == list(SPLITS)
    assert len({problem.rationale for problem in everything}) == len(everything)
    assert len({problem.prompt for problem in everything}) == len(everything)


def test_a_seed_makes_the_same_problems_and_test_does_not_depend_on_the_size_of_train() -> None:
    sizes = {"train": 20, "validation": 5, "test": 5}
    first = arithmetic_problems(3, sizes)
    assert arithmetic_problems(3, sizes) == first
    assert arithmetic_problems(4, sizes) != first
    assert arithmetic_problems(3, {**sizes, "train": 2})["test"] == first["test"]
    assert arithmetic_problems(3, {**sizes, "train": 2})["train"] == first["train"][:2]


def test_facts_are_right_and_complete() -> None:
    known = facts()
    assert len(known) == len(set(known))
    sums = {(step.left, step.right) for step in known if step.sign == "+"}
    assert sums == {(a, b) for a in range(1, 30) for b in range(1, 30) if a + b <= 30}
    for step in known:
        assert computed(f"{step}.") == (step.result, [(step.left, step.sign, step.right)])


def test_the_corpus_knows_one_step_only() -> None:
    documents = list(itertools.islice(arithmetic_corpus(1), 400))
    assert documents == list(itertools.islice(arithmetic_corpus(1), 400))
    kinds = Counter()
    for text in documents:
        if "?" in text:
            story, question, rest = re.split(r"(?<=\.)( How many [^?]*\?) ", text)
            solution, _, answer = rest.partition(" The answer is ")
            result, steps = computed(solution)
            assert answer == f"{result}." and len(steps) == 1
            assert understood(story + question) == result
            kinds["solved"] += 1
        elif "=" in text:
            assert len(computed(text)[1]) == 10
            kinds["facts"] += 1
        else:
            assert not re.search(r"answer|=", text)
            kinds["story"] += 1
    assert min(kinds.values()) > 60


def test_the_language_is_small(problems: dict[str, list[Problem]]) -> None:
    prompts = (problem.prompt for split in problems.values() for problem in split)
    words = Counter(re.findall(r"[A-Za-z]+", " ".join([*prompts, *itertools.islice(arithmetic_corpus(), 400)])))
    assert len(words) < 100


TINY = Pretraining(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    intermediate_size=64,
    max_tokens=96,
    num_vocabulary_documents=1500,
    num_steps=25,
    batch_size=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(TINY)


def test_words_and_digits_are_single_tokens(tokenizer: Any, problems: dict[str, list[Problem]]) -> None:
    for problem in problems["test"]:
        text = f"{problem.prompt} {problem.rationale}"
        tokens = tokenizer.tokenize(text)
        pieces = re.findall(r" ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]", text)
        assert tokens == [piece.replace(" ", "Ġ") for piece in pieces]


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_goes_through_the_tokenizer_and_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_is_made_alike_every_time(tokenizer: Any) -> None:
    assert make_tokenizer(TINY).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_pretraining_learns_and_depends_on_its_settings_alone(tmp_path: Path) -> None:
    said: list[str] = []
    outcomes = [pretrain(tmp_path / name, TINY, say=said.append) for name in "ab"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].loss < 0.9 * np.log(len(tokenizer))
    assert content_hashes(tmp_path / "a", ("*",)) == content_hashes(tmp_path / "b", ("*",))
    assert model.config.num_hidden_layers == 2 and model.config.vocab_size == len(tokenizer)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 96
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "</s>")
    assert "step 25 of 25, loss" in said[0]
    other = pretrain(tmp_path / "c", replace(TINY, seed=1), say=said.append)
    assert other.loss != outcomes[0].loss


def test_facts_are_right_when_the_model_writes_them(tokenizer: Any) -> None:
    class Knowing:
        """Answers with the row itself, shifted; but gets every result of 7 wrong."""

        def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
            shifted = torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)
            seven = tokenizer(" = 7.", add_special_tokens=False)["input_ids"]
            for row in shifted.tolist():
                assert tokenizer.pad_token_id not in row[:5]
            for end in range(2, shifted.shape[1]):
                hit = (shifted[:, end - 2 : end + 1] == torch.tensor(seven)).all(dim=1)
                shifted[hit, end - 1] += 1
            shifted[:, 0] = 0  # what is asked, and not answered, does not count
            return SimpleNamespace(logits=torch.nn.functional.one_hot(shifted, len(tokenizer)).float())

    sevens = sum(step.result == 7 for step in facts())
    assert facts_right(Knowing(), tokenizer) == pytest.approx(1 - sevens / len(facts()))  # type: ignore[arg-type]


def test_the_base_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "cache"))
    folder = arithmetic_base(settings=TINY)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    monkeypatch.setattr("trainers.arithmetic_base.pretrain", lambda *_, **__: pytest.fail("pretrained twice"))
    assert arithmetic_base(settings=TINY) == folder
    assert find_model(str(folder)) == folder


def test_a_broken_off_or_a_second_pretraining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DISTUNE_CACHE", str(cache))

    def overtaken(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("mine")
        name = folder.parent.name.split(".")[1]
        (cache / name).mkdir()
        (cache / name / "config.json").write_text("theirs")

    def broken_off(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.arithmetic_base.pretrain", broken_off)
    with pytest.raises(KeyboardInterrupt):
        arithmetic_base(settings=TINY)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr("trainers.arithmetic_base.pretrain", overtaken)
    assert (arithmetic_base(settings=TINY) / "config.json").read_text() == "theirs"
    assert len(list(cache.iterdir())) == 1


def test_the_base_is_found_by_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.arithmetic_base.arithmetic_base", lambda: tmp_path)
    assert find_model("builtin:arithmetic") == tmp_path
    with pytest.raises(ModelError, match="no such built-in model; there is builtin:arithmetic"):
        find_model("builtin:arithmetics")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ModelError, match=r"builtin:arithmetic: .*file"):
        find_model("builtin:arithmetic")


def test_rows_are_packed_and_of_facts_the_results_alone_are_learned(tokenizer: Any) -> None:
    rows = [batch for batch, _ in zip(_packed_rows(tokenizer, TINY), range(10), strict=False)]
    ids = torch.cat([ids.flatten() for ids, _ in rows])
    labels = torch.cat([labels.flatten() for _, labels in rows])
    whole = tokenizer.decode(ids)
    assert whole.startswith("<s>") and "<pad>" not in whole
    documents = list(itertools.islice(arithmetic_corpus(TINY.seed), whole.count("<s>")))
    assert "".join(f"<s>{text}</s>" for text in documents).startswith(whole)
    learned = tokenizer.decode(ids[labels == ids])
    expected = "".join(
        "".join(re.findall(r"(?<==)[^.]*\.", text)) if text[0].isdigit() else f"<s>{text}</s>" for text in documents
    )
    assert expected.startswith(learned) and len(learned) > 500
    assert torch.equal(labels[labels != ids], torch.full((int((labels != ids).sum()),), IGNORED))
