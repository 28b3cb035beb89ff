"""Training one stage: batches, embeddings, adapters, the loop, checkpoints."""

import copy
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import KINDS, tiny_model
from torch import nn
from training_task import LABELS, finetuning, fitting, plan_of, tiny_context

from spaces.methods.cut import SelectLayers
from spaces.methods.distill import Distill
from spaces.methods.finetune import Lora
from spaces.methods.meta import MetaDistill
from spaces.plan import Plan
from spaces.stages import Chain
from trainers.artifacts import Artifact
from trainers.batches import collate, epoch_batches, sorted_batches
from trainers.checkpoints import FOLDER, remove_all
from trainers.compute import fast_attention, logits
from trainers.context import Context, Report, Stopped, Suspended
from trainers.embeddings import UsedRows, train_used_rows, used_ids
from trainers.finetune import adapted_modules, add_adapters
from trainers.kinds import split_tokens
from trainers.loop import TrainingError, new_optimizer, rate_share
from trainers.metrics import quality
from trainers.models import load_classifier
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import plan_memory_mb, run_plan
from trainers.storage import Storage

FULL = plan_of(finetuning())
LORA = plan_of(finetuning(Lora(rank=4, alpha=8)))
DISTILL = plan_of(
    SelectLayers(layers=(0,)),
    Distill(
        optimisation=fitting(dropout=0.1),
        teacher=Chain(base="base", stages=(finetuning(),)),
        temperature=2.0,
        alpha=0.9,
        alpha_end=0.1,
    ),
)

META = plan_of(
    SelectLayers(layers=(0,)),
    MetaDistill(
        optimisation=fitting(),
        teacher=Chain(base="base", stages=(finetuning(),)),
        teacher_learning_rate=1e-3,
        quiz_share=0.2,
        temperature=2.0,
        alpha=0.7,
    ),
)


class Interrupted(Exception):
    """Stands for whatever ends a worker."""


def silent(_: Progress) -> None:
    pass


def train(plan: Plan, context: Context) -> tuple[Artifact, list[Progress]]:
    told: list[Progress] = []
    return run_plan(plan, context, ranks=solo(), report=told.append), told


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(tmp_path_factory.mktemp("training"))


# Batches --------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=300).map(np.array)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_is_every_row_once(lengths: np.ndarray, batch_size: int, epoch: int) -> None:
    batches = epoch_batches(lengths, batch_size=batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    again = epoch_batches(lengths, batch_size=batch_size, seed=1, epoch=epoch)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))


def test_batches_hold_rows_of_like_length_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=1600)
    batches = epoch_batches(lengths, batch_size=32, seed=0, epoch=0)
    padded = sum(lengths[rows].max() * len(rows) for rows in batches)
    assert padded < 1.05 * lengths.sum()
    means = [lengths[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert any((a != b).any() for a, b in zip(batches, epoch_batches(lengths, batch_size=32, **other), strict=True))


def test_the_smaller_batch_does_not_get_the_longest_rows() -> None:
    lengths = np.arange(1, 66)
    left_over = [epoch_batches(lengths, batch_size=64, seed=0, epoch=epoch) for epoch in range(5)]
    assert {int(lengths[rows[0]]) for batches in left_over for rows in batches if len(rows) == 1} != {65}


@given(LENGTHS)
def test_asking_takes_every_row_once_by_length(lengths: np.ndarray) -> None:
    order = np.concatenate(sorted_batches(lengths, batch_size=7))
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()


def test_a_batch_is_padded_to_its_longest_row(context: Context) -> None:
    tokens = split_tokens(context, base="base", split="train")
    batch = collate(tokens, [4, 9, 2], pad_id=77, whole=[4, 9, 2, 0, 7])
    assert batch.count == 5 and batch.num_tokens == sum(tokens.lengths[[4, 9, 2, 0, 7]])
    assert batch.labels_P.tolist() == tokens.labels[[4, 9, 2]].tolist()
    assert batch.input_ids_BL.shape[1] == max(tokens.lengths[[4, 9, 2]])
    for ids, mask, row in zip(batch.input_ids_BL, batch.attention_mask_BL, (4, 9, 2), strict=True):
        assert ids[mask.bool()].tolist() == tokens.ids(row).tolist()
        assert (ids[~mask.bool()] == 77).all() and mask.sum() == tokens.lengths[row]


# Embeddings -----------------------------------------------------------------------------------------------------


def test_training_the_used_rows_is_dense_adamw_bit_for_bit() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(50, 8, padding_idx=0), nn.Linear(8, 3))
    sparse = copy.deepcopy(dense)
    sparse[0] = UsedRows(sparse[0], torch.tensor([0, 3, 7, 21, 40]))
    for step in range(8):
        ids = torch.tensor([[3, 7, 0, 21], [21, 0, 0, 3]] if step % 2 else [[40, 3, 0, 0]])
        for model in (dense, sparse):
            if step == 0:
                parameters = [p for name, p in model.named_parameters() if "table" not in name]
                model.optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0, fused=True)  # type: ignore
            model.optimizer.zero_grad()
            model(ids).pow(2).sum().backward()
            model.optimizer.step()
    table = sparse.eval()[0].table.weight
    assert torch.equal(table, dense[0].weight)
    assert torch.equal(sparse(torch.arange(50)[None]), dense(torch.arange(50)[None]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_trains_its_used_rows_as_it_would_the_table(kind: str, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, kind=kind, rows=8)
    tokens = split_tokens(context, base="base", split="train")
    batch = collate(tokens, range(8), pad_id=0)
    dense = load_classifier(Path(context.models["base"]), labels=LABELS).train()
    sparse = copy.deepcopy(dense)
    used = used_ids(tokens, vocab_size=dense.config.vocab_size, pad_id=0)
    assert set(used.tolist()) == {0} | {int(token) for row in range(8) for token in tokens.ids(row)}
    fit_once(dense, batch)
    with train_used_rows(sparse, used):
        fit_once(sparse, batch)
        trained = sum(p.numel() for p in sparse.parameters() if p.requires_grad)
        assert trained < sum(p.numel() for p in dense.parameters())
        asked = sparse.eval()(batch.input_ids_BL, batch.attention_mask_BL).logits
    assert sparse.state_dict().keys() == dense.state_dict().keys()
    for name, weights in dense.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[name], weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(asked, dense.eval()(batch.input_ids_BL, batch.attention_mask_BL).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_trains_in_bfloat16_nearly_as_in_float32(kind: str, tmp_path: Path) -> None:
    plan = plan_of(finetuning(epochs=1, learning_rate=1e-3))
    losses = []
    for compute in ("fp32", "bf16"):
        _, told = train(plan, tiny_context(tmp_path / compute, kind=kind, compute=compute))
        losses.append(told[-1].train_loss)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_short_rows_in_bfloat16_get_plain_attention_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, compute="bf16")
    model = load_classifier(Path(context.models["base"]), labels=LABELS)
    for longest, expected in ((128, "eager"), (129, "sdpa")):
        with fast_attention(model, longest=longest, context=context):
            assert model.config._attn_implementation == expected
        assert model.config._attn_implementation == "sdpa"


def fit_once(model: nn.Module, batch: object) -> None:
    optimizer = new_optimizer(model, fitting())
    for _ in range(2):
        optimizer.zero_grad()
        found = model(batch.input_ids_BL, batch.attention_mask_BL).logits  # type: ignore[attr-defined]
        nn.functional.cross_entropy(found, batch.labels_P).backward()  # type: ignore[attr-defined]
        optimizer.step()


def test_a_token_outside_the_used_rows_is_an_error() -> None:
    with pytest.raises(IndexError):
        UsedRows(nn.Embedding(9, 2), torch.tensor([1, 2]))(torch.tensor([5]))


# Adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["all", "attention"])
def test_adapters_start_as_nothing_and_merge_into_the_weights(kind: str, target: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", kind, num_layers=2)
    base = load_classifier(folder, labels=LABELS)
    names = adapted_modules(base, target)
    assert len(names) % 2 == 0 and all(".0." in name or ".1." in name for name in names)
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    before = base(ids).logits
    adapted = add_adapters(base, Lora(rank=2, alpha=4, target=target)).eval()
    torch.testing.assert_close(adapted(ids).logits, before)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("lora_A" in name for name in trained) == len(names)
    assert all("lora_" in name or "classifier" in name or "pooler" in name or "head" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter.data)
    unmerged = adapted(ids).logits
    assert (unmerged - before).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, unmerged, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == load_classifier(folder, labels=LABELS).state_dict().keys()


def test_fewer_layers_are_adapted_when_attention_alone_is(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path / "model"), labels=LABELS)
    attention, every = (set(adapted_modules(model, target)) for target in ("attention", "all"))
    assert attention < every
    assert {name.rsplit(".", 1)[1] for name in attention} == {"query", "key", "value", "dense"}


# The loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total, warmup_share", [(10, 0.3), (7, 0.0), (5, 1.0), (1, 0.1)])
def test_the_rate_rises_to_its_peak_and_falls_towards_zero(total: int, warmup_share: float) -> None:
    rates = [rate_share(step, total=total, warmup_share=warmup_share) for step in range(total)]
    assert max(rates) == 1 and min(rates) > 0
    top = rates.index(1)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_only_matrices_outside_embeddings_decay(tmp_path: Path) -> None:
    model = load_classifier(tiny_model(tmp_path / "model"), labels=LABELS)
    decayed, plain = (
        {id(p) for p in group["params"]} for group in new_optimizer(model, fitting(weight_decay=0.3)).param_groups
    )
    for name, parameter in model.named_parameters():
        decays = name.endswith("weight") and "embeddings" not in name and "LayerNorm" not in name
        assert id(parameter) in (decayed if decays else plain), name


@pytest.mark.parametrize("plan", [FULL, LORA], ids=["full", "lora"])
def test_a_stage_learns_and_leaves_its_model_and_history(plan: Plan, context: Context) -> None:
    artifact, told = train(plan, context)
    assert sorted(path.name for path in artifact.folder.iterdir()) == [
        "artifact.json",
        "config.json",
        "model.safetensors",
    ]
    about = artifact.about
    assert about["kind"] == "model" and Plan.model_validate(about["plan"]) == plan
    assert about["seconds"] == told[-1].seconds > 0 and about["peak_memory_mb"] > 0
    assert [entry["train_loss"] for entry in about["history"]] == [p.train_loss for p in told]
    assert [(p.epoch, p.epochs, p.fidelity, p.kind) for p in told] == [(k, 3, k / 3, "finetune") for k in (1, 2, 3)]
    assert told[-1].train_loss < told[0].train_loss < math.log(len(LABELS)) + 0.5
    tokens = split_tokens(context, base="base", split="validation")
    model = load_classifier(artifact.folder, labels=LABELS)
    found = logits(model, tokens, context=context, ranks=solo()).argmax(dim=-1).numpy()
    assert quality("accuracy", tokens.labels, found).value == told[-1].quality
    assert train(plan, context) == (artifact, [])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be started anew")
def test_each_stage_has_a_peak_of_its_own(context: Context) -> None:
    ballast = torch.ones(100_000_000 // 4)
    large = train(plan_of(finetuning(), seed=101), context)[0].about["peak_memory_mb"]
    del ballast
    small = train(plan_of(finetuning(), seed=102), context)[0].about["peak_memory_mb"]
    assert 80 < large - small < 120


def test_the_memory_of_a_plan_is_that_of_its_largest_stage(context: Context) -> None:
    train(DISTILL, context)
    parts = [context.store.about(part.fingerprint)["peak_memory_mb"] for part in DISTILL.trained_prefixes()]
    assert len(parts) == 2
    assert plan_memory_mb(DISTILL, context.store) == max(parts)


def test_adapters_leave_the_embeddings_alone(context: Context) -> None:
    trained, _ = train(LORA, context)
    base = load_classifier(Path(context.models["base"]), labels=LABELS).state_dict()
    for name, weights in load_file(trained.folder / "model.safetensors").items():
        same = torch.equal(weights, base[name])
        assert same == ("embeddings" in name or "LayerNorm" in name or (name.endswith("bias") and "layer." in name)), (
            name
        )


@pytest.mark.parametrize("plan", [FULL, LORA, DISTILL, META], ids=["full", "lora", "distill", "meta"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_stage_ends_as_if_it_had_not_been(plan: Plan, epoch: int, tmp_path: Path) -> None:
    undisturbed, all_told = train(plan, tiny_context(tmp_path / "one"))
    context = tiny_context(tmp_path / "two", checkpoint_every_s=0.0)

    def interrupt(progress: Progress) -> None:
        if progress.final and progress.epoch == epoch + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_plan(plan, context, ranks=solo(), report=interrupt)
    assert Storage(context.artifacts).child(FOLDER).names() == [f"{plan.fingerprint}.safetensors"]
    artifact, told = train(plan, context)
    weights = [(found.folder / "model.safetensors").read_bytes() for found in (undisturbed, artifact)]
    assert weights[0] == weights[1]
    final = [
        [dataclasses.replace(p, seconds=0.0, stage=0, num_stages=0, restored=False) for p in x if p.final]
        for x in (all_told, told)
    ]
    assert final[0] == final[1]
    assert [p.seconds for p in told] == sorted(p.seconds for p in told)
    assert Storage(context.artifacts).child(FOLDER).names() == []


@pytest.mark.parametrize(("beats", "error", "kept"), [(3, Suspended, 1), (3, Stopped, 0)])
def test_a_heartbeat_ends_a_stage_between_two_reports(
    beats: int, error: type[Stopped], kept: int, tmp_path: Path
) -> None:
    undisturbed, _ = train(FULL, tiny_context(tmp_path / "one"))
    context = tiny_context(tmp_path / "two", checkpoint_every_s=0.0)
    heard: list[Progress] = []
    left = iter(range(beats))

    def heartbeat() -> None:
        if next(left, None) is None:
            raise error

    with pytest.raises(error):
        run_plan(FULL, context, ranks=solo(), report=heard.append, heartbeat=heartbeat)
    assert 0 < len(heard) < FULL.stages[-1].optimisation.epochs
    assert len(Storage(context.artifacts).child(FOLDER).names()) == kept
    artifact, _ = train(FULL, context)
    weights = [(found.folder / "model.safetensors").read_bytes() for found in (undisturbed, artifact)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("seconds, kept", [(0.0, 1), (1e9, 0)])
def test_a_checkpoint_is_written_when_its_time_has_come(seconds: float, kept: int, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, checkpoint_every_s=seconds)
    with pytest.raises(Interrupted):
        run_plan(FULL, context, ranks=solo(), report=end_with(Interrupted))
    assert len(Storage(context.artifacts).child(FOLDER).names()) == kept


def test_a_stop_for_now_leaves_a_checkpoint_from_which_the_same_weights_come(tmp_path: Path) -> None:
    undisturbed, _ = train(FULL, tiny_context(tmp_path / "one"))
    context = tiny_context(tmp_path / "two", checkpoint_every_s=1e9)
    with pytest.raises(Suspended):
        run_plan(FULL, context, ranks=solo(), report=end_with(Suspended))
    assert Storage(context.artifacts).child(FOLDER).names() == [f"{FULL.fingerprint}.safetensors"]
    artifact, told = train(FULL, context)
    weights = [(found.folder / "model.safetensors").read_bytes() for found in (undisturbed, artifact)]
    assert weights[0] == weights[1]
    assert [(progress.epoch, progress.restored) for progress in told] == [(1, True), (2, True), (3, False)]


def test_no_checkpoint_stays_where_no_plan_is_to_be_gone_on_with(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    remove_all(context)
    with pytest.raises(Suspended):
        run_plan(FULL, context, ranks=solo(), report=end_with(Suspended))
    remove_all(context)
    assert Storage(context.artifacts).child(FOLDER).names() == []


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, checkpoint_every_s=0.0)
    with pytest.raises(Stopped):
        run_plan(FULL, context, ranks=solo(), report=end_with(Stopped))
    assert Storage(context.artifacts).child(FOLDER).names() == []
    assert not context.store.has(FULL.fingerprint)


def end_with(error: type[Exception]) -> Report:
    def report(progress: Progress) -> None:
        if progress.epoch == 2:
            raise error

    return report


@pytest.mark.parametrize("content", [b"", b"half a checkp", b"\x10" + bytes(7) + b"not json at all!"])
def test_an_unreadable_checkpoint_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    Storage(context.artifacts).child(FOLDER).write(f"{FULL.fingerprint}.safetensors", content)
    _, told = train(FULL, context)
    assert [p.epoch for p in told] == [1, 2, 3]


def test_a_loss_that_is_not_finite_says_where_it_happened(context: Context) -> None:
    diverging = plan_of(finetuning(learning_rate=1e38, warmup_share=0.0))
    with pytest.raises(
        TrainingError, match=r"stage 1 of 1 \(finetune\), step \d+ of 18, learning rate 1e\+38: the .*nan"
    ):
        run_plan(diverging, context, ranks=solo(), report=silent)
    assert not context.store.has(diverging.fingerprint)


def test_the_seed_decides_the_result(tmp_path: Path) -> None:
    folders = [
        train(plan_of(finetuning(epochs=1), seed=seed), tiny_context(tmp_path / name))[0].folder
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, second, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second != other
