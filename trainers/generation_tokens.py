"""Tokenised rows of a generation task: prompt, response and the token that ends it, one after another.

The positions of a row are the tokens of its response and that end; each is predicted from all tokens before it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from spaces.canonical import fingerprint
from trainers.artifacts import Artifact, ArtifactStore
from trainers.generation_rows import GenerationRows
from trainers.models import ModelInfo
from trainers.tokens import FILE, Targets, Tokens, read_batch, write_rows

_VERSION = 1
_BLOCK_ROWS = 1000


class ResponseTokens(Tokens):
    """Rows of a prompt, its response and an end; and the tokenizer that they were made with."""

    def __init__(self, batch: pa.RecordBatch, *, folder: Path, max_new_tokens: int) -> None:
        super().__init__(batch)
        self._folder = folder
        self.max_new_tokens = max_new_tokens
        """How long a response may become, its end included."""
        self.prompt_lengths: np.ndarray = batch.column("prompt_tokens").to_numpy(zero_copy_only=True).astype(np.int64)
        """Tokens of each row that come before its response, at least one, int64."""
        self.response_lengths: np.ndarray = self.lengths - self.prompt_lengths
        """Tokens of each response, its end included: the row's positions."""
        self._starts = np.concatenate([[0], np.cumsum(self.response_lengths)])
        self._responses = batch.column("response")

    @classmethod
    def of(cls, artifact: Artifact) -> "ResponseTokens":
        """The rows of an artifact of ``tokenise_exchanges``."""
        return cls(read_batch(artifact), folder=artifact.folder, max_new_tokens=artifact.about["response"])

    def take(self, rows: np.ndarray) -> "ResponseTokens":
        return type(self)(self._batch.take(pa.array(rows)), folder=self._folder, max_new_tokens=self.max_new_tokens)

    def num_positions(self, rows: np.ndarray | None = None) -> int:
        return int(self._starts[-1] if rows is None else self.response_lengths[rows].sum())

    def targets(self, rows: np.ndarray, *, length: int) -> Targets:
        labels, positions, places = [], [], []
        for index, row in enumerate(rows.tolist()):
            prompt, whole = self.prompt_lengths[row], self.lengths[row]
            labels.append(self.ids(row)[prompt:])
            positions.append(np.arange(self._starts[row], self._starts[row + 1]))
            # What stands at one place says what comes at the next.
            places.append(index * length + np.arange(prompt - 1, whole - 1))
        return Targets(*(np.concatenate(parts) for parts in (labels, positions, places)))

    def prompt(self, row: int) -> np.ndarray:
        """Token ids of one row's prompt, int64."""
        return self.ids(row)[: self.prompt_lengths[row]]

    @cached_property
    def responses(self) -> list[str]:
        """The response of each row as it was written, never cut."""
        return [text.strip() for text in self._responses.to_pylist()]

    @cached_property
    def tokenizer(self) -> Any:
        """What made and reads the tokens."""
        return _tokenizer(self._folder)

    def texts(self, written: Sequence[np.ndarray]) -> list[str]:
        """Token ids as texts, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]


class Lengths(NamedTuple):
    """How many tokens a row may have."""

    prompt: int
    response: int
    """Its end included."""


def tokenise_exchanges(
    rows: GenerationRows, model: ModelInfo, store: ArtifactStore, *, max_tokens: int, max_new_tokens: int
) -> Artifact:
    """The tokens of ``rows`` for ``model``, found again if they exist.

    A response is cut to ``max_new_tokens``, its end included, but never to more than half of ``max_tokens`` or of the
    model's context; a prompt to what is left of that, from the left: its end is nearest to what is asked.
    ``about["notes"]`` says how often.
    """
    whole = min(max_tokens, model.max_tokens)
    response = min(max_new_tokens, whole // 2)
    lengths = Lengths(prompt=whole - response, response=response)
    identity = {"kind": "tokens", "rows": rows.fingerprint, "tokenizer": model.tokenizer_fingerprint}
    name = fingerprint(identity | {"lengths": lengths._asdict(), "version": _VERSION})
    if found := store.find(name):
        return found
    about: dict[str, Any] = {"kind": "tokens", "rows": len(rows), **lengths._asdict()}
    with store.publish(name, about) as folder:
        tokenizer = _tokenizer(model.folder)
        tokenizer.save_pretrained(folder)
        exchanges = list(_exchanges(rows, tokenizer))
        about["notes"] = _notes(exchanges, lengths)
        ids, prompts = _joined(exchanges, lengths, _opening(tokenizer))
        about["tokens"] = sum(map(len, ids))
        columns = {"prompt_tokens": pa.array(prompts, pa.int32()), "response": pa.array(rows.responses, pa.string())}
        write_rows(folder / FILE, ids, columns)
    published = store.find(name)
    assert published is not None
    return published


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _exchanges(rows: GenerationRows, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each prompt, and of its response with its end."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        prompts = list(rows.prompts[start : start + _BLOCK_ROWS])
        responses = [_after(p, r) for p, r in zip(prompts, rows.responses[start : start + _BLOCK_ROWS], strict=True)]
        whole = tokenizer([p + r for p, r in zip(prompts, responses, strict=True)])["input_ids"]
        alone = tokenizer(responses, add_special_tokens=False)["input_ids"]
        for prompt, both, response in zip(tokenizer(prompts)["input_ids"], whole, alone, strict=True):
            before, together = _without_end(prompt, tokenizer), _without_end(both, tokenizer)
            # As it stands in running text, where the tokenizer does not join the two.
            continued = together[: len(before)] == before
            after = together[len(before) :] if continued else response
            yield before or [_first(tokenizer)], [*after, tokenizer.eos_token_id]


def _after(prompt: str, response: str) -> str:
    return response if not prompt or prompt[-1].isspace() else f" {response}"


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _first(tokenizer: Any) -> int:
    """What stands before a response without a prompt: something has to."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _opening(tokenizer: Any) -> int | None:
    """What the tokenizer begins every text with; None where that is nothing."""
    return next(iter(_without_end(tokenizer("")["input_ids"], tokenizer)), None)


def _joined(
    exchanges: Sequence[tuple[list[int], list[int]]], lengths: Lengths, first: int | None
) -> tuple[list[np.ndarray], list[int]]:
    """Ids of each row, int32, and how many of them are its prompt's. A prompt that is cut keeps its ``first`` token."""

    def cut_prompt(ids: list[int]) -> list[int]:
        kept = ids[-lengths.prompt :]
        return [ids[0], *kept[1:]] if ids[0] == first else kept

    cut = [(cut_prompt(prompt), response[: lengths.response]) for prompt, response in exchanges]
    return [np.array([*prompt, *response], dtype=np.int32) for prompt, response in cut], [len(p) for p, _ in cut]


def _notes(exchanges: Sequence[tuple[list[int], list[int]]], lengths: Lengths) -> list[str]:
    prompts = sum(len(prompt) > lengths.prompt for prompt, _ in exchanges)
    responses = sum(len(response) > lengths.response for _, response in exchanges)
    empty = sum(len(response) == 1 for _, response in exchanges)
    found = {
        f"prompts longer than {lengths.prompt} tokens, cut from the left; raise task.max_tokens": prompts,
        f"responses longer than {lengths.response} tokens, cut; raise task.max_new_tokens": responses,
        "empty responses, kept: the model learns to say nothing": empty,
    }
    return [f"{count} of {len(exchanges)} {what}" for what, count in found.items() if count]
