"""The task: which rows a model is to learn from, and what counts as doing well."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from spaces.stages import Frozen

Source = Annotated[str, StringConstraints(min_length=1)]
"""Where rows are: a file, a glob of files, or a URI."""
Column = Annotated[str, StringConstraints(min_length=1)]

BUILTIN = "builtin:"


class Task(Frozen):
    """Rows of text with a label each, and the metric that is maximised on them."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["classification", "generation"] = "classification"
    """What the model answers with: one of the labels, or text."""
    train: Source
    """Rows to learn from: a .jsonl, .csv, .tsv or .parquet file, a glob, hf://owner/name/split, builtin:docstrings."""
    validation: Source | float = 0.1
    """Rows, or the share of train that is set aside (stratified, seeded). A ``builtin:`` train brings its own rows
    unless a file is named here."""
    test: Source | None = None
    """Rows on which the front is confirmed; nothing is chosen by them."""
    unlabeled: Source | None = None
    """More texts without labels."""
    retain: Source | None = None
    """General rows on which forgetting is measured."""
    text: Column = "text"
    """Column of the texts."""
    label: Column = "label"
    """Column of the labels: text, whole numbers or truth values."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """Quality that is maximised: the share of right labels, or F1 averaged over the labels."""
    max_tokens: int = Field(default=128, ge=2)
    """Longer texts are cut to this number of tokens."""
    limit: int | None = Field(default=None, ge=2)
    """At most this many rows of train (stratified, seeded), for quick tries."""

    @field_validator("validation")
    @classmethod
    def _is_share(cls, value: str | float) -> str | float:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"a share must be above 0 and below 1, but got {value:g}; name a file, or write 0.1")
        return value

    @property
    def builtin(self) -> str | None:
        """Name of the built-in data set that train is; None where it is the user's own."""
        return self.train.removeprefix(BUILTIN) if self.train.startswith(BUILTIN) else None
