"""The search of ``versus_ray_tune.py`` as one who knows Ray Tune, Optuna, PEFT and transformers writes it by hand.

As Ray's user guide on tuning Train runs has it: a function a trial that starts a ``TorchTrainer``, which reports to
Tune. ``OptunaSearch`` draws from a function, because parameters depend on the strategy, with two metrics and its own
default sampler. Nothing is stopped early: its documentation warns of schedulers with several metrics. Each trial has
one core, so that as many run at once as there are cores.

What a good user adds: the teacher is fine-tuned once, before the search, on all cores, and its answers are kept;
students are cut from evenly spaced layers; ``Trainer`` groups rows by length and computes in bfloat16 where the
processor has it. Rows, base model, cutting, export to ONNX, quantisation and serving are the functions that distune
uses as well: what is compared is the search.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_trainer import USUAL_DROPOUT, Loss, train_plainly

from spaces.methods.cut import spread
from spaces.stages import Optimisation
from spaces.targets import Precision
from trainers import onnx_graph
from trainers.compute import logits, pick_device, uses_bf16
from trainers.context import Context
from trainers.deploy import write_graph
from trainers.graph_cost import time_batches
from trainers.kinds import split_tokens
from trainers.losses import soft_label_loss
from trainers.models import load_classifier, select_layers
from trainers.ranks import solo
from trainers.serving import predict
from trainers.tokens import LabelledTokens

STRATEGIES = ("full", "lora", "small_finetune", "distill_soft")
STUDENT_LAYERS = (1, 2, 3)
TEACHER = {"learning_rate": 1e-4, "epochs": 3}
BATCH_SIZE = 32
_TRIAL_CPUS = 0.01
"""Of the function that starts a trainer and waits for it."""
_WORKER_CPUS = 0.95
"""Of a training worker: one a core, with room for the trials' own share."""
_ANSWERS = "teacher.npy"
"""What the teacher answers to the training rows: logits."""

Settings = Mapping[str, Any]


def define_space(trial: Any) -> None:
    """What varies. A precision belongs to a training: one trial is one point."""
    strategy = trial.suggest_categorical("strategy", STRATEGIES)
    trial.suggest_categorical("precision", ("fp32", "int8"))
    trial.suggest_int("epochs", 2, 4)
    if strategy == "full":
        trial.suggest_float("learning_rate", 2e-5, 3e-4, log=True)
    elif strategy == "lora":
        trial.suggest_int("lora_rank", 4, 64, log=True)
        trial.suggest_float("lora_alpha", 1, 4, log=True)
        trial.suggest_float("lora_learning_rate", 3e-4, 5e-3, log=True)
    else:
        trial.suggest_categorical("student_layers", STUDENT_LAYERS)
        trial.suggest_float("student_learning_rate", 5e-5, 6e-4, log=True)
        if strategy == "distill_soft":
            trial.suggest_float("alpha", 0.1, 1.0)
            trial.suggest_float("temperature", 1.0, 8.0, log=True)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every trial is given."""

    context: Context
    base: str
    """Fingerprint of the base model."""
    request_tokens: int
    """Length at which latency is measured."""
    seed: int
    folder: Path
    """Of everything that the search writes."""

    def tokens(self, split: str) -> LabelledTokens:
        """The rows of a split."""
        found = split_tokens(self.context, base=self.base, split=split)
        assert isinstance(found, LabelledTokens)
        return found

    def model(self) -> Any:
        """The base with a new head."""
        folder = self.context.base_folder(self.base)
        return load_classifier(folder, labels=self.context.labels, dropout=USUAL_DROPOUT, seed=self.seed)


def search(work: Work, *, seconds_left: Callable[[], float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Search until the time is over; the metrics of each trial that came to its end, its settings under ``config``, and
    the errors in which others ended.
    """
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    fine_tune_teacher(work)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train_driver, work=work), {"CPU": _TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(
                    define_space, metric=["accuracy", "latency_ms"], mode=["max", "min"], seed=work.seed
                ),
                num_samples=-1,
                max_concurrent_trials=os.cpu_count(),
                time_budget_s=seconds_left(),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(work.folder), verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    ended = [result.metrics for result in results if "accuracy" in (result.metrics or {})]
    return ended, [str(error) for error in results.errors]


def train_driver(config: Settings, *, work: Work) -> None:
    """A trial: one Ray Train run."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train_worker,
        train_loop_config={"settings": dict(config), "work": work},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": _WORKER_CPUS}),
        run_config=ray.train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=str(work.folder),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def train_worker(config: dict[str, Any]) -> None:
    """Train, deploy, measure, report."""
    import ray.train

    torch.set_num_threads(1)
    settings, work = config["settings"], config["work"]
    measured = deployed(trained(settings, work), settings["precision"], work)
    ray.train.report({**measured, "finished_at": time.time()})


def fine_tune_teacher(work: Work) -> None:
    """Fine-tune the base once and keep what it answers to the training rows."""
    torch.set_num_threads(os.cpu_count() or 1)
    teacher = work.model()
    _fit(teacher, work, **TEACHER)
    answers = logits(teacher.eval(), work.tokens("train"), context=work.context, ranks=solo())
    np.save(work.folder / _ANSWERS, answers.numpy())


def trained(settings: Settings, work: Work) -> Any:
    """The model that these settings give, ready to serve."""
    model, strategy, epochs = work.model(), settings["strategy"], settings["epochs"]
    if strategy == "full":
        _fit(model, work, epochs=epochs, learning_rate=settings["learning_rate"])
    elif strategy == "lora":
        model = _with_lora(model, settings)
        _fit(model, work, epochs=epochs, learning_rate=settings["lora_learning_rate"])
        model = model.merge_and_unload()
    else:
        model = select_layers(model, spread(model.config.num_hidden_layers, settings["student_layers"]))
        loss = _soft_loss(settings, work) if strategy == "distill_soft" else None
        _fit(model, work, epochs=epochs, learning_rate=settings["student_learning_rate"], loss=loss)
    return model.eval()


def deployed(model: Any, precision: Precision, work: Work) -> dict[str, float]:
    """Accuracy on the validation rows and latency of one request, both of the ONNX graph on one thread."""
    tokens = work.tokens("validation")
    with tempfile.TemporaryDirectory() as folder:
        file = write_graph(onnx_graph.trace(model), precision=precision, folder=Path(folder))
        answers = predict(file, tokens, threads=1)
        (times_ms,) = next(time_batches([file], batch_sizes=[1], sequence_length=work.request_tokens))
    return {"accuracy": float((answers == tokens.labels).mean()), "latency_ms": float(np.median(times_ms))}


def _fit(model: Any, work: Work, *, epochs: int, learning_rate: float, loss: Loss | None = None) -> None:
    device = pick_device()
    train_plainly(
        model,
        work.tokens("train"),
        optimisation=Optimisation(learning_rate=learning_rate, epochs=epochs, batch_size=BATCH_SIZE),
        seed=work.seed,
        loss=loss,
        bf16=uses_bf16(work.context, device),
        use_cpu=device.type == "cpu",
        train_sampling_strategy="group_by_length",
    )


def _with_lora(model: Any, settings: Settings) -> Any:
    # Only some trials need this import, which takes seconds.
    from peft import LoraConfig, get_peft_model

    rank, alpha = settings["lora_rank"], settings["lora_alpha"]
    lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank * alpha, target_modules="all-linear")
    return get_peft_model(model, lora)


def _soft_loss(settings: Settings, work: Work) -> Loss:
    answers = torch.from_numpy(np.load(work.folder / _ANSWERS))
    weights = {"temperature": settings["temperature"], "alpha": settings["alpha"]}
    return lambda logits, inputs: soft_label_loss(logits, answers[inputs["row"]], inputs["labels"], **weights)
