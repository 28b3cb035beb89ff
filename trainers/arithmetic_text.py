"""``builtin:arithmetic``: word problems of two to four steps, and general text in the same language, made from a seed.

A problem has a prompt, a rationale (its steps, each a line of arithmetic) and a response (a whole number from 1 to 30).
The general text holds single facts, stories without a question, and solved problems of one step: who has read it knows
the language and the arithmetic, but has never seen several steps belong to one question.
"""

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

LARGEST = 30
"""No number in any text is larger: a base of a million parameters learns most single steps in minutes."""
NUM_STEPS = (2, 3, 4)
"""Steps of a problem; each number of them is as frequent as the others."""
SPLITS = {"train": 4000, "validation": 400, "test": 400}
"""Problems of each split."""

_NAMES = ("Ann", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Lena", "Max")
_THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "keys",
    "pencils",
    "shells",
    "stamps",
    "stars",
    "toys",
)
_FACTORS = (2, 5)
"""Smallest and largest number of boxes, friends, times."""
_AMOUNTS = (2, 12)
"""Smallest and largest number that is added, taken away, or in a box."""
_STARTS = (3, 20)
_OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True)
class Step:
    """One operation on two whole numbers."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """What comes out; the whole part of it where it is no whole number."""
        return _OPERATIONS[self.sign](self.left, self.right)

    @property
    def fits(self) -> bool:
        """Whether the result is exact and within 1 … ``LARGEST``."""
        exact = self.sign != "/" or self.left % self.right == 0
        return exact and 1 <= self.result <= LARGEST

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A question, how it is answered, and the answer."""

    prompt: str
    rationale: str
    response: str


@dataclass(frozen=True)
class _Part:
    """A sentence of a story, and what it does to the number of things that someone has.

    ``sentences`` say the same in several ways. ``steps`` are (left, sign, right): ``have``, an amount ``n``, a factor
    ``k``, or ``last``, the result of the step before.
    """

    sentences: tuple[str, ...]
    steps: tuple[tuple[str, str, str], ...]

    def work_out(self, *, have: int, n: int, k: int) -> list[Step]:
        """The steps with their numbers."""
        numbers = {"have": have, "n": n, "k": k}
        found = []
        for left, sign, right in self.steps:
            found.append(Step(numbers[left], sign, numbers[right]))
            numbers["last"] = found[-1].result
        return found


_EVENTS = (
    _Part(
        ("{who} buys {n} more {things}.", "{who} finds {n} more {things}.", "{other} gives {who} {n} {things}."),
        (("have", "+", "n"),),
    ),
    _Part(
        ("{who} loses {n} {things}.", "{who} sells {n} {things}.", "{who} gives {other} {n} {things}."),
        (("have", "-", "n"),),
    ),
    _Part(
        ("{who} gets {k} boxes with {n} {things} in each box.", "{who} buys {k} bags of {n} {things}."),
        (("k", "x", "n"), ("have", "+", "last")),
    ),
    _Part(
        ("{who} gives {n} {things} to each of {k} friends.", "{who} sells {k} bags of {n} {things}."),
        (("k", "x", "n"), ("have", "-", "last")),
    ),
    _Part(
        ("Soon {who} has {k} times as many {things}.", "A year later {who} has {k} times as many {things}."),
        (("have", "x", "k"),),
    ),
    _Part(("{who} shares the {things} equally between {k} boxes and keeps one box.",), (("have", "/", "k"),)),
)
_ENDINGS = (
    _Part(("How many {things} does {who} have now?",), ()),
    _Part(
        ("{who} puts the {things} equally into {k} bags. How many {things} are in each bag?",),
        (("have", "/", "k"),),
    ),
    _Part(
        ("{other} has {k} times as many {things} as {who}. How many {things} does {other} have?",),
        (("have", "x", "k"),),
    ),
    _Part(
        ("{other} has {n} {things} fewer than {who}. How many {things} does {other} have?",),
        (("have", "-", "n"),),
    ),
    _Part(
        ("{other} has {n} {things}. How many {things} do they have together?",),
        (("have", "+", "n"),),
    ),
    _Part(
        ("{other} has {n} {things} more than {who}. How many {things} do they have together?",),
        (("have", "+", "n"), ("have", "+", "last")),
    ),
)
_OPENINGS = (
    "{who} has {start} {things}.",
    "At first {who} has {start} {things}.",
    "{who} starts with {start} {things}.",
)


def arithmetic_problems(seed: int = 0, sizes: Mapping[str, int] = SPLITS) -> dict[str, list[Problem]]:
    """Problems by split. No two of all of them, in one split or in two, are the same calculation.

    They are made from the last split to the first, so that test does not depend on the number to train on.
    """
    rng = random.Random(f"problems {seed}")
    known: set[str] = set()
    splits = {name: [_new_problem(rng, known) for _ in range(sizes[name])] for name in list(sizes)[::-1]}
    return {name: splits[name] for name in sizes}


def arithmetic_corpus(seed: int = 0) -> Iterator[str]:
    """General text, one document after another without end: facts, stories, and solved problems of one step."""
    rng = random.Random(f"corpus {seed}")
    while True:
        yield rng.choice((_facts, _facts, _facts, _story, _solved))(rng)


def facts() -> list[Step]:
    """Every single step whose numbers are all within 1 … ``LARGEST`` and, for x and /, one factor within 2 … 10."""
    numbers = range(1, LARGEST + 1)
    pairs = [Step(left, sign, right) for sign in "+-" for left in numbers for right in numbers]
    for left in numbers:
        pairs += [Step(left, "x", factor) for factor in range(2, 11)]
        pairs += [Step(factor, "x", left) for factor in range(2, 11) if not 2 <= left <= 10]
        pairs += [Step(left, "/", factor) for factor in range(2, 11)]
    return [step for step in pairs if step.fits]


_FACTS_TOGETHER = 10
_TRIES = 30
"""Numbers that are tried for a story: some stories fit seldom, such as three times as many of three times as many."""
_FACTS = {sign: [step for step in facts() if step.sign == sign] for sign in "+-x/"}


def _facts(rng: random.Random) -> str:
    return _written([rng.choice(_FACTS[rng.choice("++--x/")]) for _ in range(_FACTS_TOGETHER)])


def _story(rng: random.Random) -> str:
    text, _ = _draw(rng, num_steps=rng.choice(NUM_STEPS))
    return text.removesuffix(text[text.rindex(" How many") :])


def _solved(rng: random.Random) -> str:
    text, steps = _draw(rng, num_steps=1)
    return f"{text} {_written(steps)} The answer is {steps[-1].result}."


def _new_problem(rng: random.Random, known: set[str]) -> Problem:
    num_steps = rng.choice(NUM_STEPS)
    while True:
        prompt, steps = _draw(rng, num_steps=num_steps)
        rationale = _written(steps)
        if rationale not in known:
            known.add(rationale)
            return Problem(prompt, rationale, str(steps[-1].result))


def _written(steps: Sequence[Step]) -> str:
    return " ".join(f"{step}." for step in steps)


def _draw(rng: random.Random, *, num_steps: int) -> tuple[str, list[Step]]:
    """A text that ends in a question, and the ``num_steps`` steps to its answer."""
    while True:
        parts = _parts(rng, num_steps)
        for _ in range(_TRIES):
            text, steps = _tell(rng, parts)
            if all(step.fits for step in steps):
                return text, steps


def _tell(rng: random.Random, parts: Sequence[_Part]) -> tuple[str, list[Step]]:
    """A story of these parts and its steps, up to the first part whose steps do not fit."""
    who, other = rng.sample(_NAMES, 2)
    words = {"who": who, "other": other, "things": rng.choice(_THINGS)}
    have = rng.randint(*_STARTS)
    sentences = [rng.choice(_OPENINGS).format(start=have, **words)]
    steps: list[Step] = []
    for part in parts:
        n, k = rng.randint(*_AMOUNTS), rng.randint(*_FACTORS)
        sentences.append(rng.choice(part.sentences).format(n=n, k=k, **words))
        steps += part.work_out(have=have, n=n, k=k)
        have = steps[-1].result if steps else have
        if not all(step.fits for step in steps):
            break
    return " ".join(sentences), steps


def _parts(rng: random.Random, num_steps: int) -> list[_Part]:
    """Events and an ending, ``num_steps`` steps together."""
    ending = rng.choice([part for part in _ENDINGS if len(part.steps) <= num_steps])
    missing, parts = num_steps - len(ending.steps), []
    while missing > 0:
        parts.append(rng.choice([part for part in _EVENTS if len(part.steps) <= missing]))
        missing -= len(parts[-1].steps)
    return [*parts, ending]
