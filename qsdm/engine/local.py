"""A pool of processes on this machine (Pebble): unlike the standard library's, it survives the death of a worker.

Processes are spawned: a fork after OpenMP has started threads hangs. Each worker has one thread; on a CPU many
single-threaded workers draw more pictures than one with many threads. Ctrl-C reaches the driver only, which then ends
the workers; if the driver is killed, they end themselves.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qsdm.engine import EngineError, Failure, Start

_start: Start
_work: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """Options of the pool.

    Attributes:
        num_workers: processes; None for as many as there are cores for us.
        num_threads: of each worker.
        retries: how often a task is done again after its worker died.
    """

    num_workers: int | None = None
    num_threads: int = 1
    retries: int = 1

    def __post_init__(self) -> None:
        if (self.num_workers is not None and self.num_workers < 1) or self.num_threads < 1 or self.retries < 0:
            raise ValueError(
                f"num_workers and num_threads must be positive and retries not negative "
                f"(got {self.num_workers}, {self.num_threads}, {self.retries})"
            )

    @contextmanager
    def open(self, start: Start) -> Iterator[_LocalPool]:
        import multiprocessing

        from pebble import ProcessPool

        workers = self.num_workers or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )
        pool = ProcessPool(
            max_workers=workers,
            initializer=_begin,
            initargs=(start, self.num_threads),
            context=multiprocessing.get_context("spawn"),
        )
        try:
            yield _LocalPool(pool, self.retries)
            pool.close()
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.join()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _LocalPool:
    def __init__(self, pool: Any, retries: int) -> None:
        self._pool, self._retries = pool, retries

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        from pebble import ProcessExpired

        futures: dict[Future, int] = {self._pool.submit(_do, None, task): i for i, task in enumerate(tasks)}
        deaths = [0] * len(tasks)
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                i = futures.pop(future)
                try:
                    yield i, future.result()
                except EngineError as error:
                    raise EngineError(str(error)) from error
                except ProcessExpired as death:
                    deaths[i] += 1
                    if deaths[i] <= self._retries:
                        futures[self._pool.submit(_do, None, tasks[i])] = i
                    else:
                        yield i, Failure(f"its worker died {deaths[i]} times (exit code {death.exitcode})")
                except Exception as error:  # whatever a task raises concerns this task only
                    yield i, Failure(f"{type(error).__name__}: {error}")


def _begin(start: Start, num_threads: int) -> None:
    """Set a fresh worker up; what `start` loads waits for the first task, whose future can report that it failed."""
    global _start
    _start = start
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    import torch
    from tqdm import tqdm

    torch.set_num_threads(num_threads)
    tqdm.set_lock(
        threading.RLock()
    )  # its default is a semaphore of the system, which a worker that is ended would leak


def _end_with_driver() -> None:
    import multiprocessing

    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _do(task: Any) -> Any:
    global _work
    if _work is None:
        try:
            _work = _start()
        except Exception as error:
            raise EngineError(f"a worker could not start: {error}") from error
    return _work(task)
