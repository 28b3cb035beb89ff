"""Wall time of a trial beyond its training: our seats against a ``TorchTrainer`` started inside each Tune trial.

    python benchmarks/overhead.py --model DIR --train FILE [--trials 12] [--baseline-trials 3] [--json FILE]

Both carry out plans of the same space on the same rows with one worker, one after another. Ours: a whole search; once
its seat is warm, the time from one trial's end to the next one's, less training. The baseline: the documented way, a
function trial that builds a ``TorchTrainer`` with ``TuneReportCallback``; the time of a trial, less training. With many
trials memory is a figure too: what driver and training worker rose by from the hundredth trial (or the first tenth) on.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from search.cluster import ray_running
from search.engine import Search
from search.live import PlainListener
from search.run import load_run
from search.run_folder import context_of
from search.spec import Spec
from spaces.plan import Plan
from trainers.context import Context
from trainers.storage import Storage


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="distune-overhead-") as folder:
        spec = make_spec(options, folder)
        memory = Memory()
        run = Search(spec=spec).run(memory)
        seconds = seat_overheads(run.storage)
        plans = [Plan.model_validate_json(record.plan) for record in run.records if record.status == "complete"]
        baseline = documented_way(plans[: options.baseline_trials], context_of(run.storage), Path(folder) / "tune")
    report = {
        "seat_s": statistics.median(seconds),
        "seat_all_s": seconds,
        "documented_s": statistics.median(baseline),
        "documented_all_s": baseline,
        "ratio": statistics.median(baseline) / max(1e-9, statistics.median(seconds)),
        "driver_rise_mb": memory.rise_mb(memory.driver_mb),
        "worker_rise_mb": memory.rise_mb(memory.worker_mb),
        "driver_mb": memory.driver_mb,
        "worker_mb": memory.worker_mb,
    }
    print(f"beyond training: {report['seat_s']:.2f} s a trial on a seat, {report['documented_s']:.1f} s documented way")
    rises = f"driver {report['driver_rise_mb']:.0f} MB, worker {report['worker_rise_mb']:.0f} MB"
    print(f"ratio {report['ratio']:.0f}×; memory rose by: {rises}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


class Memory(PlainListener):
    """Keeps what driver and training worker hold in memory, every ``EVERY`` trials."""

    EVERY = 10

    def __init__(self) -> None:
        super().__init__(metric="accuracy")
        self._trials = 0
        self.driver_mb: list[float] = []
        self.worker_mb: list[float] = []

    def finished(self, proposal: Any, records: Any) -> None:
        self._trials += 1
        if self._trials % self.EVERY == 0:
            self.driver_mb.append(resident_mb(psutil.Process()))
            self.worker_mb.append(sum(map(resident_mb, training_workers())))
        super().finished(proposal, records)

    def rise_mb(self, values: list[float]) -> float:
        """From the hundredth trial, or the first tenth, to the last."""
        return values[-1] - values[min(100 // self.EVERY, len(values) // 10)] if values else 0.0


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def training_workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def make_spec(options: argparse.Namespace, folder: str) -> Spec:
    return Spec.model_validate(
        {
            "name": "overhead",
            "task": {"train": str(Path(options.train).absolute()), "validation": 0.25},
            "model": {"base": str(Path(options.model).absolute()), "student_layers": [1]},
            "search": {"strategies": ["full", "small_finetune"], "sampler": "random", "space": {"epochs": [1, 2]}},
            "budget": {"trials": options.trials},
            "resources": {"max_concurrent": 1, "cpus_per_worker": 1},
            "storage": folder,
        }
    )


def seat_overheads(storage: Storage) -> list[float]:
    """Of each trial after the first: from the end of the one before to its own, less its training."""
    trials = {}
    for record in load_run(storage.location).records:
        if record.number >= 0:
            spent = (record.train_seconds or 0.0) - record.prefix_seconds_saved
            trials[record.number] = (record.finished_at, spent)
    ends = [trials[number] for number in sorted(trials)]
    return [end - before - spent for (before, _), (end, spent) in itertools.pairwise(ends)]


def documented_way(plans: list[Plan], context: Context, folder: Path) -> list[float]:
    """Seconds beyond training of each plan, with a trainer of its own."""
    from ray import tune

    with ray_running(None):
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trial, plans=plans, context=context, folder=folder), {"CPU": 0.01}
            ),
            param_space={"index": tune.grid_search(list(range(len(plans))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(name="documented", storage_path=str(folder), verbose=0),
        )
        started = time.perf_counter()
        results = tuner.fit()
        wall = time.perf_counter() - started
    training = [result.metrics["train_seconds"] for result in results]
    return [wall / len(plans) - seconds for seconds in training]


def trial(config: dict[str, Any], *, plans: list[Plan], context: Context, folder: Path) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        work,
        train_loop_config={"plan": plans[config["index"]], "context": context},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"trial-{config['index']}", storage_path=str(folder), callbacks=[TuneReportCallback()]
        ),
    ).fit()


def work(config: dict[str, Any]) -> None:
    """The same training, deployment and measurement; another seed, so that nothing trained is found again."""
    import ray.train

    from trainers.carry_out import carry_out
    from trainers.ranks import solo

    plan, context = config["plan"], config["context"]
    fresh = plan.model_copy(update={"seed": plan.seed + 1})
    result = carry_out(fresh, ("fp32", "int8"), context, ranks=solo(), report=silent)
    assert result is not None, "one worker alone has the result"
    ray.train.report({"train_seconds": result.spent_seconds, "quality": result.variants[0].value})


def silent(progress: Any) -> None:
    """Nobody listens."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a small encoder's folder")
    parser.add_argument("--train", required=True, help="rows with columns text and label")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--baseline-trials", type=int, default=3)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
