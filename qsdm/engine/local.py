"""A pool of processes on this machine that survives the death of any worker at any moment.

Each worker has its own pipe, and the driver, which has one thread, knows the task of each worker.
They share no queue and no lock, so nothing waits for a worker that died. The driver notices its
death by its pipe, its sentinel or its exit code, gives the task to another worker and starts a new
one.

Why not a library: a killed worker breaks all futures of the standard library's pool. Pebble 5.2.3,
used before, replaces the worker, but its driver waited forever in 16 of 60 runs in which the only
worker was killed before its first task, in 28 of 60 with two workers and 6,000 small tasks, and in
6 of 6 with 400 tasks of 5 kB. Its workers share one pipe under a lock, its scheduler blocks on that
pipe when it is full and nobody reads, and futures that a broken pool had accepted never complete.
``experiments/bench/pool.py`` kills workers of this pool at random moments.

Not detected is a worker that lives but makes no progress: one that was stopped (SIGSTOP), or a task
that never ends.

Each worker has one thread by default: on a CPU, many single-threaded workers draw more pictures
than one worker with many threads. The driver uses the cores that they leave, at least one. Ctrl-C
reaches only the driver, which then ends the workers; if the driver is killed, they end themselves.

With ``gpus=N`` each worker sees a single GPU, as its first one. A worker that replaces a dead one
uses the same GPU. Several GPUs have not been tried.
"""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.pipe import DriverEnd, decode, encode
from qsdm.engine.process import spawn, wait_for_exit
from qsdm.engine.threads import limited_threads

POLL_S = 1.0
"""How often exit codes are checked, in seconds: neither pipe nor sentinel shows a death while a
process that the worker forked holds them open."""


@dataclass(frozen=True, slots=True)
class Local:
    """Options of the pool.

    Attributes:
        num_workers: number of processes; None for one per GPU or, without GPUs, one per core that
            this process may use.
        num_threads: number of threads of each worker.
        retries: how often a task is retried after its worker died, and how many workers in a row
            may die before they can begin.
        gpus: number of GPUs over which the workers are spread, the first of those that
            CUDA_VISIBLE_DEVICES names; with 0, each worker sees what this process sees.
    """

    num_workers: int | None = None
    num_threads: int = 1
    retries: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        if (self.num_workers is not None and self.num_workers < 1) or self.num_threads < 1:
            raise ValueError(
                f"num_workers and num_threads must be positive "
                f"(got {self.num_workers}, {self.num_threads})"
            )
        if self.retries < 0 or self.gpus < 0:
            raise ValueError(
                f"retries and gpus must not be negative (got {self.retries}, {self.gpus})"
            )
        object.__setattr__(self, "num_workers", self.num_workers or self.gpus or num_cores())

    @contextmanager
    def open(self, start: Start) -> Iterator[_LocalPool]:
        """Start workers (see `qsdm.engine.Engine.open`)."""
        pool = _LocalPool(self, start)
        assert self.num_workers is not None
        num_left = num_cores() - self.num_workers * self.num_threads
        with limited_threads(max(1, num_left)):
            try:
                yield pool
                pool.close()
            finally:
                pool.stop()


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(num: int) -> list[str]:
    """List the first GPUs that this process may use.

    Args:
        num: number of GPUs.

    Returns:
        Their names, as in CUDA_VISIBLE_DEVICES.

    Raises:
        EngineError: fewer GPUs are visible.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(num)]
    gpus = [name.strip() for name in named.split(",") if name.strip()]
    if len(gpus) < num:
        raise EngineError(
            f"wanted {num} GPUs (CUDA_VISIBLE_DEVICES names {len(gpus)}): "
            f"give engine.gpus={len(gpus)}"
        )
    return gpus[:num]


@dataclass(eq=False, slots=True)
class _Batch:
    """The tasks of one call of `map`.

    Attributes:
        tasks: all of them.
        todo: indices of tasks that no worker has.
        deaths: number of workers that died of each task.
        results: results that were not yet yielded.
        is_open: whether the results are still needed.
    """

    tasks: Sequence[Any]
    todo: deque[int] = field(init=False)
    deaths: list[int] = field(init=False)
    results: deque[tuple[int, Any]] = field(default_factory=deque)
    is_open: bool = True

    def __post_init__(self) -> None:
        self.todo = deque(range(len(self.tasks)))
        self.deaths = [0] * len(self.tasks)


@dataclass(eq=False, slots=True)
class _Process:
    """A worker as the driver sees it.

    Attributes:
        slot: its number in the pool, which determines its GPU.
        process: the process.
        pipe: the driver's end of its pipe.
        is_ready: whether it has started and takes tasks.
        has_begun: whether it has ever begun a task.
        job: the batch and the index of its task.
        is_at_work: whether it has begun that task.
    """

    slot: int
    process: BaseProcess
    pipe: DriverEnd
    is_ready: bool = False
    has_begun: bool = False
    job: tuple[_Batch, int] | None = None
    is_at_work: bool = False


class _LocalPool:
    """Workers start when there are tasks for them, and get one task at a time."""

    def __init__(self, options: Local, start: Start) -> None:
        self._options = options
        self._gpus = visible_gpus(options.gpus)
        try:
            self._start = encode(start)
        except Exception as error:  # of the object's own code
            raise EngineError(f"workers cannot be told how to start: {error}") from error
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Process] = {}  # by slot
        self._unusable: set[int] = set()  # slots whose workers die before they can begin
        self._start_deaths = 0  # in a row
        self._looked_at = time.monotonic()  # exit codes

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        batch = _Batch(tasks)
        self._unusable.clear()
        self._start_deaths = 0
        left = len(tasks)
        try:
            self._hand_out(batch)
            while left:
                self._handle_events(0 if batch.results else POLL_S)
                # Before the results, so that no worker waits for whoever takes them
                self._hand_out(batch)
                if batch.results:
                    i, result = batch.results.popleft()
                    if isinstance(result, EngineError):
                        raise result
                    left -= 1
                    yield i, result
        except (EngineError, GeneratorExit):
            raise
        except BaseException:  # Ctrl-C or a signal handler, perhaps in the middle of a message
            self.stop()
            raise
        finally:
            batch.is_open = False

    def close(self) -> None:
        """End the workers, and kill those that are still busy."""
        for worker in self._workers.values():
            if worker.job is None and worker.is_ready:
                self._selector.unregister(worker.pipe)
                worker.pipe.close()
            else:
                worker.process.kill()
        wait_for_exit([worker.process for worker in self._workers.values()])

    def stop(self) -> None:
        """Kill the workers. `map` starts new ones."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.process.kill()
        wait_for_exit([worker.process for worker in workers])
        for worker in workers:
            self._remove(worker)

    def _hand_out(self, batch: _Batch) -> None:
        """Give each idle worker a task, and start workers for the remaining tasks."""
        idle = [
            worker for worker in self._workers.values() if worker.is_ready and worker.job is None
        ]
        while batch.todo and idle:
            i = batch.todo.popleft()
            try:
                message = encode(batch.tasks[i])
            except Exception as error:  # of the object's own code
                batch.results.append((i, Failure.of(error)))
                continue
            worker = idle.pop()
            worker.job, worker.is_at_work = (batch, i), False
            worker.pipe.send(message)
            self._watch(worker)
        num_starting = sum(not worker.is_ready for worker in self._workers.values())
        free = [
            i
            for i in range(self._num_workers)
            if i not in self._workers and i not in self._unusable
        ]
        for slot in free[: max(0, len(batch.todo) - num_starting)]:
            self._launch(slot)

    @property
    def _num_workers(self) -> int:
        assert self._options.num_workers is not None
        return self._options.num_workers

    def _launch(self, slot: int) -> None:
        """Start a worker.

        What it needs is sent through its pipe: multiprocessing's own pipe would block if it died.
        """
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        try:
            process, pipe = spawn(gpu, self._options.num_threads)
        except OSError as error:  # no memory, or too many processes or open files
            raise EngineError(f"a worker could not start: {error}") from error
        worker = self._workers[slot] = _Process(slot, process, pipe)
        self._selector.register(worker.pipe, selectors.EVENT_READ, worker)
        self._selector.register(worker.process.sentinel, selectors.EVENT_READ, worker)
        worker.pipe.send(self._start)
        self._watch(worker)

    def _watch(self, worker: _Process) -> None:
        """Wait until its pipe can be written too, while there is something to write."""
        writing = selectors.EVENT_WRITE if worker.pipe.has_unsent else 0
        self._selector.modify(worker.pipe, selectors.EVENT_READ | writing, worker)

    def _handle_events(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            worker: _Process = key.data
            if self._workers.get(worker.slot) is not worker:
                continue  # removed by an earlier event
            if key.fileobj is not worker.pipe:
                self._bury(worker)
                continue
            if events & selectors.EVENT_WRITE:
                worker.pipe.flush()
                self._watch(worker)
            if events & selectors.EVENT_READ:
                for message in worker.pipe.receive():
                    self._take(worker, message)
                if worker.pipe.ended:
                    self._bury(worker)
        if time.monotonic() - self._looked_at >= POLL_S:
            for worker in list(self._workers.values()):
                if worker.process.exitcode is not None:
                    self._bury(worker)
            self._looked_at = time.monotonic()

    def _take(self, worker: _Process, message: bytearray) -> None:
        """Handle a worker's message.

        The first message says whether the worker has started. After that, an empty one says that it
        begins a task, and the next one is the result.
        """
        if not message:
            worker.has_begun = worker.is_at_work = True
            self._start_deaths = 0
            return
        try:
            value = decode(message)
        except Exception as error:  # the result's own code
            value = Failure.of(error)
        if not worker.is_ready:
            if isinstance(value, EngineError):
                raise value
            worker.is_ready = True
            return
        assert worker.job is not None
        (batch, i), worker.job = worker.job, None
        if batch.is_open:
            batch.results.append((i, value))

    def _bury(self, worker: _Process) -> None:
        """Remove a worker that died or closed its pipe; its task is retried or set aside.

        A task that it had not begun is not blamed.
        """
        if not wait_for_exit([worker.process]):
            worker.process.kill()
            wait_for_exit([worker.process])
        exit_code = worker.process.exitcode
        for message in worker.pipe.receive_rest():
            self._take(worker, message)
        self._remove(worker)
        if not worker.has_begun:
            self._count_start_death(worker.slot, exit_code)
        if worker.job is not None:
            batch, i = worker.job
            batch.deaths[i] += worker.is_at_work
            if batch.deaths[i] <= self._options.retries:
                batch.todo.append(i)
            else:
                died = f"its worker died {batch.deaths[i]} times (exit code {exit_code})"
                batch.results.append((i, Failure(died)))

    def _count_start_death(self, slot: int, exit_code: int | None) -> None:
        self._start_deaths += 1
        if self._start_deaths <= self._options.retries:
            return
        died = (
            f"workers died {self._start_deaths} times before they could begin "
            f"(exit code {exit_code}: killed, out of memory, or see above)"
        )
        if not any(worker.is_ready for worker in self._workers.values()):
            raise EngineError(f"{died}: give fewer with engine.num_workers=N")
        from tqdm import tqdm

        self._unusable.add(slot)
        num_left = self._num_workers - len(self._unusable)
        tqdm.write(f"{died}: continuing with {num_left} workers")

    def _remove(self, worker: _Process) -> None:
        del self._workers[worker.slot]
        if worker.pipe.fileno() >= 0:  # not closed
            self._selector.unregister(worker.pipe)
            worker.pipe.close()
        self._selector.unregister(worker.process.sentinel)
        if worker.process.exitcode is not None:
            worker.process.close()
