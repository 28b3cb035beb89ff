"""What comes before the first trial: rows tokenised, models checked, serving costs measured, the space laid out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from search.fitting import without
from search.foreknown import work_of
from search.goals import Goals
from search.records import COST_COLUMNS
from search.spec import Spec, space_of
from search.spec_errors import SpecError
from search.students import check_widths, compare_sizes, find_students, named, names_of
from search.words import say_shape
from spaces.canonical import fingerprint
from spaces.draw import Draw, opening, restrict, shapes
from spaces.methods.finetune import baseline
from spaces.methods.vocabulary import KeepVocabulary
from spaces.plan import Plan
from spaces.shape import Shape
from spaces.space import Space
from spaces.targets import TARGETS, Precision
from trainers.context import Context
from trainers.cost import CostRow, Probe, cost_table, read_cost_table, write_cost_table
from trainers.docstrings import cache_folder
from trainers.experts.parts import keep_domains
from trainers.kinds import AnyRows, kind_of, named_kind, split_tokens
from trainers.model_files import ModelError
from trainers.models import ModelInfo
from trainers.storage import Storage
from trainers.vocabulary import read_cut
from trainers.width_scores import score_width

COST_TABLE = "cost_table.parquet"
_PROBE_VERSION = 2

Say = Callable[[str], None]


class NothingFits(Exception):
    """No shape satisfies the constraints that can be decided before training; says which and by how much."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A spec made concrete: data and models by fingerprint."""

    spec: Spec
    goals: Goals
    rows: AnyRows
    base: ModelInfo
    context: Context
    space: Space
    """Everything the spec allows; what cannot be feasible is taken out once costs are known."""
    sequence_length: int
    """Tokens that go in with a typical request: the median of the validation rows."""
    notes: tuple[str, ...]
    """Everything that was left out, cut or looks odd, a sentence each."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions that some target can run."""
        runs = {precision for name in self.spec.targets for precision in TARGETS[name].runs(self.spec.task.kind)}
        return tuple(precision for precision in self.spec.precisions if precision in runs)

    @property
    def reference(self) -> Shape:
        """The base as it is."""
        return self.space.reference


def prepare(spec: Spec, storage: Storage, *, threads: int, say: Say) -> Prepared:
    """Read, check and tokenise everything that a search needs; trains and measures nothing.

    Raises:
        DataError, ModelError, SpecError, StorageError: all say what was found and the way out.
    """
    notes = _Notes(say)
    kind = named_kind(spec.task.kind)
    rows = kind.load_rows(spec.task, seed=spec.search.seed, folder=Path.cwd())
    for text in rows.notes:
        notes(f"data: {text}")
    for name, reason in spec.left_out.items():
        notes(f"strategies: {name} is left out: it {reason}")
    base = kind.inspect(spec.model.base)
    teacher = kind.inspect(spec.model.teacher) if spec.model.teacher else None
    students = find_students(spec, kind, base=base)
    kind.check(spec.task, base=base, teacher=teacher, students=students, precisions=spec.precisions)
    check_widths(spec, base)
    models = {model.fingerprint: model for model in (base, teacher, *students) if model is not None}
    context = _context(spec, rows, models, storage, threads=threads)
    space = space_of(
        spec,
        base=base,
        data=kind.data_fingerprint(rows, spec.task),
        teacher=teacher,
        domains=keep_domains(rows.domains, context.store) if rows.domains else None,
        unlabeled=rows.splits["unlabeled"].fingerprint if "unlabeled" in rows.splits else None,
        students=named(students),
    )
    vocabulary = _vocabulary(rows, base, context, notes) if spec.model.vocabulary == "task" else None
    space = replace(space, vocabulary=vocabulary, num_draws=kind.num_draws(base))
    readers = models | ({vocabulary.reader: read_cut(vocabulary, base, context.store)} if vocabulary else {})
    tokens = {name: _tokenise(rows, model, context, spec.task.max_tokens, notes) for name, model in readers.items()}
    context = replace(context, tokens=tokens)
    space = without(spec, space, kind.lacking(context, base=base, teacher=teacher, students=students), say=notes)
    if min(space.student_widths) < 1:
        space = replace(space, width_scores=score_width(base, context))
    compare_sizes(space, base=base, teacher=teacher, students=students, say=notes)
    request = kind.typical_request(split_tokens(context, base=base.fingerprint, split="validation"))
    return Prepared(
        spec=spec,
        goals=Goals(
            metric=spec.task.metric,
            objectives=spec.search.objectives,
            constraints=spec.constraints,
            targets=spec.targets,
        ),
        rows=rows,
        base=base,
        context=replace(context, output_tokens=request.output_tokens),
        space=space,
        sequence_length=request.input_tokens,
        notes=tuple(notes.said),
    )


def _context(spec: Spec, rows: AnyRows, models: Mapping[str, ModelInfo], storage: Storage, *, threads: int) -> Context:
    """What plans are carried out with, but for tokens."""
    return Context(
        artifacts=storage.child("artifacts").location,
        cache=str(cache_folder() / "artifacts"),
        models={name: str(model.folder) for name, model in models.items()},
        tokens={},
        kind=spec.task.kind,
        labels=rows.labels,
        max_new_tokens=spec.task.max_new_tokens,
        metric=spec.task.metric,
        threads=threads,
        compute=spec.resources.compute,
    )


def measure_costs(
    prepared: Prepared, storage: Storage, *, measure: Probe, say: Say, before: Callable[[Sequence[Shape]], None]
) -> list[CostRow]:
    """The run's cost table: read where it is there, else measured once and written.

    A shape that was measured on this machine before, at the same length and with the same ONNX Runtime, is not
    measured again. ``before`` is called with the shapes that have to be, first.
    """
    if storage.exists(COST_TABLE):
        return read_cost_table(storage, COST_TABLE)
    known = _Remembered(measure, prepared)
    sizes = shapes(prepared.space)
    if new := [shape for shape in sizes if not all(known.has(shape, p) for p in prepared.precisions)]:
        say(f"measuring serving costs of {len(new)} sizes × {', '.join(prepared.precisions)}")
        before([*new, *([] if prepared.reference in new else [prepared.reference])])
    rows = cost_table(
        sizes,
        prepared.precisions,
        [TARGETS[name] for name in prepared.spec.targets],
        prepared.context,
        reference=prepared.reference,
        sequence_length=prepared.sequence_length,
        measure=known,
        report=_say_costs(prepared, say) if new else lambda _row: None,
    )
    write_cost_table(rows, storage, COST_TABLE)
    return rows


def _say_costs(prepared: Prepared, say: Say) -> Callable[[CostRow], None]:
    """Says each measurement as it comes: many sizes take minutes."""
    layers, names = prepared.space.base_layers, names_of(prepared.space.students)
    return lambda row: say(f"  {say_shape(row.shape, layers, names=names)}, {row.precision}: {row.latency_ms:.3g} ms")


def known_costs(rows: list[CostRow]) -> dict[tuple[Shape, str, str], Mapping[str, float | None]]:
    """The cost table by (shape, precision, target)."""
    return {(row.shape, row.precision, row.target): {name: getattr(row, name) for name in COST_COLUMNS} for row in rows}


def feasible_space(prepared: Prepared, rows: list[CostRow]) -> Space:
    """The space without what the known constraints forbid at every precision and target.

    Raises:
        NothingFits: nothing is left.
    """
    costs, goals = known_costs(rows), prepared.goals

    def feasible(shape: Shape) -> bool:
        return any(not goals.broken_known(cost) for (of, _, _), cost in costs.items() if of == shape)

    space = restrict(prepared.space, feasible)
    if not space.strategies:
        nearest = min(rows, key=lambda row: len(goals.broken_known(costs[(row.shape, row.precision, row.target)])))
        broken = "; ".join(goals.broken_known(costs[(nearest.shape, nearest.precision, nearest.target)]))
        names = names_of(prepared.space.students)
        size = say_shape(nearest.shape, prepared.space.base_layers, names=names)
        raise NothingFits(
            f"no size and precision satisfies the constraints; nearest: {size} at {nearest.precision} "
            f"on {nearest.target}: {broken}. Loosen a constraint, or add smaller sizes to model.student_layers or "
            "smaller models to model.students"
        )
    return space


def first_draws(space: Space, goals: Goals) -> tuple[Draw, ...]:
    """The first proposals: the baseline where something is compared with it, and each strategy at its defaults.

    What takes least comes first, so that a budget which ends early has seen as many strategies as it could.
    """
    draws = {draw.fingerprint: draw for draw in sorted(opening(space), key=lambda draw: _work(draw.plan, space))}
    reference = baseline(space)
    if goals.needs_baseline() and reference.fingerprint not in draws:
        return (Draw(strategy="baseline", params={}, plan=reference), *draws.values())
    return tuple(draws.values())


def _work(plan: Plan, space: Space) -> float:
    """Of training all of ``plan``, in no unit: by layers, as if time were theirs alone."""
    return sum(work_of(part, {part.shape: float(space.num_layers(part.shape))}) for part in plan.trained_prefixes())


def _tokenise(rows: AnyRows, model: ModelInfo, context: Context, max_tokens: int, say: Say) -> dict[str, str]:
    found = {
        name: kind_of(context).tokenise(split, model, context, max_tokens=max_tokens)
        for name, split in rows.splits.items()
    }
    for name, artifact in found.items():
        for note in artifact.about.get("notes", ()):
            say(f"data: {name}: {note}")
    return {name: artifact.fingerprint for name, artifact in found.items()}


def _vocabulary(rows: AnyRows, base: ModelInfo, context: Context, say: Say) -> KeepVocabulary:
    """What students keep of the base's."""
    try:
        stage = kind_of(context).keep_vocabulary(rows, base, context)
    except ModelError as error:
        raise SpecError([f"model.vocabulary: found task; {error}; or write full"]) from error
    say(f"vocabulary: students keep {stage.num_tokens:,} of {base.vocab_size:,} tokens")
    return stage


class _Notes:
    """Says each sentence once, and keeps it."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.said: dict[str, None] = {}

    def __call__(self, text: str) -> None:
        if text not in self.said:
            self.said[text] = None
            self._say(text)


class _Remembered:
    """A probe that keeps what it measured in the user's cache folder, by machine, library versions and shape."""

    def __init__(self, measure: Probe, prepared: Prepared) -> None:
        self._measure, self._prepared = measure, prepared
        self._folder = Storage(cache_folder() / "costs")

    def has(self, shape: Shape, precision: Precision) -> bool:
        return self._folder.exists(self._name(shape, precision))

    def __call__(
        self, shape: Shape, precision: Precision, context: Context, *, reference: Shape, sequence_length: int
    ) -> CostRow:
        name = self._name(shape, precision)
        if not self._folder.exists(name):
            row = self._measure(shape, precision, context, reference=reference, sequence_length=sequence_length)
            self._folder.write_json(name, asdict(row) | {"shape": row.shape.model_dump()})
        found = self._folder.read_json(name)
        return CostRow(**{**found, "shape": Shape(**found["shape"])})

    def _name(self, shape: Shape, precision: Precision) -> str:
        prepared = self._prepared
        key = [_PROBE_VERSION, shape, precision, prepared.sequence_length, len(prepared.rows.labels), _machine()]
        if prepared.context.output_tokens:
            key += [prepared.context.output_tokens, _torch_version()]
        if shape.reasons or shape.num_shots:
            # How long a rationale is, or a demonstration.
            key.append(prepared.context.tokens[shape.base]["train"])
        return f"{fingerprint(key)}.json"


def _machine() -> list[str]:
    import platform

    import onnxruntime

    model = next((line for line in _read_text(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")), "")
    return [onnxruntime.__version__, platform.machine(), platform.node(), model]


def _torch_version() -> str:
    from importlib.metadata import version

    return version("torch")


def _read_text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
