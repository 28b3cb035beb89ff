"""A Tune trial: it passes a plan to a seat and the seat's reports to Tune. It holds nothing and imports no torch."""

from typing import Any

import ray
from ray import tune

from search.seats import NAMESPACE


class PlanTrial(tune.Trainable):
    """One plan. The actor is reused for the next one."""

    _order: dict[str, Any]
    _asked: bool = False
    """Whether the last report waits for an answer."""

    def setup(self, config: dict[str, Any]) -> None:
        self._board = ray.get_actor(config["switchboard"], namespace=NAMESPACE)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next report. The answer to it is given by going on to the next step."""
        if self._asked:
            ray.get(self._board.answer.remote(self._order["id"], True))
        message = ray.get(self._board.next_message.remote(self._order["id"]))
        self._asked = "progress" in message
        return {"number": self._order["number"], **message}

    def _begin(self, config: dict[str, Any]) -> None:
        self._order = config["order"]
        self._asked = False
        ray.get(self._board.submit.remote(self._order))
