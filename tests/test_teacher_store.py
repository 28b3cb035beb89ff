"""Teacher outputs on disk: what comes back, what it costs, and what it teaches."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from random_tensors import random_logits
from torch import Tensor

from trainers.losses import SampledTargets, TopKTargets, forward_kl, sampled_forward_kl, top_k_forward_kl
from trainers.model_files import ModelError
from trainers.teacher import Form, Full, Outputs, Sampled, TopK, open_outputs, write_outputs

LENGTHS = np.array([3, 0, 2, 4, 1])
CLASSES = 20
LOGITS = random_logits((int(LENGTHS.sum()), CLASSES), seed=0)
FORMS = [Full(), TopK(k=4, temperature=2.0), Sampled(num_draws=30, temperature=2.0, seed=3)]
each_form = pytest.mark.parametrize("form", FORMS, ids=["full", "top_k", "sampled"])


def positions(row: int) -> slice:
    first = int(LENGTHS[:row].sum())
    return slice(first, first + int(LENGTHS[row]))


def written(folder: Path, form: Form, blocks: list[list[int]]) -> Outputs:
    """The rows of ``LOGITS``, in these blocks."""
    folder.mkdir(exist_ok=True)
    with write_outputs(folder, form) as outputs:
        for rows in blocks:
            outputs.add(rows, torch.cat([LOGITS[positions(row)] for row in rows]), lengths=LENGTHS[rows])
    return open_outputs(folder, temperature=2.0)


def parts(targets: Tensor | TopKTargets | SampledTargets) -> list[Tensor]:
    if isinstance(targets, Tensor):
        return [targets]
    return [value for value in vars(targets).values() if isinstance(value, Tensor)]


def dense(targets: SampledTargets, num_classes: int) -> Tensor:
    counts = torch.zeros(len(targets.ids_PN), num_classes, dtype=torch.int64)
    return counts.scatter_add(-1, targets.ids_PN, targets.counts_PN)


@each_form
def test_rows_come_back_whatever_the_order_and_the_blocks_they_were_written_in(form: Form, tmp_path: Path) -> None:
    at_once = written(tmp_path / "a", form, [[0, 1, 2, 3, 4]])
    in_parts = written(tmp_path / "b", form, [[4, 2], [3, 0], [1]])  # the last one without any position
    assert len(at_once) == len(in_parts) == 5
    assert at_once.num_positions == in_parts.num_positions == len(LOGITS)
    assert len(in_parts.blocks) == 3 and in_parts.form == form
    for rows in ([0, 1, 2, 3, 4], [3, 2], [1], []):
        found, expected = parts(in_parts.read(rows)), parts(at_once.read(rows))
        assert len(found[0]) == LENGTHS[rows].sum()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@each_form
def test_opening_maps_the_file(form: Form, tmp_path: Path) -> None:
    written(tmp_path, form, [[0, 1, 2], [3, 4]])
    before = pa.total_allocated_bytes()
    outputs = open_outputs(tmp_path, temperature=2.0)
    assert pa.total_allocated_bytes() == before
    columns = [column for block in outputs.blocks for column in block]
    assert not any(column.flags.owndata or column.flags.writeable for column in columns)
    # What is read is one's own: a loss may not write into the file.
    assert all(part.numpy().flags.writeable for part in parts(outputs.read([0, 3])))


def test_in_full_the_log_probabilities_at_temperature_1_come_back(tmp_path: Path) -> None:
    found = written(tmp_path, Full(), [[0, 1, 2], [3, 4]]).read([3, 0])
    expected = torch.cat([LOGITS[positions(3)], LOGITS[positions(0)]]).log_softmax(-1)
    assert isinstance(found, Tensor) and torch.equal(found, expected)


def test_the_top_k_come_back_with_the_rest_in_one(tmp_path: Path) -> None:
    found = written(tmp_path, TopK(k=4, temperature=2.0), [[0, 1, 2], [3, 4]]).read(range(5))
    assert isinstance(found, TopKTargets) and found.temperature == 2.0
    p = np.exp(LOGITS.double().numpy() / 2)
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    np.testing.assert_array_equal(found.ids_PK, order[:, :4])
    np.testing.assert_allclose(found.log_probs_PK.exp(), np.take_along_axis(p, order[:, :4], -1), rtol=1e-5)
    np.testing.assert_allclose(found.log_tail_P.exp(), np.take_along_axis(p, order[:, 4:], -1).sum(-1), rtol=1e-5)


def test_draws_are_distinct_classes_with_counts(tmp_path: Path) -> None:
    found = written(tmp_path, Sampled(num_draws=30, temperature=2.0), [[0, 1, 2, 3, 4]]).read(range(5))
    assert isinstance(found, SampledTargets) and found.temperature == 2.0
    assert (found.counts_PN.sum(-1) == 30).all()
    for ids, counts in zip(found.ids_PN, found.counts_PN, strict=True):
        drawn = ids[counts > 0].tolist()
        assert drawn == sorted(set(drawn))


@pytest.mark.parametrize("num_draws", [200, 300])
@pytest.mark.parametrize("num_classes", [CLASSES, 70_000])
def test_large_vocabularies_and_many_draws_fit_their_types(num_draws: int, num_classes: int, tmp_path: Path) -> None:
    logits = torch.full((1, num_classes), -50.0)
    logits[0, -1] = 50.0
    for form in (Sampled(num_draws=num_draws), TopK(k=1)):
        with write_outputs(tmp_path, form) as outputs:
            outputs.add([0], logits)
        ids, *others = parts(open_outputs(tmp_path, temperature=1.0).read([0]))
        assert ids.tolist() == [[num_classes - 1]]
        if isinstance(form, Sampled):
            assert others[0].tolist() == [[num_draws]]


def test_another_seed_or_row_is_other_luck_and_the_same_is_the_same(tmp_path: Path) -> None:
    same = LOGITS[:1].expand(2, CLASSES)
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        with write_outputs(tmp_path / name, Sampled(seed=seed)) as outputs:
            outputs.add([0, 1], same)
        drawn.append(dense(open_outputs(tmp_path / name, temperature=1.0).read([0, 1]), CLASSES))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_a_class_without_probability_is_never_drawn(tmp_path: Path) -> None:
    logits = LOGITS[:1].clone()
    logits[0, [0, 7, CLASSES - 1]] = -torch.inf
    with write_outputs(tmp_path, Sampled(num_draws=5000)) as outputs:
        outputs.add([0], logits)
    counts = dense(open_outputs(tmp_path, temperature=1.0).read([0]), CLASSES)[0]
    assert not counts[[0, 7, CLASSES - 1]].any()


@each_form
def test_another_temperature_is_refused_where_it_was_fixed(form: Form, tmp_path: Path) -> None:
    written(tmp_path, form, [[0, 1, 2, 3, 4]])
    if isinstance(form, Full):
        assert len(open_outputs(tmp_path, temperature=4.0)) == 5
        return
    with pytest.raises(ModelError, match=r"kept at temperature 2 and cannot be used at 4; .* keep them in full"):
        open_outputs(tmp_path, temperature=4.0)


def test_rows_of_one_position_in_order_need_no_second_file(tmp_path: Path) -> None:
    with write_outputs(tmp_path, Full()) as outputs:
        outputs.add(range(4), LOGITS[:4])
        outputs.add([4, 5], LOGITS[4:6])
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.arrow"]
    with pa.memory_map(str(tmp_path / "teacher.arrow")) as source:
        schema = pa.ipc.open_file(source).schema
    assert schema == pa.schema({"log_probs": pa.list_(pa.float32(), CLASSES)}) and schema.metadata is None
    assert torch.equal(open_outputs(tmp_path, temperature=1.0).read([5, 0]), LOGITS[[5, 0]].log_softmax(-1))


def test_rows_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1 was written 0 times"), write_outputs(tmp_path, Full()) as outputs:
        outputs.add([0, 2], LOGITS[:2])
    with pytest.raises(ValueError, match="row 0 was written 2 times"), write_outputs(tmp_path, Full()) as outputs:
        outputs.add([0, 0], LOGITS[:2])
    with pytest.raises(ValueError, match="nothing was written"), write_outputs(tmp_path, Full()):
        pass
    with pytest.raises(ValueError, match="a sum of 3, and logits of 2"), write_outputs(tmp_path, Full()) as outputs:
        outputs.add([0], LOGITS[:2], lengths=np.array([3]))
    with pytest.raises(IndexError, match="row 5 is outside 0 … 4"):
        written(tmp_path, Full(), [[0, 1, 2, 3, 4]]).read([5])


def test_settings_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most the number of classes, 20, but got 21"):
        written(tmp_path, TopK(k=21), [[0]])
    with pytest.raises(ValueError, match="k must be 1 or more"):
        TopK(k=0)
    with pytest.raises(ValueError, match="num_draws must be 1 to 65535"):
        Sampled(num_draws=70_000)


VOCABULARY = 2000


def language_like(num_positions: int, *, seed: int = 0) -> Tensor:
    """Logits whose likeliest entry has about .4 and of which 50 draws are about 15 entries, as a language model's."""
    rank = torch.arange(1, VOCABULARY + 1).log()
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(num_positions)])
    return -1.6 * rank[order] + 0.5 * torch.randn(num_positions, VOCABULARY, generator=generator)


def test_fifty_draws_cost_less_than_150_bytes_a_position(tmp_path: Path) -> None:
    blocks, rows, tokens = 5, 8, 64
    with write_outputs(tmp_path, Sampled(num_draws=50)) as outputs:
        for block in range(blocks):
            logits = language_like(rows * tokens, seed=block)
            outputs.add(range(block * rows, (block + 1) * rows), logits, lengths=np.full(rows, tokens))
    bytes_on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    distinct = (open_outputs(tmp_path, temperature=1.0).read(range(blocks * rows)).counts_PN > 0).sum(-1).float().mean()
    per_position = bytes_on_disk / (blocks * rows * tokens)
    assert 8 < distinct < 20
    assert 3 * distinct + 4 < per_position < 3 * distinct + 10 < 150


def gradients(student_C: Tensor, targets: SampledTargets) -> Tensor:
    """By the student's logits, of each position's loss by itself, draws × C."""
    student_RC = student_C.expand(len(targets.ids_PN), -1).clone().requires_grad_()
    loss = sampled_forward_kl(student_RC, targets, torch.ones(len(student_RC)), count=1)
    return torch.autograd.grad(loss, student_RC)[0]


@pytest.fixture(scope="module")
def many_draws(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, SampledTargets]:
    """One teacher's logits, and 50 draws from them 2,000 times over."""
    folder, teacher_C, times = tmp_path_factory.mktemp("draws"), language_like(1)[0], 2000
    with write_outputs(folder, Sampled(num_draws=50)) as outputs:
        for start in range(0, times, 250):
            outputs.add(range(start, start + 250), teacher_C.expand(250, -1))
    targets = open_outputs(folder, temperature=1.0).read(range(times))
    assert isinstance(targets, SampledTargets)
    return teacher_C.double(), targets


@pytest.mark.parametrize("trained", [False, True])
def test_the_expected_gradient_of_draws_is_that_of_the_whole(
    trained: bool, many_draws: tuple[Tensor, SampledTargets]
) -> None:
    teacher_C, targets = many_draws
    student_C = teacher_C.clone() if trained else random_logits((VOCABULARY,), seed=5, dtype=torch.float64)
    leaf = student_C.clone().requires_grad_()
    (full_C,) = torch.autograd.grad(forward_kl(leaf[None], teacher_C[None], torch.ones(1)), leaf)
    found_RC = gradients(student_C, targets)
    error_C = found_RC.mean(dim=0) - full_C
    standard_C = found_RC.std(dim=0) / len(found_RC) ** 0.5
    likely = teacher_C.softmax(-1) > 1e-3  # where there are enough draws to be normally distributed
    assert likely.sum() > 40
    assert (error_C.abs() < 4.5 * standard_C)[likely].all()
    assert 0.3 < error_C.square().sum() / standard_C.square().sum() < 2


def test_the_top_k_alone_are_biased_where_draws_and_the_tail_are_not(
    many_draws: tuple[Tensor, SampledTargets],
) -> None:
    teacher_C, targets = many_draws
    student_C = teacher_C.clone().requires_grad_()
    top = teacher_C.log_softmax(-1).topk(12)
    tail = teacher_C.log_softmax(-1).scatter(-1, top.indices, -torch.inf).logsumexp(-1)

    def pull(log_tail: Tensor) -> Tensor:
        """By how much a student that is already the teacher is drawn away from it."""
        kept = TopKTargets(top.indices[None], top.values[None], log_tail[None], 1.0)
        return torch.autograd.grad(top_k_forward_kl(student_C[None], kept, torch.ones(1)), student_C)[0].norm()

    found_RC = gradients(teacher_C, targets)
    standard = (found_RC.var(dim=0).sum() / len(found_RC)).sqrt()
    assert pull(tail) < 1e-6
    # Without a tail, p is renormalised over the twelve.
    renormalised = torch.zeros_like(teacher_C).scatter(-1, top.indices, top.values.softmax(-1))
    without_tail = pull(torch.tensor(-torch.inf, dtype=torch.float64))
    torch.testing.assert_close(without_tail, (teacher_C.softmax(-1) - renormalised).norm())
    assert without_tail > 10 * standard
    assert found_RC.mean(dim=0).norm() < 2 * standard
