"""Arithmetic made from a seed: stories that say what their rationales compute, and splits that share nothing."""

import itertools
import re
from collections import Counter

import pytest

from trainers.arithmetic_text import LARGEST, NUM_STEPS, SPLITS, Problem, arithmetic_corpus, arithmetic_problems, facts

_CHANGES = (
    (r"(?:has|starts with) (\d+) \w+\.", lambda _, start: start),
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
