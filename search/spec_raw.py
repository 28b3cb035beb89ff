"""A spec as it was read, which may be wrong anywhere: what is no section, list or text is passed over."""

from collections.abc import Mapping
from typing import Any

from spaces.task import default_metric


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The section called ``name``; empty where there is none."""
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}


def texts_in(value: Any) -> list[str]:
    """One text or the texts of a list."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def metric_of(task: Mapping[str, Any]) -> Any:
    """The metric of a task: what it names, or its kind's first."""
    return task.get("metric") or default_metric(task.get("kind"))
