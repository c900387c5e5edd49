"""Engines run many tasks in parallel: the contract. ``conf/engine`` lists the engines.

Workers load what they need once and return results. Only the driver writes, so a store needs no
locks. A task that kills its worker is retried by another one; if it kills that too, it is set aside
and reported, and the other tasks continue.

Example:
    >>> import math
    >>> from qsdm.engine.serial import Serial
    >>> def start():  # a worker loads here what its tasks share
    ...     return math.sqrt
    >>> with Serial().open(start) as pool:
    ...     results = dict(pool.map([4, 9]))
    >>> results
    {0: 2.0, 1: 3.0}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Start = Callable[[], Callable[[Any], Any]]


class EngineError(ValueError):
    """No task can be done; the message says why. It ends the whole run."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that was set aside.

    Attributes:
        reason: one sentence.
    """

    reason: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an exception that a task raised.

        Args:
            error: the exception.

        Returns:
            A failure with its type and message.
        """
        return cls(f"{type(error).__name__}: {error}")


class Pool(Protocol):
    """Running workers."""

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Run tasks, and yield results as they arrive.

        Args:
            tasks: arguments of the function that `Engine.open`'s ``start`` returns.

        Yields:
            Index of a task, and what the function returned or a `Failure`.

        Raises:
            EngineError: the workers cannot start, or a task raised it.
        """
        ...


class Engine(Protocol):
    """Options of where and how tasks run."""

    @property
    def num_workers(self) -> int | None:
        """How many tasks run at a time; None if that is unknown before the engine has started."""
        ...

    def open(self, start: Start) -> AbstractContextManager[Pool]:
        """Start workers, which end when the block ends, for whatever reason.

        Args:
            start: called once in each worker before its first task; returns the function from a
                task to its result. Start, task and result must be importable in the worker's
                process.

        Returns:
            A context manager of the running workers.
        """
        ...
