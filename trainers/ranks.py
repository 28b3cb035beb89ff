"""The workers that carry out one plan together. One alone needs no ``torch.distributed``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from trainers.context import Stopped

T = TypeVar("T")


class RankError(Exception):
    """Worker 0 failed, so the others ended as well; its own error says why."""


@dataclass(frozen=True)
class Ranks:
    """This worker's number and how many there are. With several, the caller has set up the process group."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the worker that publishes and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            distributed.barrier()

    def broadcast(self, value: T) -> T:
        """Worker 0's ``value``, on every worker."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` summed over the workers, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def all_reduce_each(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each of the tensors over the workers, in place and in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = self.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """Every worker's ``value``, in the order of their numbers, on every worker."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        distributed.all_gather_object(box, value)
        return box

    def on_first(self, action: Callable[[], T]) -> T:
        """Worker 0's result of ``action``, on every worker; the others wait.

        Raises:
            Stopped: on every worker, where the action raised it.
            RankError: on the others, where the action raised anything else; worker 0 raises its own error.
        """
        if self.size == 1:
            return action()
        if not self.first:
            return _opened(self.broadcast(None))
        try:
            result = action()
        except BaseException as error:
            self.broadcast((isinstance(error, Stopped), f"{type(error).__name__}: {error}", None))
            raise
        self.broadcast((False, None, result))
        return result


def solo() -> Ranks:
    """One worker alone."""
    return Ranks()


def _opened(message: Any) -> Any:
    stopped, problem, result = message
    if stopped:
        raise Stopped(problem)
    if problem is not None:
        raise RankError(f"worker 0 failed: {problem}")
    return result
