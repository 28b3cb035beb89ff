"""What is known of a plan before it is trained."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search.known_cost.gaussian_process import Vector
from spaces.draw import Draw


class Foreknown(Protocol):
    """Told by the cost table and the artifact store, or by a table of recorded trainings."""

    @property
    def variants(self) -> Sequence[str]:
        """The precisions that a plan is deployed at."""

    def values(self, draws: Sequence[Draw]) -> NDArray[np.float64]:
        """Draws × variants × objectives, minimised.

        NaN where only training tells; inf, all along, for a variant that a known constraint rules out.
        """

    def share_left(self, draws: Sequence[Draw]) -> Vector:
        """The share of each plan's training that is still to be done: 1 where no part of it is there already."""
