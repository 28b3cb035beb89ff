"""The colours of the report."""

from spaces.catalogue import CATALOGUE

MUTED = "#8b8f98"
COLOURS = ("#3b7dd8", "#e0702e", "#8d63c9", "#2a9d74", "#c2477f", "#b8901a", "#3aa0b5", "#8a6d5a")
"""Tell apart with any colour vision in pairs that matter, and readable on white and on near-black."""


def colour(strategy: str) -> str:
    """The strategy's colour, the same in every plot."""
    names = list(CATALOGUE)
    return COLOURS[names.index(strategy) % len(COLOURS)] if strategy in names else MUTED
