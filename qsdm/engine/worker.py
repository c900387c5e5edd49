"""What a worker does with its tasks, wherever it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from qsdm.engine import EngineError, Failure, Start


class Worker:
    """Calls ``start`` in `begin`, or else at its first task, by whose result the driver learns why
    it failed.

    Args:
        num_threads: that torch computes with.
    """

    def __init__(self, start: Start, num_threads: int) -> None:
        self._start, self._num_threads = start, num_threads
        self._work: Callable[[Any], Any] | None = None

    def begin(self) -> EngineError | None:
        """Call ``start`` now; returns why it failed."""
        try:
            self._work = self._started()
        except EngineError as error:
            return EngineError(str(error))
        return None

    def do(self, task: Any) -> Any:
        """The task's result, or why there is none: a `Failure` for this one, an `EngineError` for
        all of them.

        Both are returned, not raised: an exception does not always survive its way to another
        process.
        """
        try:
            if self._work is None:
                self._work = self._started()
            return self._work(task)
        except EngineError as error:
            return EngineError(str(error))
        except Exception as error:  # whatever a task raises concerns this task only
            return Failure.of(error)

    def _started(self) -> Callable[[Any], Any]:
        try:
            self._limit_threads()
            work = self._start()
            self._limit_threads()
        except Exception as error:
            raise EngineError(
                f"a worker could not start: {str(error) or type(error).__name__}"
            ) from error
        return work

    def _limit_threads(self) -> None:
        """Once before and once after ``start``, which may be the first to import torch, or do
        without."""
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._num_threads)
