"""Models: what is found, refused, loaded, cut and saved."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import KINDS, MAX_TOKENS, VOCABULARY, tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from trainers.families import ENCODERS, FAMILIES
from trainers.models import (
    ModelError,
    classifier_config,
    find_model,
    inspect_model,
    load_classifier,
    new_classifier,
    save_model,
    select_layers,
)

LABELS = ("cat", "dog", "sun")
IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 3], [2, 8, 10, 3, 0, 0, 0]])
MASK = (IDS != 0).long()
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(root / kind, kind) for kind in KINDS}


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "bert"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


def with_layers(model: torch.nn.Module, layers: tuple[int, ...]) -> torch.nn.Module:
    """The same cut by other means: the list of layers is shortened in place."""
    model = copy.deepcopy(model)
    parent, _, name = FAMILIES[model.config.model_type].layers.rpartition(".")
    owner = model.base_model.get_submodule(parent)
    setattr(owner, name, torch.nn.ModuleList([getattr(owner, name)[layer] for layer in layers]))
    model.config.num_hidden_layers = len(layers)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_files_tell(folders: dict[str, Path], kind: str) -> None:
    info = inspect_model(str(folders[kind]))
    assert (info.model_type, info.num_layers, info.hidden_size) == (kind, 4, 32)
    assert info.vocab_size == len(VOCABULARY)
    assert info.max_tokens == MAX_TOKENS


def test_a_copy_is_the_same_model_and_other_weights_are_not(bert: Path, folders: dict[str, Path]) -> None:
    original, copied = inspect_model(str(folders["bert"])), inspect_model(str(bert))
    assert copied.fingerprint == original.fingerprint
    other = inspect_model(str(tiny_model(bert.parent / "other", seed=1)))
    assert other.fingerprint != original.fingerprint
    assert other.tokenizer_fingerprint == original.tokenizer_fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_kept_as_they_were(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = load_classifier(folders[kind], labels=LABELS)
    torch.testing.assert_close(logits(select_layers(model, range(4))), logits(model), rtol=0, atol=0)
    student = select_layers(model, (0, 2))
    torch.testing.assert_close(logits(student), logits(with_layers(model, (0, 2))), rtol=0, atol=0)
    save_model(student, tmp_path)
    again = load_classifier(tmp_path, labels=LABELS, seed=5)
    torch.testing.assert_close(logits(again), logits(student), rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(ENCODERS.keys() - set(KINDS)))
def test_every_other_family_can_be_cut(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **SMALL, num_labels=3)
    torch.manual_seed(0)
    model = new_classifier(config)
    student = select_layers(model, (0, 3))
    torch.testing.assert_close(logits(student), logits(with_layers(model, (0, 3))))
    save_model(student, tmp_path)
    torch.testing.assert_close(logits(load_classifier(tmp_path, labels=LABELS)), logits(student))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    model = load_classifier(folders[kind], labels=LABELS)
    with torch.no_grad():
        alone = model(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits
    torch.testing.assert_close(logits(model)[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_depends_on_the_seed_alone(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    def head(folder: Path, seed: int) -> list[torch.Tensor]:
        model = load_classifier(folder, labels=LABELS, seed=seed)
        return [weight for name, weight in model.named_parameters() if name.startswith("classifier")]

    torch.manual_seed(9)
    first = head(folders[kind], 3)
    torch.manual_seed(10)
    other_encoder = tiny_model(tmp_path, kind, num_layers=2, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first, head(other_encoder, 3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, head(folders[kind], 4), strict=True))


def test_loading_leaves_the_generator_alone(folders: dict[str, Path]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    select_layers(load_classifier(folders["bert"], labels=LABELS), (0,))
    assert torch.equal(torch.rand(1), expected)


def test_labels_and_dropout_are_in_the_config(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        model = load_classifier(folders[kind], labels=LABELS, dropout=0.25)
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.label2id == {"cat": 0, "dog": 1, "sun": 2}
        rates = {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}
        assert rates <= {0.25}
        assert not model.training


def test_saved_labels_and_types_survive(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_classifier(folders["modernbert"], labels=LABELS)
    save_model(select_layers(model, (0, 3)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention"]
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "sun"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 2
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("layers", [(), (2, 1), (0, 0), (0, 4), (-1, 2)])
def test_layers_that_cannot_be_kept(folders: dict[str, Path], layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"give rising numbers within 0 … 3"):
        select_layers(load_classifier(folders["bert"], labels=LABELS), layers)


def test_a_first_layer_that_is_special(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"modernbert: layer 1 cannot come first.*keep layer 0"):
        select_layers(load_classifier(folders["modernbert"], labels=LABELS), (1, 2))


@pytest.mark.parametrize("kind", ["t5", "gpt2", "longformer", None])
def test_other_architectures_are_refused_by_name(bert: Path, kind: str | None) -> None:
    (bert / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"architecture {kind!r} is not handled; handled are .*bert, .*roberta"):
        inspect_model(str(bert))


def test_weights_that_are_not_safetensors(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors in .*found pytorch_model\.bin; convert it"):
        inspect_model(str(bert))


def test_damaged_weights(bert: Path) -> None:
    content = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        inspect_model(str(bert))


def test_a_tokenizer_with_more_tokens_than_the_model(bert: Path) -> None:
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = len(VOCABULARY)
    (bert / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=f"ids go up to {len(VOCABULARY)}, but the model knows {len(VOCABULARY)}"):
        inspect_model(str(bert))


def test_a_model_without_tokenizer(bert: Path) -> None:
    for path in bert.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer in"):
        inspect_model(str(bert))


def test_weights_of_another_model(bert: Path) -> None:
    tiny_model(bert.parent / "electra", "electra")
    shutil.copy(bert.parent / "electra" / "model.safetensors", bert)
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(ModelError, match="tensors of the encoder are not in the weights"):
        load_classifier(bert, labels=LABELS)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("package:no_such_package_here", "no such Python package"),
        ("package:json", "has no folder 'model'"),
        ("./no/such/folder", "no such folder; give a folder, a hub id"),
        (__file__, "is a file; give the folder"),
    ],
)
def test_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_model(reference)


def test_a_broken_config(bert: Path) -> None:
    (bert / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        inspect_model(str(bert))


def test_dropout_of_a_config_only_where_it_is_a_rate(folders: dict[str, Path]) -> None:
    config = classifier_config(folders["distilbert"], LABELS, dropout=0.5)
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.5, 0.5, 0.5)
