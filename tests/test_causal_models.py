"""Causal language models: what is found and refused, every family cut, written with and packed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import MAX_TOKENS, VOCABULARY, tiny_causal, tiny_model
from torch import nn

from trainers.causal_models import check_same_tokens, inspect_causal, load_causal
from trainers.families import DECODERS
from trainers.generate import greedy
from trainers.models import ModelError, cut_config, inspect_model, save_model, select_layers
from trainers.packed import Int4Linear, Int8Embedding, Int8Linear, int4_groups, int8_rows, open_packed, write_packed

END = VOCABULARY["[SEP]"]
PROMPTS = [np.array([2, *ids]) for ids in ([5, 9, 12], [7, 8, 6, 10, 11, 5, 9, 20, 21], [14])]
IDS = torch.tensor([[2, 5, 6, 7, 11, 12, 20], [2, 8, 10, 9, 14, 15, 16]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("causal")
    return {kind: tiny_causal(root / kind, kind, num_layers=3) for kind in DECODERS}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def write(model: nn.Module, prompts: list[np.ndarray], length: int = 12) -> list[list[int]]:
    return [ids.tolist() for ids in greedy(model, prompts, max_new_tokens=length, end_ids={END}, pad_id=0)]


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_what_the_files_tell(folders: dict[str, Path], kind: str) -> None:
    info = inspect_causal(str(folders[kind]))
    assert (info.model_type, info.num_layers, info.hidden_size) == (kind, 3, 32)
    assert (info.vocab_size, info.max_tokens) == (len(VOCABULARY), MAX_TOKENS)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_layers_are_kept_as_they_were(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = load_causal(folders[kind])
    torch.testing.assert_close(logits(select_layers(model, range(3))), logits(model), rtol=0, atol=0)
    student = select_layers(model, (0, 2))
    parent, _, name = DECODERS[kind].layers.rpartition(".")
    owner = model.base_model.get_submodule(parent)
    # The same cut by other means: the list of layers is shortened in place.
    setattr(owner, name, nn.ModuleList([getattr(owner, name)[layer] for layer in (0, 2)]))
    model.config = cut_config(model.config, (0, 2))
    owner.config = model.config
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=0)
    save_model(student, tmp_path)
    torch.testing.assert_close(logits(load_causal(tmp_path)), logits(student), rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_every_family_writes_what_transformers_does_whatever_stands_beside(folders: dict[str, Path], kind: str) -> None:
    model = load_causal(folders[kind])
    together = write(model, PROMPTS)
    assert together == [write(model, [prompt])[0] for prompt in PROMPTS]
    for prompt, found in zip(PROMPTS, together, strict=True):
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": END, "pad_token_id": 0}
        expected = model.generate(torch.tensor(prompt)[None], attention_mask=torch.ones(1, len(prompt)), **options)
        whole = expected[0, len(prompt) :].tolist()
        assert found == (whole[: whole.index(END)] if END in whole else whole)


def test_writing_stops_at_the_end_token_of_each(folders: dict[str, Path]) -> None:
    """With other tokens as the end, each response is the long one up to the first of them."""
    model = load_causal(folders["llama"])
    long = write(model, PROMPTS, 20)
    for end in {ids[k] for ids in long for k in (0, 3, 7)}:
        found = greedy(model, PROMPTS, max_new_tokens=20, end_ids={END, end}, pad_id=0)
        expected = [ids[: ids.index(end)] if end in ids else ids for ids in long]
        assert [ids.tolist() for ids in found] == expected


@pytest.mark.parametrize("kind", sorted(DECODERS))
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("bf16", 0.1), ("int8", 0.1), ("int4", 0.6)])
def test_every_family_is_packed_and_opened(
    folders: dict[str, Path], kind: str, precision: str, bound: float, tmp_path: Path
) -> None:
    expected = logits(load_causal(folders[kind]))
    path = write_packed(load_causal(folders[kind]), precision=precision, folder=tmp_path)  # type: ignore[arg-type]
    opened = open_packed(path)
    assert (logits(opened) - expected).square().mean() < bound**2 * expected.square().mean()
    assert {parameter.device.type for parameter in opened.state_dict().values()} == {"cpu"}
    assert all(buffer.is_floating_point() or buffer.dtype != torch.float32 for buffer in opened.buffers())
    assert all(len(ids) <= 6 for ids in write(opened, PROMPTS, 6))


def test_packing_makes_files_small_and_the_same_bytes(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path / "model", hidden_size=128)
    sizes, contents = [], set()
    for name in "ab":
        for precision in ("fp32", "bf16", "int8", "int4"):
            path = write_packed(load_causal(folder), precision=precision, folder=tmp_path / name)  # type: ignore[arg-type]
            sizes.append(path.stat().st_size)
            contents.add(path.read_bytes())
    assert len(contents) == 4
    assert sizes[1] < 0.55 * sizes[0] and sizes[2] < 0.3 * sizes[0] and sizes[3] < sizes[2]
    assert all(str(tmp_path).encode() not in content for content in contents)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_packed(tmp_path: Path, tied: bool) -> None:
    folder = tiny_causal(tmp_path / "model", tied=tied)
    model = open_packed(write_packed(load_causal(folder), precision="int4", folder=tmp_path))
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, Int8Linear) and isinstance(table, Int8Embedding)
    assert (head.weight.data_ptr() == table.weight.data_ptr()) is tied
    assert not any(isinstance(part, nn.Linear) for part in model.modules())
    assert sum(isinstance(part, Int4Linear) for part in model.modules()) == 2 * 7


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 16), (33, 172), (64, 64), (130, 48)])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_packed_layer_is_the_layer_of_its_rounded_weight(outputs: int, inputs: int, rows: int) -> None:
    """Against plain arithmetic on the weights as they were rounded, which are near the original's."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    values = torch.randn(2, rows, inputs, generator=generator).bfloat16()
    bias = torch.randn(outputs, generator=generator).bfloat16()
    whole, scale = int8_rows(weight)
    rounded = whole[:, :inputs].float() * scale.float()[:, None]
    assert ((rounded - weight).abs() <= 0.51 * scale.float()[:, None] + 1e-6).all()
    expected = values.float() @ rounded.T + bias.float()
    torch.testing.assert_close(Int8Linear(whole, scale, bias)(values).float(), expected, atol=0.2, rtol=0.02)

    packed, scales = int4_groups(weight)
    identity = Int4Linear(packed, scales, None, num_outputs=outputs)(torch.eye(inputs).bfloat16()).float().T
    steps = scales[..., 0].float().T.repeat_interleave(32, dim=1)[:outputs, :inputs]
    assert ((identity - weight).abs() <= 0.6 * steps + 0.02).all()
    found = Int4Linear(packed, scales, bias, num_outputs=outputs)(values).float()
    torch.testing.assert_close(found, values.float() @ identity.T + bias.float(), atol=0.3, rtol=0.05)


def test_a_precision_that_the_machine_lacks(folders: dict[str, Path], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "NO AVX")
    with pytest.raises(ModelError, match=r"int4: not on this machine.*found NO AVX.*use int8"):
        write_packed(load_causal(folders["llama"]), precision="int4", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_encoders_are_refused_and_so_are_decoders_as_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'bert' is not handled; handled are causal language models of .*llama"):
        inspect_causal(str(tiny_model(tmp_path)))
    with pytest.raises(ModelError, match="'llama' is not handled; handled are encoders of"):
        inspect_model(str(folders["llama"]))


def test_a_tokenizer_without_an_end(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no eos_token, so that no response would end"):
        inspect_causal(str(folder))


def test_weights_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelError, match="tensors of the model are not in the weights"):
        load_causal(folder)


def test_a_teacher_of_another_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    student = inspect_causal(str(folders["llama"]))
    check_same_tokens(student, inspect_causal(str(folders["gpt2"])), max_tokens=512, way_out="drop it")
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "other"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    size = len(VOCABULARY)
    with pytest.raises(ModelError, match=rf"has {size} tokens, the student {size}, and they are not the same ones"):
        check_same_tokens(student, inspect_causal(str(folder)), max_tokens=512, way_out="drop it")


def test_a_teacher_that_reads_less(folders: dict[str, Path], tmp_path: Path) -> None:
    student = inspect_causal(str(folders["llama"]))
    teacher = inspect_causal(str(tiny_causal(tmp_path, max_tokens=MAX_TOKENS // 2)))
    check_same_tokens(student, teacher, max_tokens=MAX_TOKENS // 2, way_out="drop it")
    with pytest.raises(ModelError, match=r"takes 32 tokens, .* 64: .*; set task.max_tokens to 32 or less"):
        check_same_tokens(student, teacher, max_tokens=512, way_out="drop it")
