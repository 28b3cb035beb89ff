"""Plans that were stopped and may be gone on with: the few that came nearest to the front."""

from bisect import insort
from collections.abc import Sequence

from search.memory_ledger import Proposal

NUM_KEPT = 8
"""Plans that are thought of, and whose checkpoints are kept: each holds the weights that it trains three times."""


class Aside:
    """Stopped plans, by their reach when they were stopped. The same records, the same order."""

    def __init__(self) -> None:
        self._found: list[tuple[float, int, Proposal]] = []

    @property
    def nearest(self) -> Sequence[Proposal]:
        """Those that are kept, the furthest reach first."""
        return [proposal for _, _, proposal in self._found[:NUM_KEPT]]

    def put(self, proposal: Proposal, *, reach: float) -> None:
        """A plan was stopped."""
        insort(self._found, (-reach, proposal.number, proposal))

    def take(self, number: int) -> None:
        """A plan is gone on with under another number."""
        self._found = [found for found in self._found if found[1] != number]
