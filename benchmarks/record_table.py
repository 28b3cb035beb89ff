"""A table of real trainings for ``distune simulate``: plans drawn from an example's space, each trained and measured.

    python benchmarks/record_table.py --task docstrings|clinc150 [--data FOLDER] [--only label,label] [--rows N]
        [--validation-rows N] [--plans 300] [--minutes M] [--seed 0] [--set KEY=VALUE …] [--name NAME]

The space is that of ``examples/TASK.yaml``; ``--data`` names a folder with train.jsonl, val.jsonl and test.jsonl for
the task that has no rows of its own. ``--rows`` are the training rows; as many others are left without their label.
Strategies come in turn, all but ``COSTLY`` ones, and each plan is drawn by its number and ``--seed`` alone: any
beginning of the recording is a fair sample, and one with more ``--plans`` goes on where it ended. Some plans come again
with another seed, so that the noise can be told from what settings do. Seconds are those of the processor.

Each plan is a file below ``runs/record/NAME/plans``, written when it has been measured: the same command goes on where
an earlier one ended, however that ended. Teachers and their answers are trained once; students are deleted once they
are measured. The table and its problem file are written now and then, and at the end, to ``benchmarks/tables``.
"""

import argparse
import itertools
import json
import platform
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from methods_plans import own_stages
from record_rows import problem_of, rows_of, table_of, write_problem
from tasks import EXAMPLES, cut_splits, delete, prepared_task, processor_seconds, read_splits, silent, write_splits

from search.cluster import versions
from search.lock import locked
from search.prepare import Prepared, known_costs, measure_costs
from spaces.choosers import RandomChooser
from spaces.draw import Draw, draw
from spaces.methods.pseudo_label import PseudoLabel
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space
from spaces.stages import Chain
from spaces.targets import Precision
from trainers.carry_out import measure
from trainers.context import Context
from trainers.cost import CostRow, Probe, probe
from trainers.forgetting import forgetting
from trainers.kinds import kind_of
from trainers.loop import TrainingError
from trainers.ranks import solo
from trainers.run_stage import run_plan
from trainers.storage import Storage
from trainers.teacher import teacher_outputs

COSTLY = ("meta_distill", "moe_dft")
"""One training of these takes as long as several of the others'."""
TWINS = 0.2
"""Share of the plans that come again with the next seed."""
WRITE_EVERY = 20
"""Plans after which the table is written anew."""

Record = dict[str, Any]
"""What is known of a plan that was carried out; JSON."""


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Trains plans of a prepared task and keeps what was measured of each, a file a plan."""

    prepared: Prepared
    storage: Storage
    """One file for each plan, by its fingerprint."""

    def record(self, found: Draw) -> tuple[Record, bool]:
        """What was measured of the plan, and whether it had to be trained for that."""
        name = f"{found.plan.fingerprint}.json"
        if fresh := not self.storage.exists(name):
            self.storage.write_json(name, self._measured(found))
        delete(map(found.plan.prefix, own_stages(found.plan)), self.prepared.context)
        return self.storage.read_json(name), fresh

    def _measured(self, found: Draw) -> Record:
        plan, space = found.plan, self.prepared.space
        record: Record = {
            "id": plan.fingerprint,
            "config": plan.model_copy(update={"seed": space.seed}).fingerprint,
            "strategy": found.strategy,
            "params": dict(found.params),
            "seed": plan.seed,
            "shape": plan.shape.model_dump(),
            "num_layers": space.num_layers(plan.shape),
            **self._shared(plan),
        }
        started = time.perf_counter()
        try:
            run_plan(plan, self.prepared.context, ranks=solo(), report=silent)
        except TrainingError as error:
            return record | {"error": str(error), "seconds": time.perf_counter() - started}
        return record | self._results(plan)

    def _shared(self, plan: Plan) -> Record:
        """The teacher of ``plan`` and its answers to the training rows, there after this, and what they took."""
        context = self.prepared.context
        teachers = {taught.fingerprint: taught for taught in map(plan.on_same_data, _teachers(plan))}
        if not teachers:
            return {"shared_id": None, "shared_seconds": None}
        ((name, teacher),) = teachers.items()
        artifact = run_plan(teacher, context, ranks=solo(), report=silent)
        answers = teacher_outputs(teacher, context)
        return {"shared_id": name, "shared_seconds": artifact.about["seconds"] + answers.seconds}

    def _results(self, plan: Plan) -> Record:
        context = self.prepared.context
        variants = measure(plan, self.prepared.precisions, context, split="validation")
        stages = [self._stage(plan.prefix(length)) for length in own_stages(plan)]
        model = context.store.find(plan.fingerprint)
        assert model is not None, "trained a moment ago"
        return {
            "stages": stages,
            "variants": [
                {"precision": one.precision, "quality": one.value, "low": one.low, "high": one.high} for one in variants
            ],
            "curve": _curve(model.about["history"], before_s=sum(one["seconds"] for one in stages)),
            "forgetting": forgetting(kind_of(context).load(model.folder, context), plan, context),
        }

    def _stage(self, prefix: Plan) -> Record:
        """The last stage of ``prefix``, and what it took without what a teacher's kept answers took."""
        stage, about = prefix.stages[-1], self.prepared.context.store.about(prefix.fingerprint)
        assert about is not None, "trained a moment ago"
        # What it took beyond its steps is its teacher's time to answer. Labels for more rows are the plan's own.
        seconds = about["seconds"] if isinstance(stage, PseudoLabel) else about["history"][-1]["seconds"]
        return {"kind": stage.kind, "seconds": seconds}


def _teachers(plan: Plan) -> Iterator[Chain]:
    return itertools.chain.from_iterable(stage.teachers for stage in plan.stages)


def _curve(history: Sequence[Mapping[str, Any]], *, before_s: float) -> list[Record]:
    """The last stage, an entry an epoch; ``before_s`` is what the whole plan took."""
    earlier_s = before_s - history[-1]["seconds"]
    return [
        {
            "fidelity": entry["epoch"] / len(history),
            "quality": entry["quality"],
            "seconds": earlier_s + entry["seconds"],
        }
        for entry in history
    ]


def proposals(space: Space, seed: int) -> Iterator[Draw]:
    """Plans without end: strategies in turn, each plan drawn by its number alone, some again with the next seed."""
    for number in itertools.count():
        rng = random.Random(f"{seed} {number}")
        twin = rng.random() < TWINS
        strategy = space.strategies[number % len(space.strategies)]
        found = draw(replace(space, strategies=(strategy,)), RandomChooser(rng))
        yield found
        if twin:
            yield replace(found, plan=found.plan.model_copy(update={"seed": found.plan.seed + 1}))


def probe_apart(
    shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
) -> CostRow:
    """``patient_probe`` in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        asked = {"reference": reference, "sequence_length": sequence_length}
        return pool.submit(patient_probe, shape, precision, context, **asked).result()


def patient_probe(
    shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
) -> CostRow:
    """``probe``, timed by the processor's clock: on an idle core that is the same.

    On a busy machine it is not: a process that must wait for a core does so in the middle of every other call, and what
    should take 5 ms was once measured as 13.
    """
    with processor_seconds():
        return probe(shape, precision, context, reference=reference, sequence_length=sequence_length)


def recorded_task(options: argparse.Namespace) -> Prepared:
    """The example's task with its rows cut to size, and its space without what is too costly."""
    options.folder.mkdir(parents=True, exist_ok=True)
    splits = cut_splits(
        read_splits(options.data, only=options.only),
        num_train=options.rows,
        num_validation=options.validation_rows,
    )
    settings = [*write_splits(splits, options.folder, options.task), "targets=[cpu]", *options.set]
    prepared = prepared_task(EXAMPLES / f"{options.task}.yaml", settings, store=options.folder / "store")
    cheap = tuple(name for name in prepared.space.strategies if name not in COSTLY)
    return replace(prepared, space=replace(prepared.space, strategies=cheap))


def record_all(prepared: Prepared, options: argparse.Namespace, *, measure_cost: Probe = probe_apart) -> None:
    """Carry out plans until there are enough, or time is up; write the table."""
    prepared.context.store.remove_drafts()
    context, folder = prepared.context, Storage(options.folder)
    rows = measure_costs(
        prepared,
        folder,
        measure=measure_cost,
        say=print,
        before=lambda shapes: _export(shapes, context),
    )
    recorder, costs = Recorder(prepared=prepared, storage=folder.child("plans")), known_costs(rows)
    records: list[Record] = []
    began = time.monotonic()
    for found in itertools.islice(proposals(prepared.space, options.seed), options.plans):
        if time.monotonic() - began > 60 * options.minutes:
            break
        record, fresh = recorder.record(found)
        records.append(record)
        if fresh:
            _say(record, len(records), options.plans, passed_s=time.monotonic() - began)
            if len(records) % WRITE_EVERY == 0:
                write(records, prepared, costs, options)
    write(records, prepared, costs, options)


def _export(shapes: Iterable[Shape], context: Context) -> None:
    for shape in shapes:
        kind_of(context).prepare_probe(shape, context)


def _say(record: Record, done: int, total: int, *, passed_s: float) -> None:
    figures = "  ".join(f"{one['precision']} {one['quality']:.3f}" for one in record.get("variants", ()))
    seconds = record["curve"][-1]["seconds"] if figures else record["seconds"]
    said = f"{record['strategy']:22}{figures or record['error']}  {seconds:.1f} s"
    print(f"{done}/{total}  {said}  {passed_s / 60:.1f} min", flush=True)


def write(records: Sequence[Record], prepared: Prepared, costs: Mapping[Any, Any], options: argparse.Namespace) -> None:
    """The table and its problem file."""
    metric, name = prepared.spec.task.metric, options.name or options.task
    rows = rows_of(records, costs, metric=metric)
    about = {
        "command": shown_command(options),
        "plans": len(records),
        "failed": sum("error" in record for record in records),
        "versions": versions(),
        "machine": f"{platform.machine()}, one thread, seconds of the processor",
    }
    table = table_of(rows, about={"distune": json.dumps(about)})
    options.tables.mkdir(parents=True, exist_ok=True)
    Storage(options.tables).write(f"{name}.parquet", table)
    write_problem(problem_of(rows, metric=metric, table=f"{name}.parquet"), options.tables / f"{name}.yaml", about)


def shown_command(options: argparse.Namespace) -> str:
    """What was asked for, without the places of this machine."""
    parts = [f"--task {options.task}", "--data FOLDER" if options.data else ""]
    parts += [f"--only {options.only}" if options.only else "", f"--name {options.name}" if options.name else ""]
    parts += [f"--rows {options.rows} --validation-rows {options.validation_rows}"]
    parts += [f"--plans {options.plans} --seed {options.seed}", *(f"--set '{setting}'" for setting in options.set)]
    return " ".join(["python benchmarks/record_table.py", *filter(None, parts)])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("docstrings", "clinc150"), required=True)
    parser.add_argument("--data", type=Path, help="folder with train.jsonl, val.jsonl and test.jsonl")
    parser.add_argument("--only", help="labels to keep, with commas")
    parser.add_argument("--rows", type=int, default=240, help="to train on; as many again without their label")
    parser.add_argument("--validation-rows", type=int, default=240)
    parser.add_argument("--plans", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no other plan is begun")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the spec")
    parser.add_argument("--name", help="of the table; otherwise the task's")
    parser.add_argument("--folder", type=Path, help="rows, models, records; otherwise runs/record/NAME")
    parser.add_argument("--tables", type=Path, default=Path(__file__).parent / "tables")
    options = parser.parse_args(given)
    options.folder = options.folder or Path("runs/record") / (options.name or options.task)
    return options


def main() -> None:
    options = arguments()
    with locked(Storage(options.folder)), processor_seconds():
        record_all(recorded_task(options), options)


if __name__ == "__main__":
    main()
