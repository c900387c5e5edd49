"""Run tasks one by one in this process: for debuggers, notebooks and unshareable devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qsdm.engine import EngineError, Failure, Start


@dataclass(frozen=True, slots=True)
class Serial:
    """The serial engine, which has no options."""

    @property
    def num_workers(self) -> int:
        """One: this process."""
        return 1

    @contextmanager
    def open(self, start: Start) -> Iterator[_SerialPool]:
        """Run ``start`` at the first task (see `qsdm.engine.Engine.open`)."""
        yield _SerialPool(start)


class _SerialPool:
    def __init__(self, start: Start) -> None:
        self._start = start
        self._work: Callable[[Any], Any] | None = None

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for i, task in enumerate(tasks):
            if self._work is None:
                self._work = self._start()
            try:
                yield i, self._work(task)
            except EngineError:
                raise
            except Exception as error:  # whatever a task raises concerns this task only
                yield i, Failure.of(error)
