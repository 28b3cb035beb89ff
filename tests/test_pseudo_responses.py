"""Pseudo-labels for models that write: greedy responses that came to their end, as sure as their tokens are likely."""

from typing import Any

import numpy as np
import pytest
import torch
from generation_task import generation_context
from training_task import finetuning, fitting, plan_of

from spaces.methods.cut import SelectLayers
from spaces.methods.pseudo_label import PseudoLabel
from spaces.plan import Plan
from spaces.stages import Chain
from trainers import pseudo_label as method
from trainers import pseudo_responses
from trainers.causal_models import load_causal
from trainers.context import Context, unhurried
from trainers.generation_tokens import ResponseTokens
from trainers.kinds import kind_of, split_tokens
from trainers.kinds.kind import PseudoLabels
from trainers.loop import TrainingError
from trainers.progress import Progress
from trainers.ranks import solo
from trainers.run_stage import run_plan

_TEACHER = plan_of(finetuning(epochs=4))
_UNTAUGHT = plan_of(finetuning(epochs=1, learning_rate=1e-9))
_NUM_ROWS = 30


def _plan(confidence: float, teacher: Plan = _TEACHER) -> Plan:
    chain = Chain(base="base", stages=teacher.stages)
    stage = PseudoLabel(optimisation=fitting(epochs=1), teacher=chain, unlabeled="more", confidence=confidence)
    return plan_of(SelectLayers(layers=(0,)), stage)


def _silent(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    found = generation_context(tmp_path_factory.mktemp("pseudo"), unlabeled=_NUM_ROWS)
    run_plan(_TEACHER, found, ranks=solo(), report=_silent)
    return found


@pytest.fixture(scope="module")
def prompts(context: Context) -> ResponseTokens:
    found = split_tokens(context, base="base", split="unlabeled")
    assert isinstance(found, ResponseTokens)
    return found


@pytest.fixture(scope="module")
def labels(context: Context) -> PseudoLabels:
    return kind_of(context).pseudo_labels(_TEACHER, context, ranks=solo(), heartbeat=unhurried)


@pytest.fixture(scope="module")
def written(context: Context, prompts: ResponseTokens) -> list[tuple[list[int], float, bool]]:
    """Ids of each response, the geometric mean of their probabilities and whether it ended: one prompt at a time, one
    token at a time, without a cache.
    """
    trained = context.store.find(_TEACHER.fingerprint)
    assert trained is not None
    model = load_causal(trained.folder)
    return [_write(model, prompts.prompt(row).tolist(), prompts.tokenizer.eos_token_id) for row in range(_NUM_ROWS)]


@torch.no_grad()
def _write(model: Any, prompt: list[int], end: int) -> tuple[list[int], float, bool]:
    ids, shares = list(prompt), []
    for _ in range(4):
        probabilities = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        ids.append(int(probabilities.argmax()))
        shares.append(float(probabilities.max()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :], float(np.prod(shares) ** (1 / len(shares))), ids[-1] == end


def test_responses_are_greedy_and_their_confidence_is_the_geometric_mean(
    prompts: ResponseTokens, labels: PseudoLabels, written: list[tuple[list[int], float, bool]]
) -> None:
    texts = prompts.texts([np.array(ids) for ids, _, _ in written])
    usable = [ended and text != "" for text, (_, _, ended) in zip(texts, written, strict=True)]
    assert sum(usable) > 5
    assert [text if use else "" for text, use in zip(texts, usable, strict=True)] == list(labels.answers)
    assert np.isnan(labels.confidences).tolist() == [not use for use in usable]
    expected = [share for (_, share, _), use in zip(written, usable, strict=True) if use]
    np.testing.assert_allclose(labels.confidences[usable], expected, rtol=1e-4)


def test_it_trains_on_gold_rows_and_on_what_the_teacher_is_sure_of(
    context: Context,
    prompts: ResponseTokens,
    labels: PseudoLabels,
    written: list[tuple[list[int], float, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threshold = float(np.nanmedian(labels.confidences))
    kept = np.flatnonzero(labels.confidences >= threshold)
    seen: list[ResponseTokens] = []
    fit = method.fit
    monkeypatch.setattr(method, "fit", lambda *args, tokens: seen.append(tokens) or fit(*args, tokens=tokens))
    # They are written already, by another plan's teacher that is the same.
    monkeypatch.setattr(pseudo_responses, "written_ids", None)
    artifact = run_plan(_plan(threshold), context, ranks=solo(), report=_silent)
    gold = split_tokens(context, base="base", split="train")
    (rows,) = seen
    assert len(rows) == len(gold) + len(kept)
    for number, row in enumerate(kept.tolist(), start=len(gold)):
        assert rows.ids(number).tolist() == [*prompts.prompt(row).tolist(), *written[row][0]]
        assert rows.responses[number] == labels.answers[row]
    assert artifact.about["notes"] == {"pseudo_labels_kept": len(kept) / _NUM_ROWS, "pseudo_labels": len(kept)}
    assert artifact.about["seconds"] > labels.seconds > 0


def test_what_is_cut_off_or_empty_is_never_kept(context: Context, prompts: ResponseTokens) -> None:
    """A model that has learnt nothing does not come to an end."""
    with pytest.raises(TrainingError, match=r"nothing that the teacher wrote to the 30 unlabeled prompts is of use"):
        run_plan(_plan(0.0, _UNTAUGHT), context, ranks=solo(), report=_silent)
    found = kind_of(context).pseudo_labels(_UNTAUGHT, context, ranks=solo(), heartbeat=unhurried)
    assert set(found.answers) == {""} and np.isnan(found.confidences).all()
    assert len(found.confidences) == len(prompts)


def test_a_teacher_that_is_sure_of_nothing_fails_the_plan_and_says_how_sure_it_was(
    context: Context, labels: PseudoLabels
) -> None:
    highest = f"{np.nanmax(labels.confidences):.3f}"
    with pytest.raises(TrainingError, match=f"sure of none of the 30 unlabeled rows: its highest .* {highest}"):
        run_plan(_plan(1.0), context, ranks=solo(), report=_silent)
