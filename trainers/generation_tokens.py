"""Tokenised rows of a generation task: prompt, response and the token that ends it, one after another.

The positions of a row are the tokens of its response and that end; each is predicted from all tokens before it.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from spaces.canonical import fingerprint
from trainers.artifacts import Artifact, ArtifactStore
from trainers.generation_metrics import behind_rationale, reasoned
from trainers.generation_rows import GenerationRows
from trainers.model_files import ModelError
from trainers.models import ModelInfo
from trainers.tokens import FILE, Targets, Tokens, lists, read_batch, write_rows

_VERSION = 2
_BLOCK_ROWS = 1000


class Lengths(NamedTuple):
    """How many tokens a row may have."""

    prompt: int
    response: int
    """Its end included."""
    reasoned: int = 0
    """Of the longest response with its rationale before it, end included; 0 where no row has one."""
    usual_reasoned: int = 0
    """Of the median one."""


class ResponseTokens(Tokens):
    """Rows of a prompt, its response and an end; and the tokenizer that they were made with."""

    def __init__(self, batch: pa.RecordBatch, *, folder: Path, lengths: Lengths, reasons: bool = False) -> None:
        super().__init__(batch)
        self._folder = folder
        self._lengths = lengths
        self.reasons = reasons
        """Whether a rationale is to be written before each response."""
        self.prompt_lengths: np.ndarray = batch.column("prompt_tokens").to_numpy(zero_copy_only=True).astype(np.int64)
        """Tokens of each row that come before its response, at least one, int64."""
        self.response_lengths: np.ndarray = self.lengths - self.prompt_lengths
        """Tokens of each response, its end included: the row's positions."""
        self._starts = np.concatenate([[0], np.cumsum(self.response_lengths)])

    @classmethod
    def of(cls, artifact: Artifact) -> "ResponseTokens":
        """The rows of an artifact of ``tokenise_exchanges``."""
        lengths = Lengths(*(artifact.about[name] for name in Lengths._fields))
        return cls(read_batch(artifact), folder=artifact.folder, lengths=lengths)

    def take(self, rows: np.ndarray) -> "ResponseTokens":
        return self._like_this(self._batch.take(pa.array(rows)))

    def joined(self, other: "ResponseTokens") -> "ResponseTokens":
        return self._like_this(pa.concat_batches([self._batch, other._batch]))

    def _like_this(self, batch: pa.RecordBatch) -> "ResponseTokens":
        return type(self)(batch, folder=self._folder, lengths=self._lengths, reasons=self.reasons)

    @property
    def max_new_tokens(self) -> int:
        """How long a response may become, its end included; with its rationale, where one is to be written."""
        return self._lengths.response

    @property
    def max_prompt_tokens(self) -> int:
        """How long a prompt may be; a longer one is cut from the left."""
        return self._lengths.prompt

    @property
    def usual_reasoned_tokens(self) -> int:
        """How long a response usually is with its rationale before it."""
        return min(self._lengths.usual_reasoned, self.max_reasoned_tokens)

    @property
    def max_reasoned_tokens(self) -> int:
        """How long a response may become with its rationale before it: as the longest, or half of a row."""
        longest = max(self._lengths.reasoned, self._lengths.response)
        return min(longest, (self._lengths.prompt + self._lengths.response) // 2)

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
    def prompts(self) -> list[str]:
        """The prompt of each row as it was written, never cut."""
        found: list[str] = self._batch.column("prompt").to_pylist()
        return found

    @cached_property
    def responses(self) -> list[str]:
        """The response of each row as it was written, never cut."""
        return [text.strip() for text in self._batch.column("response").to_pylist()]

    @cached_property
    def rationales(self) -> list[str | None]:
        """The rationale of each row; None where it has none."""
        return [(text and text.strip()) or None for text in self._batch.column("rationale").to_pylist()]

    @cached_property
    def solved(self) -> list[str]:
        """Each prompt with its response behind it, as text."""
        return [prompt + _after(prompt, text) for prompt, text in zip(self.prompts, self.responses, strict=True)]

    @cached_property
    def tokenizer(self) -> Any:
        """What made and reads the tokens."""
        return _tokenizer(self._folder)

    def texts(self, written: Sequence[np.ndarray]) -> list[str]:
        """Token ids as texts, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def answers(self, written: Sequence[np.ndarray]) -> list[str]:
        """Token ids as texts, without the rationale where one was to be written."""
        texts = self.texts(written)
        return [behind_rationale(text) for text in texts] if self.reasons else texts

    def asked(self, *, prefix: str, max_new_tokens: int, reasons: bool) -> "ResponseTokens":
        """The same rows with ``prefix`` before each prompt, and room for so many tokens behind it."""
        rows = np.arange(len(self))
        asked = self.retold(rows, self.responses, prefix=prefix, max_new_tokens=max_new_tokens)
        return type(self)(asked._batch, folder=self._folder, lengths=asked._lengths, reasons=reasons)

    def answered(self, rows: np.ndarray, answers: Sequence[str]) -> "ResponseTokens":
        batch = self.retold(rows, answers, max_new_tokens=self.max_new_tokens)._batch
        responses = pa.array(answers, pa.string())
        return self._like_this(batch.set_column(batch.schema.get_field_index("response"), "response", responses))

    def continued(self, rows: np.ndarray, written: Sequence[np.ndarray]) -> "ResponseTokens":
        """The prompt of each of ``rows``, with token ids in the place of its response's; the texts stay."""
        ids = [np.concatenate([self.prompt(row), own]) for row, own in zip(rows.tolist(), written, strict=True)]
        taken = self._batch.take(pa.array(rows))
        place = taken.schema.get_field_index("input_ids")
        return self._like_this(taken.set_column(place, "input_ids", lists([row.astype(np.int32) for row in ids])))

    def retold(
        self, rows: np.ndarray, targets: Sequence[str], *, prefix: str = "", max_new_tokens: int
    ) -> "ResponseTokens":
        """The prompt of each of ``rows`` behind ``prefix``, with one of ``targets`` in the place of its response.

        Raises:
            ModelError: rows are so short that the prefix leaves no room for a prompt.
        """
        of_rows = self.take(rows)
        prompts = [f"{prefix}{_after(prefix, prompt)}" for prompt in of_rows.prompts]
        whole, opening = self._lengths.prompt + self._lengths.response, _opening(self.tokenizer, prefix)
        lengths = self._lengths._replace(prompt=whole - max_new_tokens, response=max_new_tokens)
        if lengths.prompt <= len(opening):
            raise ModelError(
                f"prompts of {lengths.prompt} tokens have no room behind {prefix!r}; raise task.max_tokens"
            )
        batch = of_rows._read_anew(prompts, targets, lengths, opening)
        return type(self)(batch, folder=self._folder, lengths=lengths)

    def behind(self, openings: Sequence[str]) -> "ResponseTokens":
        """The same rows, each behind a text of its own; of what is too long, the left is cut."""
        prompts = [f"{opening}{_after(opening, text)}" for opening, text in zip(openings, self.prompts, strict=True)]
        return self._like_this(self._read_anew(prompts, self.responses, self._lengths, _opening(self.tokenizer)))

    def every_token(self) -> "ResponseTokens":
        """The same rows with a position for every token but the first: prompts are to be foretold as well."""
        ones = pa.array(np.ones(len(self), dtype=np.int32))
        return self._like_this(
            self._batch.set_column(self._batch.schema.get_field_index("prompt_tokens"), "prompt_tokens", ones)
        )

    def _read_anew(
        self, prompts: Sequence[str], targets: Sequence[str], lengths: Lengths, opening: Sequence[int]
    ) -> pa.RecordBatch:
        """The rows' texts with tokens of other prompts and targets, cut to ``lengths``."""
        ids, before = _joined(list(_exchanges(prompts, targets, self.tokenizer)), lengths, opening)
        columns = {"input_ids": lists(ids), "prompt_tokens": pa.array(before, pa.int32())}
        texts = {name: self._batch.column(name) for name in ("prompt", "response", "rationale")}
        return pa.record_batch(columns | texts)

    def num_tokens(self, targets: Sequence[str]) -> np.ndarray:
        """How many tokens each of these would have behind a prompt, its end included, int64."""
        return num_tokens(targets, self.tokenizer)


def tokenise_exchanges(
    rows: GenerationRows, model: ModelInfo, store: ArtifactStore, *, max_tokens: int, max_new_tokens: int
) -> Artifact:
    """The tokens of ``rows`` for ``model``, found again if they exist.

    A response is cut to ``max_new_tokens``, its end included, but never to more than half of ``max_tokens`` or of the
    model's context; a prompt to what is left of that, from the left: its end is nearest to what is asked.
    ``about["notes"]`` says how often. Rationales are kept beside them, as text.
    """
    whole = min(max_tokens, model.max_tokens)
    response = min(max_new_tokens, whole // 2)
    lengths = Lengths(prompt=whole - response, response=response)
    identity = {"kind": "tokens", "rows": rows.fingerprint, "tokenizer": model.tokenizer_fingerprint}
    name = fingerprint(identity | {"lengths": lengths._asdict(), "version": _VERSION})
    if found := store.find(name):
        return found
    about: dict[str, Any] = {"kind": "tokens", "rows": len(rows)}
    with store.publish(name, about) as folder:
        tokenizer = _tokenizer(model.folder)
        tokenizer.save_pretrained(folder)
        exchanges = list(_exchanges(rows.prompts, rows.responses, tokenizer))
        about["notes"] = _notes(exchanges, rows.responses, lengths)
        ids, prompts = _joined(exchanges, lengths, _opening(tokenizer))
        longest, usual = _reasoned_lengths(rows, tokenizer)
        lengths = lengths._replace(reasoned=longest, usual_reasoned=usual)
        about |= {"tokens": sum(map(len, ids)), **lengths._asdict()}
        texts = {"prompt": rows.prompts, "response": rows.responses, "rationale": rows.rationales}
        columns = {name: pa.array(column, pa.string()) for name, column in texts.items()}
        write_rows(folder / FILE, ids, {"prompt_tokens": pa.array(prompts, pa.int32()), **columns})
    published = store.find(name)
    assert published is not None
    return published


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def num_tokens(targets: Sequence[str], tokenizer: Any) -> np.ndarray:
    """How many tokens each text has behind a prompt, its end included, int64."""
    if not targets:
        return np.zeros(0, dtype=np.int64)
    ids = tokenizer([_after("prompt", text) for text in targets], add_special_tokens=False)["input_ids"]
    return np.array([len(found) + 1 for found in ids])


def _reasoned_lengths(rows: GenerationRows, tokenizer: Any) -> tuple[int, int]:
    """Tokens of the longest and of the median response with its rationale; 0 where no row has one."""
    pairs = zip(rows.rationales, rows.responses, strict=True)
    targets = [reasoned(rationale, response) for rationale, response in pairs if rationale]
    found = num_tokens(targets, tokenizer)
    return (int(found.max()), int(np.median(found))) if len(found) else (0, 0)


def _exchanges(
    all_prompts: Sequence[str], targets: Sequence[str], tokenizer: Any
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each prompt, and of what is to be written behind it with its end."""
    for start in range(0, len(all_prompts), _BLOCK_ROWS):
        prompts = list(all_prompts[start : start + _BLOCK_ROWS])
        responses = [_after(p, r) for p, r in zip(prompts, targets[start : start + _BLOCK_ROWS], strict=True)]
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


def _opening(tokenizer: Any, prefix: str = "") -> list[int]:
    """What every prompt behind ``prefix`` begins with: that, and what the tokenizer puts before every text."""
    return _without_end(tokenizer(prefix)["input_ids"], tokenizer)


def _joined(
    exchanges: Sequence[tuple[list[int], list[int]]], lengths: Lengths, opening: Sequence[int]
) -> tuple[list[np.ndarray], list[int]]:
    """Ids of each row, int32, and how many of them are its prompt's. A prompt that is cut keeps its ``opening``."""

    def cut_prompt(ids: list[int]) -> list[int]:
        if len(ids) <= lengths.prompt:
            return ids
        pairs = zip(ids, opening, strict=False)
        head = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        return [*head, *ids[len(ids) - lengths.prompt + len(head) :]]

    cut = [(cut_prompt(prompt), response[: lengths.response]) for prompt, response in exchanges]
    return [np.array([*prompt, *response], dtype=np.int32) for prompt, response in cut], [len(p) for p, _ in cut]


def _notes(exchanges: Sequence[tuple[list[int], list[int]]], responses: Sequence[str], lengths: Lengths) -> list[str]:
    prompts = sum(len(prompt) > lengths.prompt for prompt, _ in exchanges)
    long = sum(len(response) > lengths.response for _, response in exchanges)
    # Unlabeled prompts have no response by right.
    empty = sum(len(ids) == 1 and text != "" for (_, ids), text in zip(exchanges, responses, strict=True))
    found = {
        f"prompts longer than {lengths.prompt} tokens, cut from the left; raise task.max_tokens": prompts,
        f"responses longer than {lengths.response} tokens, cut; raise task.max_new_tokens": long,
        "empty responses, kept: the model learns to say nothing": empty,
    }
    return [f"{count} of {len(exchanges)} {what}" for what, count in found.items() if count]
