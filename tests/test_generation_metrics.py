"""Metrics of text: answers are found in what models write, ROUGE-L and perplexity agree with independent references."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from trainers.generation_metrics import RowScores, exact_match, perplexity, quality, rouge_l, same_answer
from trainers.metrics import wilson


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("42", "42"),
        (" 42.\n", "42"),
        ("12 + 30 = 42.", "42"),
        ("12 + 30 = 42. The answer is 42.", "12 + 30 = 42."),
        ("First 50, then 8 less. #### 42", "He has 50 - 8 = <<50-8=42>>42 left.\n#### 42"),
        ("The answer is 41. No: the answer is 42 apples, of 50.", "42"),
        ("Answer is: $1,000", "1000.00"),
        ("007", "7"),
        ("it fell to -5", "-5"),
        ("0", "-0.0"),
        ("50-8=42", "42"),
        ("42%", "42 %"),
        ("The answer is Hockey game.", "hockey  game"),
        ("so the answer is (b)", "B"),
        ("#### yes\nAnd more.", "Yes"),
        ("Paris!", "paris"),
        ("In 1990, the 3 bears.", "in 1990, the 3 bears"),
        ("12345678901234567890123456789012", "12345678901234567890123456789012.0"),
    ],
)
def test_the_same_answer(prediction: str, reference: str) -> None:
    assert same_answer(prediction, reference)
    assert exact_match([prediction], [reference]).value() == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("42 apples of 50", "42"),
        ("#### 41 is less than 42", "42"),
        ("The answer is unknown, 42", "43"),
        ("", "42"),
        ("no number", "42"),
        ("4 2", "42"),
        ("5", "-5"),
        ("4.2", "42"),
        ("1,00", "100"),
        ("12345678901234567890123456789013", "12345678901234567890123456789012"),
        ("the 3 wolves", "the 3 bears"),
        ("He died in 1990", "She was born in 1990"),
        ("hockey", "hockey game"),
        ("", "yes"),
    ],
)
def test_another_answer(prediction: str, reference: str) -> None:
    assert not same_answer(prediction, reference)


# P = matched / words of the prediction, R = matched / words of the reference, F1 = 2 P R / (P + R), by hand.
@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # [Lin2004] § 3.1, S2 against S1
        ("the gunman kill police", "police kill the gunman", 2 / 4),  # S3
        ("a b c", "a x b y c", 2 * 1 * (3 / 5) / (1 + 3 / 5)),
        ("c b a", "a b c", 1 / 3),
        ("A, b.", "a b", 1.0),
        ("a a a a", "a", 2 * (1 / 4) * 1 / (1 / 4 + 1)),
        ("x", "a", 0.0),
        ("", "a", 0.0),
        ("...", "...", 0.0),
        ("größer als", "größer", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("снег идёт", "снег идёт", 1.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l([prediction], [reference]).value() == pytest.approx(expected)


def longest_common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """By the definition: the longest of all subsequences of ``first`` that are subsequences of ``second``."""
    found = {()}
    for word in first:
        found |= {(*start, word) for start in found}

    def is_within(words: tuple[str, ...]) -> bool:
        rest = iter(second)
        return all(word in rest for word in words)

    return max(len(words) for words in found if is_within(words))


_words = st.lists(st.sampled_from("abc"), min_size=1, max_size=8)


@given(first=_words, second=_words)
def test_rouge_l_agrees_with_the_definition(first: list[str], second: list[str]) -> None:
    common = longest_common(tuple(first), tuple(second))
    expected = 2 * common / (len(first) + len(second))
    assert rouge_l([" ".join(first)], [" ".join(second)]).value() == pytest.approx(expected)


@given(
    first=st.text(st.characters(codec="ascii"), max_size=30), second=st.text(st.characters(codec="ascii"), max_size=30)
)
def test_rouge_l_is_the_usual_one_on_ascii(first: str, second: str) -> None:
    usual = RougeScorer(["rougeL"]).score(second, first)["rougeL"].fmeasure
    assert rouge_l([first], [second]).value() == usual


def test_perplexity_agrees_with_torch_and_a_row_weighs_as_many_tokens_as_it_has() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 5, 30]
    logits = [torch.randn(length, 11, generator=generator) for length in lengths]
    labels = [torch.randint(11, (length,), generator=generator) for length in lengths]
    rows = [
        -np.log(np.exp(z.double().numpy())[range(len(y)), y] / np.exp(z.double().numpy()).sum(1)).sum()
        for z, y in zip(logits, labels, strict=True)
    ]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels)).exp()
    assert perplexity(np.array(rows), np.array(lengths)).value() == pytest.approx(float(expected), rel=1e-5)
    assert perplexity(np.array([0.0, 0.0]), np.array([3, 4])).value() == 1.0
    assert perplexity(np.array([1e6]), np.array([1])).value() == np.inf


def test_intervals_hold_the_value_and_shrink_with_rows() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for size in (50, 5000):
        tokens = rng.integers(5, 50, size)
        for scores in (
            perplexity(tokens * rng.uniform(0.5, 1.5, size), tokens),
            RowScores("rouge_l", rng.uniform(0, 1, size), np.ones(size)),
            RowScores("exact_match", (rng.uniform(0, 1, size) < 0.7).astype(float), np.ones(size)),
        ):
            found = quality(scores)
            assert found.low < found.value < found.high
            assert found.value == scores.value()
            assert quality(scores) == found
            widths.append(found.high - found.low)
    assert all(wide > 5 * narrow for wide, narrow in zip(widths[:3], widths[3:], strict=True))


def test_the_interval_of_perplexity_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        tokens = rng.integers(1, 40, 100)
        # Rows of a mean of 1 nat a token, whatever their length: exp(1) is the perplexity of all there could be.
        found = quality(perplexity(tokens * rng.gamma(4, 1 / 4, 100), tokens))
        covered += found.low <= np.e <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_exact_match_has_the_interval_of_a_proportion() -> None:
    found = quality(exact_match(["1", "2", "3", "4"], ["1", "2", "3", "5"]))
    assert (found.value, found.low, found.high) == (0.75, *wilson(3, 4))


def test_rows_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(ValueError, match="each reference needs a prediction"):
        exact_match(["1"], ["1", "2"])
    with pytest.raises(ValueError, match="each row needs a count"):
        rouge_l([], [])
    with pytest.raises(ValueError, match="row 1 has total nan over 2"):
        perplexity(np.array([1.0, np.nan]), np.array([2, 2]))
    with pytest.raises(ValueError, match=r"row 0 has total 1\.0 over 0"):
        perplexity(np.array([1.0]), np.array([0]))
