"""The kinds of task, and which one a context is about."""

from spaces.plan import Plan
from trainers.context import Context
from trainers.kinds.kind import Answers, AnyRows, Kind, Request
from trainers.model_files import ModelError
from trainers.storage import StorageError
from trainers.tokens import Tokens

__all__ = ["Answers", "AnyRows", "Kind", "Request", "asked_tokens", "kind_of", "named_kind", "split_tokens"]


def kind_of(context: Context) -> Kind:
    """What carries out a task of the context's kind."""
    return named_kind(context.kind)


def named_kind(name: str) -> Kind:
    """The kind called ``name``.

    Raises:
        ValueError: there is none.
    """
    # Each is imported where it is asked for: what one serves with the other does not need.
    if name == "classification":
        from trainers.kinds.classification import Classification

        return Classification()
    if name == "generation":
        from trainers.kinds.generation import Generation

        return Generation()
    raise ValueError(f"kind of task {name!r} is not known; expected classification or generation")


def split_tokens(context: Context, *, base: str, split: str) -> Tokens:
    """The tokenised rows of a split for the model with fingerprint ``base``, or for what reads by that vocabulary.

    Raises:
        ModelError: there is no such split.
        StorageError: its artifact is gone.
    """
    splits = context.tokens.get(base, {})
    if split not in splits:
        raise ModelError(f"no tokenised {split!r} rows for model {base[:12]}…; there are {sorted(splits)}")
    artifact = context.store.find(splits[split])
    if artifact is None:
        # Written before the first plan and needed by all of them.
        raise StorageError(f"{context.artifacts}: the tokenised {split!r} rows are gone")
    return kind_of(context).open_tokens(artifact)


def asked_tokens(plan: Plan, context: Context, *, split: str) -> Tokens:
    """The rows of a split as the model that ``plan`` ends in is asked them.

    Raises:
        ModelError, StorageError: as ``split_tokens``.
    """
    return kind_of(context).as_asked(split_tokens(context, base=plan.reader, split=split), plan, context)
