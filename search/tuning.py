"""Ray Tune's part: it asks for plans, starts their trials, and passes reports on. The conductor decides everything.

Tune's own saving and restoring is not used: the ledger is the only state.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.conductor import DONE, WAIT, Conductor, Listener
from search.records import Record
from search.run_folder import RunFolder
from search.seats import SeatPool
from search.trial import PlanTrial
from trainers.storage import StorageError


@dataclass(frozen=True)
class Board:
    """The switchboard, as the driver speaks with it."""

    actor: Any
    name: str
    failed: threading.Event
    """Set when there are no seats any more."""

    def collect(self, order_id: str) -> dict[str, Any]:
        return dict(ray.get(self.actor.collect.remote(order_id)))

    def abandon(self, order_id: str, *, for_now: bool = False) -> None:
        ray.get(self.actor.abandon.remote(order_id, for_now=for_now))

    def measure(self, records: Sequence[Record], *, split: str) -> list[dict[str, Any]]:
        """Have the seats measure trained variants on a split; outcomes in the order of ``records``."""
        names = [f"measure-{record.record_id}" for record in records]
        for name, record in zip(names, records, strict=True):
            order = {
                "id": name,
                "kind": "measure",
                "plan": record.plan,
                "precisions": [record.precision],
                "split": split,
            }
            ray.get(self.actor.submit.remote(order))
        return [self._outcome(name) for name in names]

    def _outcome(self, name: str) -> dict[str, Any]:
        while True:
            message = self.actor.next_message.remote(name)
            while not ray.wait([message], timeout=1.0)[0]:
                if self.failed.is_set():
                    return {"error": "workers could not be kept up"}
            if ray.get(message).get("done"):
                return self.collect(name)


class _Unsaved:
    """Part of a Tune run that Tune cannot save: the ledger is the only state, and Tune's own is never restored."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (object, ())

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class _Failure(_Unsaved):
    """An error of ours inside a call of Tune's, which would log it and go on: it ends the search instead."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._error: Exception | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """An error inside the block is kept for ``raise_again``, and nothing more is handed out."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error
            self._conductor.interrupted = True

    def raise_again(self) -> None:
        """Raise the first error that was kept, if there is one."""
        if self._error is not None:
            raise self._error


class _Searcher(_Unsaved, Searcher):
    """Tune asks for a configuration, the conductor answers with a proposal."""

    def __init__(self, conductor: Conductor, board: Board, *, seats: int, folder: RunFolder, failure: _Failure) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor, self._board, self._seats, self._folder = conductor, board, seats, folder
        self._failure = failure
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A proposal as an order for a seat; None while every seat is taken or every candidate held back."""
        if len(self._conductor.running) >= self._seats:
            return None
        proposal = self._conductor.next()
        if proposal == WAIT:
            return None
        if isinstance(proposal, str):
            assert proposal == DONE
            return Searcher.FINISHED
        self._numbers[trial_id] = proposal.number
        precisions = tuple(dict.fromkeys(precision for precision, _ in proposal.variants))
        order = {
            "id": proposal.trial_id,
            "number": proposal.number,
            "kind": "plan",
            "plan": proposal.draw.plan.to_json(),
            "precisions": precisions,
        }
        return {"switchboard": self._board.name, "order": order}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand what came of a trial to the conductor, unless that ended it itself."""
        number = self._numbers.pop(trial_id, None)
        if number is None or self._conductor.interrupted:
            return
        if not any(proposal.number == number for proposal in self._conductor.running):
            return
        with self._failure.kept():
            self._settle(number, unexpected=error or result is None)

    def _settle(self, number: int, *, unexpected: bool) -> None:
        name = f"t{number:05d}"
        if unexpected:
            self._board.abandon(name)
            self._conductor.fail(number, "the trial's process ended unexpectedly")
        else:
            self._deliver(number, self._board.collect(name))
        self._folder.beat()

    def _deliver(self, number: int, outcome: dict[str, Any]) -> None:
        if "error" in outcome:
            self._folder.log(outcome.get("traceback", outcome["error"]))
            if outcome.get("storage"):
                # No plan's fault, and the next one would end the same way.
                said = outcome["error"].removeprefix("StorageError: ")
                raise StorageError(f"{said}; set that right, and the same command goes on")
            self._conductor.fail(number, f"{outcome['error']}\n{outcome.get('traceback', '')}".strip())
        else:
            self._conductor.complete(number, outcome["result"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only state."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Tune asks whether a trial goes on, the conductor answers. A stopped plan ends inside its worker's loop."""

    def __init__(self, conductor: Conductor, board: Board, folder: RunFolder, failure: _Failure) -> None:
        super().__init__()
        self._conductor, self._board, self._folder, self._failure = conductor, board, folder, failure

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """CONTINUE or STOP."""
        goes_on = True
        with self._failure.kept():
            goes_on = self._goes_on(result)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def _goes_on(self, result: dict[str, Any]) -> bool:
        number = result["number"]
        self._folder.beat()
        if self._conductor.interrupted or result.get("done"):
            return True
        if "restarted" in result:
            self._conductor.restarted(number)
            return True
        if self._conductor.goes_on(number, result["progress"]):
            return True
        self._board.abandon(f"t{number:05d}", for_now=self._conductor.is_set_aside(number))
        return False


class _Ending(_Unsaved, tune.Stopper):
    """Ends the Tune run when the search was interrupted or its seats cannot be kept up."""

    def __init__(self, conductor: Conductor, pool: SeatPool) -> None:
        self._conductor, self._pool = conductor, pool

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        if self._pool.failed.is_set():
            self._conductor.interrupted = True
        return self._conductor.interrupted


def drive(
    conductor: Conductor, pool: SeatPool, board: Board, *, seats: int, folder: RunFolder, listener: Listener
) -> None:
    """Run Tune until the conductor is done.

    Raises:
        StorageError: something could not be written down; the search can be gone on with.
    """
    failure = _Failure(conductor)
    tuner = tune.Tuner(
        tune.with_resources(PlanTrial, {"CPU": 0.01}),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(conductor, board, seats=seats, folder=folder, failure=failure),
            scheduler=_Scheduler(conductor, board, folder, failure),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(folder.log_folder),
            stop=_Ending(conductor, pool),
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with _signals(conductor, listener):
        tuner.fit()
    failure.raise_again()


@contextlib.contextmanager
def _signals(conductor: Conductor, listener: Listener) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the search in order, the second at once."""

    def end(signum: int, frame: Any) -> None:  # noqa: ARG001
        if conductor.interrupted:
            raise KeyboardInterrupt
        conductor.interrupted = True
        listener.said("stopping; once more to stop at once")

    try:
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
