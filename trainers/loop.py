"""One stage's training, whatever its loss: batches, optimiser, schedule, reports, checkpoints, data parallelism.

The result depends on the plan alone. An interruption, after which the stage goes on from a checkpoint, changes no bit
of it; the number of workers changes it by rounding.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spaces.canonical import fingerprint
from spaces.plan import Plan
from spaces.stages import Optimisation
from trainers.batches import Batch, epoch_batches, worker_batch
from trainers.checkpoints import Checkpoint, Standing, gather, restore
from trainers.compute import autocast, fast_attention, pad_id, pick_device
from trainers.context import Context, Heartbeat, Report, Suspended, unhurried
from trainers.embeddings import train_used_rows, used_ids
from trainers.kinds import asked_tokens, kind_of, split_tokens
from trainers.progress import Progress
from trainers.ranks import Ranks
from trainers.tokens import Tokens

_HEARTBEAT_STEPS = 4
"""Between two heartbeats. Counted in steps, so that all workers of a plan make them together."""

Loss = Callable[[Any, Batch, float], Tensor]
"""From the model's outputs (``transformers`` ModelOutput, with ``logits``), their batch and the share of all steps done
(0 at the first, 1 at the last): the loss, summed over the positions at hand and divided by ``batch.count``, or over
tokens and divided by ``batch.num_tokens``.

A loss that is an ``nn.Module`` is trained beside the model, with what in it requires a gradient, and then forgotten."""


class TrainingError(Exception):
    """A stage did not come to a usable end; says which, where, and what might help."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage that is to be trained, and what it is trained with."""

    plan: Plan
    """Ends in the stage."""
    context: Context
    ranks: Ranks
    report: Report
    heartbeat: Heartbeat = unhurried
    index: int = 0
    """Which stage it is of those that have to be trained."""
    num_stages: int = 1
    final: bool = True
    """Whether it is the last stage of the plan that was asked for."""

    @property
    def stage(self) -> Any:
        """The settings of the stage."""
        return self.plan.stages[-1]

    @property
    def optimisation(self) -> Optimisation:
        """How its weights are fitted."""
        return self.stage.optimisation

    def seed(self, *what: str | int) -> int:
        """A seed for one thing that is random in this stage, by the plan alone."""
        return int(fingerprint([self.plan.fingerprint, *what])[:15], 16)


@dataclass(frozen=True)
class Fitted:
    """What a stage's training leaves beside the weights."""

    seconds: float
    """Training time: without evaluation and without waiting for reports."""
    history: tuple[dict[str, Any], ...]
    notes: Mapping[str, float] = field(default_factory=dict)
    """What else the stage has to say of itself, by name; recorded with every variant of the plan."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step that the model is about to take."""

    batch: Batch
    """This worker's share of what the model will learn from."""
    weight: float
    """Of the losses of that share: 0 where this worker has no row."""
    step: int
    """From 0."""
    rate_share: float
    """Share of its peak that the learning rate has."""


Rewrite = Callable[[Any, Turn], Batch]
"""From the model and the step that it is about to take: what it learns from in the place of the step's batch. It may
hold any token. All workers are asked together."""


class Companion(Protocol):
    """What is trained beside the model, with an optimiser of its own: it takes a step before each of the model's."""

    tokens: Tokens
    """Rows that it asks the model about, in the model's tokens."""
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer

    def before_step(self, model: Any, turn: Turn) -> None:
        """Take one; ``model`` stays as it is. All workers take it together."""


def fit(
    model: Any,
    loss: Loss,
    job: Job,
    *,
    outputs: Sequence[str] = (),
    tokens: Tokens | None = None,
    companion: Companion | None = None,
    rewrite: Rewrite | None = None,
) -> Fitted:
    """Train the parameters of ``model`` that require a gradient; it is left in evaluation mode on the processor.

    ``outputs`` are what the loss needs of the model beside logits: ``hidden_states``, ``attentions``. ``tokens`` are
    the rows to train on where these are not all of train; a batch numbers their rows and positions. A ``companion`` is
    trained beside the model; a checkpoint holds it as well. What ``rewrite`` makes of a batch is learnt in its place.

    Raises:
        TrainingError: a loss or gradient that is not finite.
        Stopped: the report callback ended the plan.
    """
    if tokens is None:
        tokens = split_tokens(job.context, base=job.plan.reader, split="train")
    sizes = {"vocab_size": model.config.vocab_size, "pad_id": pad_id(model)}
    used = torch.arange(sizes["vocab_size"]) if rewrite else used_ids(tokens, **sizes)
    if companion is not None:
        used = torch.cat([used, used_ids(companion.tokens, **sizes)]).unique()
    model.to(pick_device()).train()
    longest = int(tokens.lengths.max())
    with train_used_rows(model, used), fast_attention(model, longest=longest, context=job.context):
        fitted = _Fit(model, loss, job, tokens=tokens, outputs=outputs, companion=companion, rewrite=rewrite).run()
    model.to("cpu").eval()
    return fitted


class _Fit:
    def __init__(
        self,
        model: Any,
        loss: Loss,
        job: Job,
        *,
        tokens: Tokens,
        outputs: Sequence[str],
        companion: Companion | None,
        rewrite: Rewrite | None,
    ) -> None:
        self.model, self.loss, self.job, self.tokens = model, loss, job, tokens
        self.companion, self.rewrite = companion, rewrite
        self.device = next(model.parameters()).device
        self.asked = {f"output_{name}": True for name in outputs}
        own = loss.to(self.device) if isinstance(loss, nn.Module) else nn.Module()
        named = [*model.named_parameters(), *own.named_parameters(prefix="loss")]
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self.optimizer = new_optimizer(model, job.optimisation, beside=own)
        self.trained: dict[str, Tensor] = dict(self.parameters)
        self.optimizers: list[torch.optim.Optimizer] = [self.optimizer]
        if companion is not None:
            self.trained |= {f"companion.{name}": parameter for name, parameter in companion.parameters.items()}
            self.optimizers.append(companion.optimizer)
        self.lengths = tokens.lengths
        self.total_steps = job.optimisation.epochs * math.ceil(len(tokens) / job.optimisation.batch_size)
        self.checkpoint = Checkpoint(job.context, job.plan.fingerprint)
        self.steps, self.seconds, self.saved_at = 0, 0.0, 0.0
        self.history: list[dict[str, Any]] = []

    def run(self) -> Fitted:
        self._resume()
        for epoch in range(len(self.history), self.job.optimisation.epochs):
            started = time.perf_counter()
            train_loss = self._epoch(epoch)
            self.seconds += time.perf_counter() - started
            self.history.append(
                {"epoch": epoch + 1, "train_loss": train_loss, "quality": self._quality(), "seconds": self.seconds}
            )
            self.job.ranks.on_first(self._tell)
            self.job.ranks.on_first(self._save)
        return Fitted(self.seconds, tuple(self.history))

    def _resume(self) -> None:
        standing = self.checkpoint.read()
        if standing is None or not restore(standing, self.trained, self.optimizers):
            return
        self.steps, self.seconds, self.saved_at = standing.steps, standing.seconds, standing.seconds
        self.history = list(standing.history)
        # Whoever listens now may have missed them, and decides as if nothing had been interrupted.
        for entry in self.history:
            self.job.ranks.on_first(partial(self.job.report, self._progress(entry, restored=True)))

    def _epoch(self, epoch: int) -> float:
        torch.manual_seed(self.job.seed("epoch", epoch, self.job.ranks.rank))
        settings = self.job.optimisation
        batches = epoch_batches(self.lengths, batch_size=settings.batch_size, seed=self.job.plan.seed, epoch=epoch)
        return sum(self._step(rows) * self.tokens.num_positions(rows) for rows in batches) / self.tokens.num_positions()

    def _step(self, rows: Any) -> float:
        share = self._set_rate()
        batch, weight = worker_batch(self.tokens, rows, ranks=self.job.ranks, pad_id=pad_id(self.model))
        turn = Turn(batch=batch.to(self.device), weight=weight, step=self.steps, rate_share=share)
        if self.rewrite is not None:
            turn = replace(turn, batch=self.rewrite(self.model, turn))
        if self.companion is not None:
            self.companion.before_step(self.model, turn)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._sum_over_ranks(self._backward(turn.batch, weight))
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.job.optimisation.max_grad_norm)
        self._check_finite(loss, float(norm))
        self.optimizer.step()
        self.steps += 1
        if self.steps % _HEARTBEAT_STEPS == 0:
            self.job.ranks.on_first(self.job.heartbeat)
        return loss

    def _backward(self, batch: Batch, weight: float) -> Tensor:
        with autocast(self.job.context, self.device):
            found = self.model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, **self.asked)
        loss = weight * self.loss(found, batch, self.steps / max(1, self.total_steps - 1))
        loss.backward()
        return loss.detach()

    def _sum_over_ranks(self, loss: Tensor) -> float:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        self.job.ranks.all_reduce_each([loss, *gradients])
        return float(loss)

    def _set_rate(self) -> float:
        """Set the learning rate of the step; which share of the peak it is."""
        settings = self.job.optimisation
        share = rate_share(self.steps, total=self.total_steps, warmup_share=settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        return share

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        rate = self.job.optimisation.learning_rate
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        raise TrainingError(
            f"stage {self.job.index + 1} of {self.job.num_stages} ({self.job.stage.kind}), step {self.steps + 1} of "
            f"{self.total_steps}, learning rate {rate:g}: {what}; try a lower learning rate or a longer warm-up"
        )

    def _quality(self) -> float | None:
        if not self.job.final:
            return None
        context = self.job.context
        tokens = asked_tokens(self.job.plan, context, split="validation")
        kind = kind_of(context)
        answers = kind.ask(self.model, tokens, context=context, ranks=self.job.ranks)
        return kind.quality(answers, tokens, context=context).value

    def _tell(self) -> None:
        try:
            self.job.report(self._progress(self.history[-1], restored=False))
        except Suspended:
            self._write()
            raise

    def _progress(self, entry: dict[str, Any], *, restored: bool) -> Progress:
        return Progress(
            stage=self.job.index,
            num_stages=self.job.num_stages,
            kind=self.job.stage.kind,
            epochs=self.job.optimisation.epochs,
            final=self.job.final,
            restored=restored,
            **entry,
        )

    def _save(self) -> None:
        due = self.seconds - self.saved_at >= self.job.context.checkpoint_every_s
        if due and len(self.history) < self.job.optimisation.epochs:
            self._write()

    def _write(self) -> None:
        tensors = gather(self.trained, self.optimizers)
        self.checkpoint.write(
            Standing(steps=self.steps, seconds=self.seconds, history=tuple(self.history), tensors=tensors)
        )
        self.saved_at = self.seconds


def new_optimizer(model: Any, settings: Optimisation, *, beside: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW over what requires a gradient in ``model`` and ``beside`` it; only matrices but embeddings' decay."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is model.get_input_embeddings()
        for parameter in module.parameters()
    }
    every = [*model.parameters(), *(beside.parameters() if beside is not None else ())]
    trained = [parameter for parameter in every if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in embeddings]
    plain = [parameter for parameter in trained if parameter.ndim <= 1 or id(parameter) in embeddings]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)


def rate_share(step: int, *, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate at ``step`` (from 0): a linear rise that ends at the peak, a linear fall to 0."""
    warmup = round(total * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)
