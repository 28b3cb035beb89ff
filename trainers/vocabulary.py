"""A model and its tokenizer with a part of the vocabulary: most of a small encoder's weights are rows of tokens that a
task never uses.

What is kept is closed under how the tokenizer works, so a text whose pieces are all kept is split as before; any other
is still split, into smaller pieces. Why, by algorithm:

- WordPiece takes the longest piece that fits. Without some pieces, the longest one that is kept is still the longest.
- BPE applies the earliest merge that it can. With a piece, all merges that lead to it are kept: the earliest one stays
  the earliest.
- Unigram takes the likeliest segmentation. Among fewer, one that is kept is still the likeliest. The least likely piece
  is always kept: the price of an unknown character is counted from it.
"""

import copy
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spaces.canonical import fingerprint
from spaces.methods.vocabulary import KeepVocabulary
from trainers.artifacts import Artifact, ArtifactStore
from trainers.context import Context
from trainers.datasets import Rows
from trainers.families import FAMILIES
from trainers.model_files import ModelError
from trainers.models import ModelInfo
from trainers.storage import StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER = "tokenizer.json"
_VERSION = 1
_KEPT = "kept.npy"
_MARGIN_SHARE = 0.1
"""Of the vocabulary, beside what the rows use: MiniLM's rare words of other rows are then mostly split as before."""
_BLOCK_TEXTS = 1000
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_BYTE_PIECE_LENGTH = len("<0x00>")


def keep_vocabulary(rows: Sequence[Rows], model: ModelInfo, store: ArtifactStore) -> KeepVocabulary:
    """The stage that leaves ``model`` the tokens of ``rows`` and a tenth of its vocabulary more; what it needs, and the
    tokenizer, are written once.

    All of a text's tokens are kept, those as well that will be cut off: so ``rows`` are the same pieces as before.

    Raises:
        ModelError: its tokenizer cannot be cut.
    """
    margin = int(_MARGIN_SHARE * model.vocab_size)
    of_rows = [part.fingerprint for part in rows]
    name = fingerprint(
        {"kind": "vocabulary", "model": model.fingerprint, "rows": of_rows, "margin": margin, "version": _VERSION}
    )
    if not store.has(name):
        about: dict[str, Any] = {"kind": "vocabulary"}
        with store.publish(name, about) as folder:
            about["tokens"] = _write_cut(rows, model, folder, margin=margin)
    found = _find(name, store)
    return KeepVocabulary(vocabulary=name, num_tokens=found.about["tokens"])


def read_cut(stage: KeepVocabulary, model: ModelInfo, store: ArtifactStore) -> ModelInfo:
    """``model`` with the tokenizer of ``stage``: by it, rows are tokenised for students.

    Raises:
        StorageError: the tokenizer is gone.
    """
    folder = _find(stage.vocabulary, store).folder
    return replace(model, folder=folder, tokenizer_fingerprint=stage.vocabulary, vocab_size=stage.num_tokens)


def cut(model: "PreTrainedModel", stage: KeepVocabulary, *, context: Context) -> "PreTrainedModel":
    """Carry out a ``KeepVocabulary`` stage. Raises ``StorageError`` where the vocabulary is gone."""
    return cut_embeddings(model, kept_of(stage.vocabulary, context))


def kept_of(vocabulary: str, context: Context) -> np.ndarray:
    """The ids (int64, rising) that a vocabulary of ``keep_vocabulary`` has of its base's, in their new order."""
    kept: np.ndarray = np.load(_find(vocabulary, context.store).folder / _KEPT)
    return kept


def kept_ids(tokenizer: Path, used: Iterable[int], *, margin: int = 0) -> np.ndarray:
    """The ids (int64, rising) that are kept of the tokenizer in a folder.

    These are the ``used`` ones, special tokens, single characters and bytes (at the start of a word and within it), all
    that the others are merged from, and of the rest the first ``margin``: by id, which mostly is by frequency.

    Raises:
        ModelError: the folder has no ``tokenizer.json``, or the algorithm is not handled.
    """
    content = _read(tokenizer)
    ids = _vocabulary(content)
    kept = {*map(int, used), *(token["id"] for token in content.get("added_tokens", ()))}
    kept |= {number for piece, number in ids.items() if _is_small(piece, content["model"])}
    rest = sorted(set(ids.values()) - kept)
    kept |= _always(content["model"], ids) | set(rest[:margin])
    return np.array(sorted(_with_parts(kept, content["model"], ids)), dtype=np.int64)


def cut_tokenizer(source: Path, kept: np.ndarray, target: Path) -> None:
    """Write the tokenizer in the folder ``source`` with the ids ``kept`` alone, numbered anew in their order."""
    content = _read(source)
    places = {int(old): new for new, old in enumerate(kept)}
    content["added_tokens"] = [{**token, "id": places[token["id"]]} for token in content.get("added_tokens", ())]
    content["model"] = _cut(content["model"], places)
    content["post_processor"] = _renumbered(content.get("post_processor"), _vocabulary(_read(source)), places)
    if content.get("padding"):
        content["padding"]["pad_id"] = places[content["padding"]["pad_id"]]
    target.mkdir(parents=True, exist_ok=True)
    (target / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for name in _BESIDE:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    _renumber_settings(target / "tokenizer_config.json", places)


def cut_embeddings(model: "PreTrainedModel", kept: np.ndarray) -> "PreTrainedModel":
    """A new model that knows the tokens ``kept`` alone, numbered anew in their order; ``model`` is untouched.

    Raises:
        ModelError: positions are counted from the padding token's id, and that would change.
    """
    import torch

    kind, pad = model.config.model_type, model.config.pad_token_id
    if kind in FAMILIES and FAMILIES[kind].padded_positions and kept[pad] != pad:
        raise ModelError(f"positions of {kind} are counted from its padding token {pad}; keep all before it")
    small = copy.deepcopy(model)
    rows = torch.from_numpy(kept)
    heads = (small.get_input_embeddings(), small.get_output_embeddings())
    for module in heads:
        if module is not None and module.weight.shape[0] != len(kept):
            module.weight = torch.nn.Parameter(module.weight.detach()[rows.to(module.weight.device)].clone())
    _renumber_config(small, {int(old): new for new, old in enumerate(kept)})
    if heads[1] is not None:
        small.tie_weights()
    return small


def _find(vocabulary: str, store: ArtifactStore) -> Artifact:
    found = store.find(vocabulary)
    if found is None:
        # Written before the first plan and needed by all students.
        raise StorageError(f"the cut vocabulary {vocabulary[:12]}… is gone from the artifact store")
    return found


def _write_cut(rows: Sequence[Rows], model: ModelInfo, folder: Path, *, margin: int) -> int:
    """Write the cut tokenizer and the kept ids; how many these are."""
    from transformers import AutoConfig, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="distune-") as draft:
        # Saved anew: the settings then name the tokenizer's class, which the model's config may have told.
        whole = Path(draft)
        AutoTokenizer.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False).save_pretrained(
            whole
        )
        _read(whole)
        used = {number for part in rows for number in _used(part.texts, whole / TOKENIZER)}
        if FAMILIES[model.model_type].padded_positions:
            config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
            used |= set(range(config.pad_token_id))
        kept = kept_ids(whole, used, margin=margin)
        cut_tokenizer(whole, kept, folder)
    np.save(folder / _KEPT, kept)
    return len(kept)


def _used(texts: Sequence[str], tokenizer: Path) -> set[int]:
    """The ids of all tokens of whole texts."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(tokenizer))
    found.no_truncation()
    blocks = (list(texts[start : start + _BLOCK_TEXTS]) for start in range(0, len(texts), _BLOCK_TEXTS))
    return {number for block in blocks for encoding in found.encode_batch(block) for number in encoding.ids}


def _read(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / TOKENIZER} cannot be read ({error}); only tokenizers in this format can be cut: save it with "
            "transformers, AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        ) from error
    if content["model"].get("type") not in ("WordPiece", "BPE", "Unigram"):
        raise ModelError(
            f"{folder / TOKENIZER}: found a tokenizer of type {content['model'].get('type')!r}; expected WordPiece, "
            "BPE or Unigram; keep its vocabulary whole"
        )
    return content


def _vocabulary(content: dict[str, Any]) -> dict[str, int]:
    model = content["model"]
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _is_small(piece: str, model: dict[str, Any]) -> bool:
    """Whether it is a character or byte, with whatever marks its place in a word."""
    if piece.startswith("<0x") and len(piece) == _BYTE_PIECE_LENGTH:
        return True
    bare = piece.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "")
    return len(bare) <= 1 or (len(bare) == 2 and bare[0] in "▁Ġ")


def _always(model: dict[str, Any], ids: dict[str, int]) -> set[int]:
    found = {ids[model["unk_token"]]} if model.get("unk_token") in ids else set()
    if model["type"] == "Unigram":
        found.add(min(range(len(ids)), key=lambda number: model["vocab"][number][1]))
        found |= {model["unk_id"]} if model.get("unk_id") is not None else set()
    return found


def _with_parts(kept: set[int], model: dict[str, Any], ids: dict[str, int]) -> set[int]:
    """``kept`` and everything that it is merged from, step by step."""
    parts: dict[int, set[int]] = defaultdict(set)
    for left, right in _merges(model):
        if (whole := ids.get(_merged(left, right, model))) is not None:
            parts[whole] |= {ids[left], ids[right]}
    found, left_over = set(kept), list(kept)
    while left_over:
        new = parts[left_over.pop()] - found
        found |= new
        left_over += new
    return found


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    return [(left, right) for left, right in pairs]


def _merged(left: str, right: str, model: dict[str, Any]) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _cut(model: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        vocabulary: Any = [entry for number, entry in enumerate(model["vocab"]) if number in places]
        unknown = model.get("unk_id")
        return {**model, "vocab": vocabulary, "unk_id": None if unknown is None else places[unknown]}
    vocabulary = {piece: places[number] for piece, number in model["vocab"].items() if number in places}
    cut = {**model, "vocab": vocabulary}
    if model["type"] == "BPE":
        merges = [pair for pair in _merges(model) if {*pair, _merged(*pair, model)} <= vocabulary.keys()]
        cut["merges"] = [list(pair) for pair in merges]
    return cut


def _renumbered(processor: Any, ids: dict[str, int], places: dict[int, int]) -> Any:
    """A post-processor with the new ids of the special tokens that it adds."""
    if not processor:
        return processor
    found = copy.deepcopy(processor)
    for inner in found.get("processors", ()):
        inner.update(_renumbered(inner, ids, places))
    for token in (found.get("special_tokens") or {}).values():
        token["ids"] = [places[number] for number in token["ids"]]
    for side in ("sep", "cls"):
        if side in found:
            found[side][1] = places[found[side][1]]
    return found


def _renumber_settings(path: Path, places: dict[int, int]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if decoder := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {
            str(places[int(old)]): token for old, token in decoder.items() if int(old) in places
        }
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")


def _renumber_config(model: Any, places: dict[int, int]) -> None:
    config, table = model.config, model.get_input_embeddings()
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            setattr(config, name, [places[v] for v in value] if isinstance(value, Sequence) else places.get(value))
    config.vocab_size = table.num_embeddings = len(places)
    if table.padding_idx is not None:
        table.padding_idx = places[table.padding_idx]
