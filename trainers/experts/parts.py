"""Which training rows an expert learns from."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces.canonical import fingerprint
from spaces.methods.experts import Part
from trainers.artifacts import ArtifactStore
from trainers.compute import features, pick_device
from trainers.experts.tensors import NamedTensors, read_tensors
from trainers.kinds import split_tokens
from trainers.loop import Job, TrainingError
from trainers.storage import StorageError
from trainers.trained import shared

_VERSION = 1
_STARTS = 10
"""Clusterings from other beginnings, of which the tightest counts."""


def part_rows(part: Part, model: Any, job: Job) -> np.ndarray:
    """Numbers of the training rows in ``part``; ``model`` is what the expert starts from, untouched so far.

    Raises:
        TrainingError: there are none.
    """
    if part.split == "seed":
        num_rows = len(split_tokens(job.context, base=job.plan.reader, split="train"))
        return np.random.default_rng([job.plan.seed, part.index]).permutation(num_rows)
    assert part.num_parts is not None, part
    parts = _domain_parts(part, job) if part.domains else _clusters(model, part.num_parts, job)
    rows = np.flatnonzero(parts == part.index)
    if not len(rows):
        raise TrainingError(f"expert without data: {part.say()} has no training rows; lower search.space.num_experts")
    return rows


def keep_domains(domains: Sequence[str], store: ArtifactStore) -> str:
    """Write down where each training row comes from; the fingerprint under which ``part_rows`` finds it."""
    names, numbers = np.unique(np.asarray(domains, dtype=np.str_), return_inverse=True)
    name = fingerprint({"kind": "domains", "domains": list(domains), "version": _VERSION})
    with store.publish(name, {"kind": "domains", "names": names.tolist()}) as folder:
        NamedTensors({"domains": torch.from_numpy(numbers)}).save(folder)
    return name


def shared_out(sizes: Sequence[int], num_parts: int) -> np.ndarray:
    """The part of each domain, int64: the largest first, each to the part that has the fewest rows so far."""
    loads, parts = np.zeros(num_parts, dtype=np.int64), np.zeros(len(sizes), dtype=np.int64)
    for domain in np.argsort([-size for size in sizes], kind="stable"):
        parts[domain] = loads.argmin()
        loads[parts[domain]] += sizes[domain]
    return parts


def row_features(model: Any, job: Job) -> Tensor:
    """What the frozen ``model``, with which the job's stage starts, makes of each training row; see ``features``.

    Computed once and kept.
    """
    tokens = split_tokens(job.context, base=job.plan.reader, split="train")

    def compute() -> Tensor:
        found = features(model.to(pick_device()), tokens, context=job.context, ranks=job.ranks)
        model.to("cpu")
        return found

    return _kept("features", _identity(job), compute, job)


def _clusters(model: Any, count: int, job: Job) -> np.ndarray:
    """The cluster of each row, int64: k-means of standardised features."""
    features_BH = row_features(model, job)

    def compute() -> Tensor:
        return job.ranks.on_first(lambda: _k_means(features_BH.numpy(), count, seed=job.plan.seed))

    return _kept("clusters", {**_identity(job), "count": count}, compute, job).numpy()


def _domain_parts(part: Part, job: Job) -> np.ndarray:
    """The part of each row, int64."""
    assert part.domains is not None and part.num_parts is not None, part
    artifact = job.context.store.find(part.domains)
    if artifact is None:
        # Written before the first plan and needed by all of them.
        raise StorageError(f"{job.context.artifacts}: the domains of the training rows are gone")
    domains = read_tensors(artifact)["domains"].numpy()
    parts: np.ndarray = shared_out(np.bincount(domains).tolist(), part.num_parts)[domains]
    return parts


def _k_means(features_BH: np.ndarray, count: int, *, seed: int) -> Tensor:
    # As for the probe: the import is theirs who need it.
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features_BH)
    clusters = KMeans(min(count, len(scaled)), n_init=_STARTS, random_state=seed).fit_predict(scaled)
    return torch.from_numpy(clusters.astype(np.int64))


def _kept(kind: str, identity: dict[str, Any], compute: Callable[[], Tensor], job: Job) -> Tensor:
    """What all workers' ``compute`` gives, or gave once."""
    store, name = job.context.store, fingerprint({"kind": kind, **identity})
    if not job.ranks.on_first(lambda: store.has(name)):
        found = compute()
        job.ranks.on_first(lambda: _publish(name, kind, found, job))
    return read_tensors(shared(name, job.context, what=kind))[kind]


def _publish(name: str, kind: str, values: Tensor, job: Job) -> None:
    with job.context.store.publish(name, {"kind": kind}) as folder:
        NamedTensors({kind: values}).save(folder)


def _identity(job: Job) -> dict[str, Any]:
    """Of the model before the job's stage, and of the rows that it is asked about."""
    before = job.plan.prefix(len(job.plan.stages) - 1)
    rows = job.context.tokens[job.plan.reader]["train"]
    return {"model": before.fingerprint, "tokens": rows, "version": _VERSION}
