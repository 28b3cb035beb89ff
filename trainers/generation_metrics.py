"""Quality metrics of text that a model wrote, or would write: exact match of answers, ROUGE-L, perplexity.

Every metric is made of a sum over rows divided by a sum over rows, so that its interval is a bootstrap over rows, and
two models can be compared on the same rows.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.metrics import RESAMPLES, Quality, wilson

RATIONALE_END = "####"
"""Stands between a rationale and the response that it leads to."""
_MARKS = re.compile(rf"{RATIONALE_END}|\banswer is\b:?", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![\w.)])-\s?)?\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)")
_RESULT = re.compile(rf"(?:^|=)\s*({_NUMBER.pattern})[\s%.]*$")
"""A number that is all there is, or comes after the last equals sign."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, eq=False)
class RowScores:
    """What a metric is made of. N = rows; arrays of float64, finite."""

    metric: str
    totals_N: np.ndarray
    """Of each row: 1 where the answer is right, else 0; or its ROUGE-L; or its summed -log q of the tokens, in nats."""
    counts_N: np.ndarray
    """What a row's total is spread over: 1, or for perplexity its number of tokens."""

    def __post_init__(self) -> None:
        if not 0 < len(self.totals_N) == len(self.counts_N):
            raise ValueError(f"each row needs a count, but got ({len(self.totals_N)=}, {len(self.counts_N)=})")
        broken = np.flatnonzero(~np.isfinite(self.totals_N) | ~(self.counts_N > 0))
        if len(broken):
            row = int(broken[0])
            raise ValueError(
                f"row {row} has total {self.totals_N[row]} over {self.counts_N[row]}; expected finite / > 0"
            )

    def value(self, rows: np.ndarray | None = None) -> float:
        """The metric over ``rows`` (indices, with repetition), or over all; of perplexity less is better."""
        chosen = slice(None) if rows is None else rows
        mean = float(self.totals_N[chosen].sum() / self.counts_N[chosen].sum())
        if self.metric != "perplexity":
            return mean
        with np.errstate(over="ignore"):
            return float(np.exp(mean))


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> RowScores:
    """Whether the answer in each prediction is the one in its reference; see ``same_answer``."""
    right = [same_answer(found, wanted) for found, wanted in _paired(predictions, references)]
    return _of_rows("exact_match", right)


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> RowScores:
    """F1 of the longest common subsequence of words, from 0 to 1. [Lin2004] § 3.1

    Words are runs of letters and digits in any script, in lower case, not stemmed. Two texts without a word get 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [scorer.score(wanted, found)["rougeL"].fmeasure for found, wanted in _paired(predictions, references)]
    return _of_rows("rouge_l", scores)


def perplexity(nll_N: np.ndarray, num_tokens_N: np.ndarray) -> RowScores:
    """exp of the mean -log q of all tokens of all rows, from each row's sum, in nats, and number of tokens.

    It is not a mean of the rows' perplexities: a row weighs as much as it has tokens.
    """
    return RowScores("perplexity", np.asarray(nll_N, dtype=np.float64), np.asarray(num_tokens_N, dtype=np.float64))


def quality(scores: RowScores) -> Quality:
    """The metric with its 95 % interval.

    Exact match: the score interval. [Wilson1927] ROUGE-L and perplexity: percentiles of a bootstrap over rows, seeded;
    of perplexity the ratio is taken anew in each resample, sums of -log q over numbers of tokens. [Efron1993]
    """
    value, size = scores.value(), len(scores.totals_N)
    if scores.metric == "exact_match":
        low, high = wilson(round(scores.totals_N.sum()), size)
        return Quality(value=value, low=low, high=high)
    rng = np.random.default_rng(0)
    resampled = [scores.value(rng.integers(size, size=size)) for _ in range(RESAMPLES)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Quality(value=value, low=min(float(low), value), high=max(float(high), value))


def same_answer(prediction: str, reference: str) -> bool:
    """Whether both come to the same answer.

    The answer of a text is what follows its last ``####`` or "answer is", else all of it. Where the reference's answer
    is a number, alone or behind the last equals sign, the prediction's is the first number behind its mark or, without
    a mark, its last number: 1,000 is 1000.0. Any other answer is compared as text, whatever its case, its white space
    and the punctuation around it.
    """
    wanted = _RESULT.search(_tail(reference))
    if wanted is None:
        return _plain(_tail(prediction)) == _plain(_tail(reference))
    numbers = list(_NUMBER.finditer(_tail(prediction)))
    if not numbers:
        return False
    found = numbers[0 if _MARKS.search(prediction) else -1]
    return _canonical(found.group()) == _canonical(wanted[1])


def contradicts(rationale: str, response: str) -> bool:
    """Whether a rationale marks an answer of its own, by ``####`` or "answer is", that is not that of ``response``."""
    return _MARKS.search(rationale) is not None and not same_answer(rationale, response)


def reasoned(rationale: str, response: str) -> str:
    """A rationale and its response as one text."""
    return f"{rationale.strip()} {RATIONALE_END} {response.strip()}"


def behind_rationale(text: str) -> str:
    """The response in a text that may begin with a rationale."""
    before, mark, behind = text.partition(RATIONALE_END)
    return behind.strip() if mark else before


class _Words:
    """What ROUGE counts. The package's own way drops every letter outside a … z."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _paired(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(references):
        raise ValueError(f"each reference needs a prediction, but got ({len(predictions)=}, {len(references)=})")
    return list(zip(predictions, references, strict=True))


def _of_rows(metric: str, scores: Sequence[float]) -> RowScores:
    return RowScores(metric, np.array(scores, dtype=np.float64), np.ones(len(scores)))


def _tail(text: str) -> str:
    """What follows the last mark, on its line; all of a text without one."""
    if not (marks := list(_MARKS.finditer(text))):
        return text.strip()
    return text[marks[-1].end() :].strip().partition("\n")[0]


def _canonical(number: str) -> str:
    """One text for one number: -1,000.50 is -1000.5."""
    digits = re.sub(r"[^0-9.]", "", number)
    whole, _, fraction = digits.partition(".")
    value = f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}"
    return f"-{value}" if number.startswith("-") and value != "0." else value


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(string.punctuation + string.whitespace)
