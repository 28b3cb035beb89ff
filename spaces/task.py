"""The task: which rows a model is to learn from, and what counts as doing well."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from spaces.canonical import Frozen

Source = Annotated[str, StringConstraints(min_length=1)]
"""Where rows are: a file, a glob of files, or a URI."""
Column = Annotated[str, StringConstraints(min_length=1)]

BUILTIN = "builtin:"

Kind = Literal["classification", "generation"]
KIND_OF_BUILTIN: dict[str, Kind] = {"docstrings": "classification", "arithmetic": "generation"}
METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "generation": ("exact_match", "rouge_l", "perplexity"),
}
"""What can be measured; the first is measured where the task names none."""
_WHOLE_TOKENS: Any = 512
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text", "label", "domain"),
    "generation": ("prompt", "response", "rationale"),
}


def default_metric(kind: Any) -> str:
    """The metric of a task that names none; the usual kind's where there is no such kind."""
    return METRICS["generation" if kind == "generation" else "classification"][0]


class Task(Frozen):
    """Rows of text with a label or a response each, and the metric that models are compared by."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Kind = "classification"
    """What the model answers with: one of the labels, or text."""
    train: Source
    """Rows to learn from: a .jsonl, .csv, .tsv or .parquet file, a glob, hf://owner/name/split, builtin:docstrings,
    builtin:arithmetic (generation)."""
    validation: Source | float = 0.1
    """Rows, or the share of train that is set aside (stratified, seeded). A ``builtin:`` train brings its own rows
    unless a file is named here."""
    test: Source | None = None
    """Rows on which the front is confirmed; nothing is chosen by them."""
    unlabeled: Source | None = None
    """More texts, or prompts; labels and responses are not read. Strategies that make their own use them."""
    retain: Source | None = None
    """Labelled rows of another kind than the task's, on which forgetting is measured."""
    text: Column = "text"
    """Column of the texts."""
    label: Column = "label"
    """Column of the labels: text, whole numbers or truth values."""
    domain: Column | None = None
    """Classification: column that tells where a row of train comes from (a product, a language, a customer). Experts of
    a mixture can then learn from some domains each."""
    prompt: Column = "prompt"
    """Generation: column of the prompts."""
    response: Column = "response"
    """Generation: column of the responses, text or numbers."""
    rationale: Column | None = None
    """Generation: column of the rationales, the way to each response. None: a column called rationale, if there is
    one."""
    metric: Literal["accuracy", "macro_f1", "exact_match", "rouge_l", "perplexity"] = "accuracy"
    """Quality. Of labels: the share of right ones, or F1 averaged over them. Of responses: the share whose answer is
    right (the default there), ROUGE-L, or the perplexity of the right responses, which is minimised."""
    max_tokens: int = Field(default=128, ge=2)
    """Longer texts are cut to this number of tokens. Generation: of prompt and response together, 512 by default; it is
    the prompt that is cut, from the left."""
    max_new_tokens: int = Field(default=64, ge=2)
    """Generation: how long a response may become, its end included."""
    limit: int | None = Field(default=None, ge=2)
    """At most this many rows of train (stratified, seeded), for quick tries."""

    @field_validator("validation")
    @classmethod
    def _is_share(cls, value: str | float) -> str | float:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"a share must be above 0 and below 1, but got {value:g}; name a file, or write 0.1")
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        usual = {"metric": default_metric(raw.get("kind", "classification"))}
        if raw.get("kind") == "generation":
            usual["max_tokens"] = _WHOLE_TOKENS
        return usual | {key: value for key, value in raw.items() if key not in usual or value is not None}

    @field_validator("text", "label", "domain", "prompt", "response", "rationale")
    @classmethod
    def _is_column_of_kind(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        # A spec that is written out has every default, also those of keys that do not apply.
        if kind is None or info.field_name in _COLUMNS[kind] or value == cls.model_fields[str(info.field_name)].default:
            return value
        raise ValueError(f"found {value!r}; kind {kind} takes no such key; name columns by {_listed(_COLUMNS[kind])}")

    @field_validator("domain")
    @classmethod
    def _is_in_the_users_rows(cls, value: str | None, info: ValidationInfo) -> str | None:
        train = str(info.data.get("train"))
        if value is not None and train.startswith(BUILTIN):
            raise ValueError(f"found {value!r}; the rows of {train} have no domains; leave the key out")
        return value

    @field_validator("metric")
    @classmethod
    def _is_metric_of_kind(cls, value: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if kind is not None and value not in METRICS[kind]:
            raise ValueError(f"found {value!r}; expected a metric of kind {kind}: {_listed(METRICS[kind], 'or')}")
        return value

    @field_validator("train")
    @classmethod
    def _is_builtin_of_kind(cls, value: str, info: ValidationInfo) -> str:
        kind, wanted = info.data.get("kind"), KIND_OF_BUILTIN.get(value.removeprefix(BUILTIN))
        if value.startswith(BUILTIN) and None not in (kind, wanted) and kind != wanted:
            raise ValueError(f"found {value!r}; its rows are for kind {wanted}, not {kind}; set task.kind: {wanted}")
        return value

    @property
    def builtin(self) -> str | None:
        """Name of the built-in data set that train is; None where it is the user's own."""
        return self.train.removeprefix(BUILTIN) if self.train.startswith(BUILTIN) else None


def _listed(names: tuple[str, ...], joint: str = "and") -> str:
    return f"{', '.join(names[:-1])} {joint} {names[-1]}"
