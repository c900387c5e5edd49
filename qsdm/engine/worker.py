"""How a worker runs its tasks, wherever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.threads import set_threads


class Worker:
    """Runs tasks with the function that ``start`` returns.

    It calls ``start`` in `begin`, or else at its first task; then that task's result tells the
    driver why ``start`` failed.

    Args:
        start: returns the function from a task to its result.
        num_threads: see `qsdm.engine.threads.set_threads`.
    """

    def __init__(self, start: Start, num_threads: int) -> None:
        self._start, self._num_threads = start, num_threads
        self._work: Callable[[Any], Any] | None = None

    def begin(self) -> EngineError | None:
        """Call ``start`` now.

        Returns:
            Why it failed; None if it did not.
        """
        try:
            self._work = self._started()
        except EngineError as error:
            return EngineError(str(error))
        return None

    def do(self, task: Any) -> Any:
        """Run a task.

        Errors are returned, not raised, because not every exception can be sent to another process.

        Args:
            task: argument of the function that ``start`` returned.

        Returns:
            The result; a `Failure` if this task failed, or an `EngineError` if no task can be done.
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
            set_threads(self._num_threads)
            work = self._start()
            set_threads(self._num_threads)  # of libraries that were loaded by that
        except Exception as error:
            raise EngineError(
                f"a worker could not start: {str(error) or type(error).__name__}"
            ) from error
        return work
