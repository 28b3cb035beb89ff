"""Seats: worker groups that stay up and take one plan after another, and the switchboard that connects them.

The driver owns the seats (one thread waits on each group), the switchboard is a small actor, and a Tune trial only
passes messages: so that a trial costs milliseconds and stopping one never tears a group down.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from trainers.context import Context

NAMESPACE = "distune"
_MAX_DELIVERIES = 3
"""How often an order is given to a seat before it counts as what kills the worker."""
_MAX_RESTARTS = 5


@dataclass
class _Order:
    order: dict[str, Any]
    messages: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)
    answer: "asyncio.Future[bool | None] | None" = None
    asked: Any = None
    """The report that waits for an answer."""
    deliveries: int = 0
    result: Any = None
    over: bool = False


class Switchboard:
    """Passes orders to seats and reports back. An async actor: every call may wait without holding up the others."""

    def __init__(self) -> None:
        self._orders: dict[str, _Order] = {}
        self._queue: deque[str] = deque()
        self._held: dict[str, str] = {}
        self._workers: list[Any] = []
        self._changed = asyncio.Condition()
        self._closed = False

    async def ready(self) -> None:
        """Return as soon as it is up."""

    # For seats --------------------------------------------------------------------------------------------------

    async def arrive(self, worker: Any) -> None:
        """A worker of a seat is up: the handle of its actor."""
        self._workers.append(worker)

    async def take(self, seat: str) -> dict[str, Any] | None:
        """The next order for ``seat``; the unfinished one again after its group was restarted; None: go home."""
        if (again := self._orders.get(self._held.get(seat, ""))) is not None and not again.over:
            if again.deliveries < _MAX_DELIVERIES:
                await again.messages.put({"restarted": True})
                return self._deliver(seat, again)
            await self.finish(again.order["id"], {"error": f"the worker died {again.deliveries} times in this plan"})
        async with self._changed:
            await self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            return self._deliver(seat, self._orders[self._queue.popleft()])

    def _deliver(self, seat: str, entry: _Order) -> dict[str, Any]:
        entry.deliveries += 1
        self._held[seat] = entry.order["id"]
        return entry.order

    async def is_wanted(self, order_id: str) -> bool | None:
        """Whether an order goes on, asked between its reports; None: not now, the search is being closed."""
        if self._closed:
            return None
        entry = self._orders.get(order_id)
        return entry is not None and not entry.over

    async def report(self, order_id: str, progress: Any) -> bool | None:
        """Pass a report on; whether the plan goes on, None: not now, the search is being closed."""
        if self._closed:
            return None
        entry = self._orders.get(order_id)
        if entry is None or entry.over:
            return False
        entry.answer = asyncio.get_running_loop().create_future()
        entry.asked = progress
        await entry.messages.put({"progress": progress})
        return await entry.answer

    async def finish(self, order_id: str, outcome: dict[str, Any]) -> None:
        """An order is done: ``{"result": …}`` or ``{"error": …, "traceback": …, "storage": bool}``."""
        entry = self._orders.get(order_id)
        if entry is not None and not entry.over:
            entry.over = True
            entry.result = outcome
            await entry.messages.put({"done": True})

    # For trials and the driver ------------------------------------------------------------------------------------

    async def submit(self, order: dict[str, Any]) -> None:
        """Queue an order. One that is there stays: a trial that was started again gets the open report again."""
        async with self._changed:
            entry = self._orders.get(order["id"])
            if entry is None:
                self._orders[order["id"]] = _Order(order)
                self._queue.append(order["id"])
                self._changed.notify_all()
            elif entry.over:
                await entry.messages.put({"done": True})
            elif entry.answer is not None and not entry.answer.done() and entry.messages.empty():
                await entry.messages.put({"progress": entry.asked})

    async def next_message(self, order_id: str) -> dict[str, Any]:
        """The next report of an order."""
        return await self._orders[order_id].messages.get()

    async def answer(self, order_id: str, goes_on: bool | None) -> None:
        """Answer an order's last report."""
        entry = self._orders.get(order_id)
        if entry is not None and entry.answer is not None and not entry.answer.done():
            entry.answer.set_result(goes_on)

    async def abandon(self, order_id: str, *, for_now: bool = False) -> None:
        """End an order at its next report, and forget it; ``for_now``: its checkpoint is to be kept."""
        await self.answer(order_id, None if for_now else False)
        entry = self._orders.pop(order_id, None)
        if entry is not None:
            entry.over = True
            if order_id in self._queue:
                self._queue.remove(order_id)

    async def collect(self, order_id: str) -> dict[str, Any]:
        """The outcome of a finished order, which is then forgotten."""
        entry = self._orders.pop(order_id)
        return dict(entry.result)

    async def workers(self) -> list[Any]:
        """Every worker that ever arrived."""
        return self._workers

    async def close(self) -> None:
        """Send every seat home as soon as it asks; what is under way ends at its next report or heartbeat."""
        async with self._changed:
            self._closed = True
            self._queue.clear()
            for order_id in list(self._orders):
                await self.answer(order_id, None)
                self._orders[order_id].over = True
            self._changed.notify_all()


class SeatPool:
    """The seats of one search. A context manager: leaving it sends them home and waits for their resources."""

    def __init__(self, board: Any, *, say: Callable[[str], None], log: Callable[[str], None]) -> None:
        self._board, self._say, self._log = board, say, log
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self.failed = threading.Event()
        """Set when a seat cannot be kept up."""

    def start(self, seat: Any, context: Context, *, count: int) -> None:
        """Start ``count`` seats like ``seat``; they come up in the background."""
        for index in range(count):
            named = replace(seat, name=f"seat-{index}")
            thread = threading.Thread(target=self._keep_up, args=(named, context), name=named.name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, *, wait_s: float = 30.0) -> None:
        """Send the seats home. Whoever does not go within ``wait_s`` is killed, and goes when it is up again."""
        self._closing.set()
        ray.get(self._board.close.remote())
        if not self._all_gone(wait_s):
            for worker in ray.get(self._board.workers.remote()):
                ray.kill(worker)
            # Ray ends the whole process where a thread still asks it for something after its shutdown.
            self._all_gone(2 * wait_s)

    def _all_gone(self, wait_s: float) -> bool:
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _keep_up(self, seat: Any, context: Context) -> None:
        from trainers.ray_train import run_seat  # it brings torch, which only a running search needs

        for attempt in range(_MAX_RESTARTS):
            try:
                run_seat(seat, context, attempt=attempt)
                return
            except Exception as error:
                if self._closing.is_set():
                    return
                self._log(traceback.format_exc())
                self._say(f"{seat.name} went down ({type(error).__name__}); it is started again")
        self.failed.set()
