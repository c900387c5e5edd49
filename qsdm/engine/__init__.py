"""Who does many tasks: the contract. ``conf/engine`` names the members.

Workers load what they need once and return results; the driver alone writes, so that a store needs
no locks. A task that kills its worker is done again by another one, then set aside and named; the
others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Start = Callable[[], Callable[[Any], Any]]


class EngineError(ValueError):
    """No task can be done; the message says why. Whoever raises it ends the whole run."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that was set aside.

    Attributes:
        reason: one sentence.
    """

    reason: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Of a task that raised."""
        return cls(f"{type(error).__name__}: {error}")


class Pool(Protocol):
    """Workers that are running."""

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Results as they come: (index of the task, what the worker returned or a `Failure`).

        Raises:
            EngineError: the workers cannot start, or one of them found that no task can be done.
        """
        ...


class Engine(Protocol):
    """Where tasks are done, and the options of it."""

    @property
    def num_workers(self) -> int | None:
        """How many tasks are going to be done at a time; None if the engine cannot tell before it
        has begun."""
        ...

    def open(self, start: Start) -> AbstractContextManager[Pool]:
        """Start workers. When the block ends, however it ends, they end too.

        Args:
            start: called once in each worker before its first task; returns the function from a
                task to its result. All three must be importable from the worker's process.
        """
        ...
