"""What to try and what to keep: the search, its ledger, the choice, the report, the command line.

From Python: ``Search.from_yaml("spec.yaml").run()`` and ``load_run("runs/NAME")``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.engine import Search
    from search.run import Run, load_run

__all__ = ["Run", "Search", "load_run"]


def __getattr__(name: str) -> Any:
    """Import on first use: whoever only selects or reports does not pay for torch and Ray."""
    if name == "Search":
        from search.engine import Search

        return Search
    if name in ("Run", "load_run"):
        from search import run

        return getattr(run, name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
