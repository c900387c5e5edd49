"""A pool of processes on this machine (Pebble): unlike the standard library's, it survives the death of a worker.

Processes are spawned: a fork after OpenMP has started threads hangs. Each worker has one thread; on a CPU many
single-threaded workers draw more pictures than one with many threads. Ctrl-C reaches the driver only, which then ends
the workers; if the driver is killed, they end themselves.

With ``gpus=N`` each worker sees one GPU alone, the first by its own count. A worker that takes a dead one's place takes
its GPU too. Not tried: several GPUs.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.worker import Worker

_worker: Worker
_place: IO[str]


@dataclass(frozen=True, slots=True)
class Local:
    """Options of the pool.

    Attributes:
        num_workers: processes; None for one per GPU, or without GPUs for as many as there are cores for us.
        num_threads: of each worker.
        retries: how often a task is done again after its worker died, and how often workers that died before they
            began any task are started again.
        gpus: over how many GPUs the workers are spread, the first of those that CUDA_VISIBLE_DEVICES names; 0 to let
            each worker see what this process sees.
    """

    num_workers: int | None = None
    num_threads: int = 1
    retries: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        if (self.num_workers is not None and self.num_workers < 1) or self.num_threads < 1:
            raise ValueError(
                f"num_workers and num_threads must be positive (got {self.num_workers}, {self.num_threads})"
            )
        if self.retries < 0 or self.gpus < 0:
            raise ValueError(
                f"retries and gpus must not be negative (got {self.retries}, {self.gpus})"
            )

    @contextmanager
    def open(self, start: Start) -> Iterator[_LocalPool]:
        import multiprocessing

        from pebble import ProcessPool

        workers = self.num_workers or self.gpus or num_cores()
        gpus = visible_gpus(self.gpus)
        with tempfile.TemporaryDirectory(prefix="qsdm-gpus-") if gpus else nullcontext() as folder:
            places = (
                [(Path(folder) / str(i), gpus[i % len(gpus)]) for i in range(workers)]
                if folder
                else []
            )

            def begin() -> ProcessPool:
                return ProcessPool(
                    max_workers=workers,
                    initializer=_begin,
                    initargs=(places, start, self.num_threads),
                    context=multiprocessing.get_context("spawn"),
                )

            pool = _LocalPool(begin, self.retries)
            try:
                yield pool
                pool.close()
            except BaseException:
                pool.stop()
                raise


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(num: int) -> list[str]:
    """The first GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        EngineError: it may use fewer.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(num)]
    found = [name.strip() for name in named.split(",") if name.strip()]
    if len(found) < num:
        raise EngineError(
            f"wanted {num} GPUs (CUDA_VISIBLE_DEVICES names {len(found)}): give engine.gpus={len(found)}"
        )
    return found[:num]


class _LocalPool:
    """A pool of Pebble's, and a fresh one in its place when it breaks: it does if a worker dies while none has a task,
    as when the only one is killed before it could take its first."""

    def __init__(self, begin: Callable[[], Any], retries: int) -> None:
        self._begin, self._retries = begin, retries
        self._pool, self._broken = begin(), 0

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        from pebble import ProcessExpired

        # Not concurrent.futures.wait: it takes the locks of all futures each time, and a Ctrl-C in between leaves some
        # of them locked, for which the pool then waits forever.
        done: SimpleQueue[tuple[int, Any, Future]] = SimpleQueue()

        def submit(i: int) -> None:
            pool = self._pool
            try:
                future = pool.submit(_do, None, tasks[i])
            except RuntimeError:  # it broke since
                self._replace(pool)
                return submit(i)
            return future.add_done_callback(lambda future: done.put((i, pool, future)))

        for i in range(len(tasks)):
            submit(i)
        deaths = [0] * len(tasks)
        left = len(tasks)
        while left:
            i, pool, future = done.get()
            try:
                result = future.result()
            except ProcessExpired as death:
                deaths[i] += 1
                if deaths[i] <= self._retries:
                    submit(i)
                    continue
                result = Failure(f"its worker died {deaths[i]} times (exit code {death.exitcode})")
            except BrokenProcessPool:
                self._replace(pool)
                submit(i)
                continue
            except Exception as error:  # a result that cannot be pickled
                result = Failure.of(error)
            if isinstance(result, EngineError):
                raise result
            self._broken = 0
            left -= 1
            yield i, result

    def _replace(self, pool: Any) -> None:
        """Begin again with what ``pool`` has not done, unless another task's future already told that it broke."""
        if pool is not self._pool:
            return
        self._broken += 1
        if self._broken > self._retries:
            raise EngineError(
                f"workers died {self._broken} times before they could begin (killed, or out of memory): "
                "give fewer with engine.num_workers=N"
            )
        self.stop()
        self._pool = self._begin()

    def close(self) -> None:
        self._pool.close()
        self._pool.join()

    def stop(self) -> None:
        self._pool.stop()
        self._pool.join()


def _begin(places: Sequence[tuple[Path, str]], start: Start, num_threads: int) -> None:
    """Set a fresh worker up; what `start` loads waits for the first task, whose future can report that it failed."""
    global _worker
    if places:
        _take(places)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    from tqdm import tqdm

    tqdm.set_lock(
        threading.RLock()
    )  # its default is a semaphore of the system, which a worker that is ended would leak
    _worker = Worker(start, num_threads)


def _take(places: Sequence[tuple[Path, str]]) -> None:
    """See the GPU of the first place that no living worker holds.

    The system releases the lock of a worker that dies, however it dies. Torch asks for the variable when it first uses
    a GPU, which importing qsdm does not.
    """
    global _place
    import fcntl

    while True:
        for path, gpu in places:
            _place = path.open("w")
            try:
                fcntl.flock(_place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _place.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return
        time.sleep(0.1)  # the one whose place this shall be is still ending


def _end_with_driver() -> None:
    import multiprocessing

    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _do(task: Any) -> Any:
    return _worker.do(task)
