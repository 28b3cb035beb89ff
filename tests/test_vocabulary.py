"""The cut vocabulary: the same pieces under new numbers, and any text still has pieces."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, WORDS, tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from trainers.model_files import ModelError
from trainers.models import inspect_model, load_classifier, save_model
from trainers.vocabulary import cut_embeddings, cut_tokenizer, kept_ids

_RNG = random.Random(0)
_STEMS = ["".join(_RNG.choices("abcdeo", k=_RNG.randint(2, 6))) for _ in range(60)]
CORPUS = [" ".join(_RNG.choices(_STEMS, k=8)) for _ in range(300)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALGORITHMS = ("WordPiece", "BPE", "byte BPE", "Unigram")


def _trained(algorithm: str) -> Tokenizer:
    """A tokenizer of 300 pieces or so, learnt from the corpus."""
    common = {"special_tokens": SPECIAL, "vocab_size": 300, "show_progress": False}
    if algorithm == "WordPiece":
        found = Tokenizer(models.WordPiece(unk_token="<unk>"))
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(**common)
    elif algorithm == "Unigram":
        found = Tokenizer(models.Unigram())
        found.normalizer = normalizers.NFKC()
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **common)
    else:
        found = Tokenizer(models.BPE(unk_token=None if algorithm == "byte BPE" else "<unk>"))
        byte = algorithm == "byte BPE"
        found.pre_tokenizer = pre_tokenizers.ByteLevel() if byte else pre_tokenizers.Whitespace()
        alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if byte else {}
        trainer = trainers.BpeTrainer(**common | {"vocab_size": 520 if byte else 300}, **alphabet)
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return found


@pytest.fixture(scope="module", params=ALGORITHMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("whole")
    _trained(request.param).save(str(path / "tokenizer.json"))
    return path


def _cut(folder: Path, used: set[int], margin: int = 0) -> tuple[Tokenizer, Tokenizer, np.ndarray]:
    kept = kept_ids(folder, used, margin=margin)
    cut_tokenizer(folder, kept, folder / "cut")
    whole, cut = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (folder, folder / "cut"))
    return whole, cut, kept


@settings(max_examples=25)
@given(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=4), st.lists(st.sampled_from(_STEMS), max_size=6))
def test_a_text_of_kept_pieces_is_split_as_before(folder: Path, seen: list[str], words: list[str]) -> None:
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    used = {number for text in seen for number in whole.encode(text).ids}
    whole, cut, kept = _cut(folder, used)
    assert len(kept) == cut.get_vocab_size() < whole.get_vocab_size()
    assert used <= set(kept.tolist())
    for text in [*seen, " ".join(words)]:
        before, after = whole.encode(text), cut.encode(text)
        if set(before.ids) <= set(kept.tolist()):
            assert kept[after.ids].tolist() == before.ids
            assert after.tokens == before.tokens


def test_any_text_of_known_characters_still_has_pieces(folder: Path) -> None:
    whole, cut, kept = _cut(folder, set())
    assert len(kept) < whole.get_vocab_size() * 0.75
    for text in (*CORPUS[:20], "abcdeo oedcba"):
        after = cut.encode(text)
        assert "<unk>" not in after.tokens
        assert "".join(after.tokens[1:-1]).translate(str.maketrans("", "", "#▁Ġ")) == text.replace(" ", "")
    assert cut.encode("漢字").tokens[0] == "<s>"


def test_an_unknown_character_costs_as_much_as_before(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    kept = set(kept_ids(folder, set()).tolist())
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        assert min(scores[number] for number in kept) == min(scores)


def test_the_margin_is_the_first_of_the_rest(folder: Path) -> None:
    few, more = kept_ids(folder, set()), kept_ids(folder, set(), margin=5)
    new = sorted(set(more.tolist()) - set(few.tolist()))
    assert len(new) >= 5
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert new[0] == min(set(range(whole.get_vocab_size())) - set(few.tolist()))
    assert len(kept_ids(folder, set(), margin=10_000)) == whole.get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_answers_as_before(kind: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", kind, num_layers=2)
    model = load_classifier(base, labels=("cat", "dog"))
    whole = AutoTokenizer.from_pretrained(base)
    texts = [" ".join(WORDS[:6]), "red dog 7!"]
    used = {number for text in texts for number in whole(text)["input_ids"]}
    kept = kept_ids(base, used)
    assert len(kept) < len(whole)
    small = cut_embeddings(model, kept)
    save_model(small, tmp_path / "cut")
    cut_tokenizer(base, kept, tmp_path / "cut")
    again = load_classifier(tmp_path / "cut", labels=("cat", "dog"))
    cut = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert inspect_model(str(tmp_path / "cut")).vocab_size == len(kept) == len(cut)
    for text in texts:
        with torch.no_grad():
            expected, found = (m(**t([text], return_tensors="pt")).logits for m, t in ((model, whole), (again, cut)))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert model.config.vocab_size == len(whole)


def test_the_padding_token_stays_where_positions_are_counted_from_it(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path, "roberta", num_layers=1), labels=("cat", "dog"))
    model.config.pad_token_id = 1
    with pytest.raises(ModelError, match="positions of roberta are counted from its padding token 1; keep all before"):
        cut_embeddings(model, np.array([1, 2, 3]))


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer.json cannot be read .* save it with transformers"):
        kept_ids(tmp_path, set())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    with pytest.raises(ModelError, match="found a tokenizer of type 'WordLevel'"):
        kept_ids(tmp_path, set())
