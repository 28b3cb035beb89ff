"""Demonstrations as text: how they read before a prompt, how many of them fit there, which ones are served."""

from functools import cached_property

import numpy as np

from trainers.episodes import Shown, numbered, varied_rows
from trainers.generation_tokens import ResponseTokens

_END = "\n\n"
"""Behind each demonstration."""
_SERVED, EPISODES, LABELS, UNSEEN = range(4)
"""What chance decides, beside the plan's seed."""


class Demonstrations:
    """The rows of train, each with its response, to stand before prompts."""

    def __init__(self, train: ResponseTokens) -> None:
        self._train = train
        self.prompts: np.ndarray = numbered(train.prompts)
        """Which rows have one prompt, int64; see ``numbered``."""
        self.labels: np.ndarray = numbered(train.responses)
        """Which rows have one response, int64."""

    @cached_property
    def _texts(self) -> list[str]:
        return [f"{text}{_END}" for text in self._train.solved]

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """How many tokens each takes before a prompt, int64."""
        return np.array([len(ids) for ids in self._train.tokenizer(self._texts, add_special_tokens=False)["input_ids"]])

    def served(self, num_shots: int, *, seed: int) -> np.ndarray:
        """The rows that stand before every prompt of a model of a plan with this seed."""
        return varied_rows(self.labels, num_demonstrations=num_shots, rng=np.random.default_rng([seed, _SERVED]))

    def opening(self, rows: np.ndarray) -> str:
        """These rows as one text, after which a prompt may begin."""
        return "".join(self._texts[row] for row in rows.tolist())

    def before(self, tokens: ResponseTokens, shown: Shown) -> tuple[ResponseTokens, np.ndarray]:
        """The rows of ``tokens`` that ``shown`` names behind their demonstrations, and how many each has, int64.

        A prompt is not cut for a demonstration: the first ones are left out where not all fit. None has its own prompt.
        """
        asked = tokens.take(shown.rows)
        others = [self._others(rows, prompt) for rows, prompt in zip(shown.before, asked.prompts, strict=True)]
        room = tokens.max_prompt_tokens - asked.prompt_lengths
        fitting = [self._that_fit(rows, int(left)) for rows, left in zip(others, room, strict=True)]
        return asked.behind([self.opening(rows) for rows in fitting]), np.array([len(rows) for rows in fitting])

    def usual_tokens(self, num_shots: int, *, room: int) -> int:
        """How many tokens so many of median length take, as far as they fit."""
        usual = int(np.median(self.num_tokens))
        return usual * min(num_shots, max(0, room) // usual)

    def _others(self, rows: np.ndarray, prompt: str) -> np.ndarray:
        return np.array([row for row in rows.tolist() if self._train.prompts[row] != prompt], dtype=np.int64)

    def _that_fit(self, rows: np.ndarray, room: int) -> np.ndarray:
        count = int((self.num_tokens[rows][::-1].cumsum() <= room).sum())
        return rows[len(rows) - count :]


def asked_behind(tokens: ResponseTokens, train: ResponseTokens, *, num_shots: int, seed: int) -> ResponseTokens:
    """``tokens`` as a model of a plan with this seed is asked them: all behind the same rows of train."""
    demonstrations = Demonstrations(train)
    served = demonstrations.served(num_shots, seed=seed)
    return demonstrations.before(tokens, Shown(np.arange(len(tokens)), [served] * len(tokens)))[0]
