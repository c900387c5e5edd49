"""The processes of the local pool's workers: how they start, work and end.

They are spawned, because a fork hangs once OpenMP has started threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from qsdm.engine import EngineError, Failure
from qsdm.engine.pipe import DriverEnd, WorkerEnd, decode, encode
from qsdm.engine.worker import Worker

EXIT_S = 5.0
"""How long a worker may take to end by itself before it is killed, in seconds; and, after that, how
long the system may take to remove it."""


def spawn(gpu: str | None, num_threads: int) -> tuple[BaseProcess, DriverEnd]:
    """Start a worker's process.

    Args:
        gpu: the only one that it sees, as in CUDA_VISIBLE_DEVICES; None for all that this process
            sees.
        num_threads: number of its threads.

    Returns:
        The process, and the driver's end of its pipe.

    Raises:
        OSError: the system does not allow another process.
    """
    ours, its = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(its, gpu, num_threads), daemon=True
    )
    try:
        with its, _interrupts_deferred():
            process.start()
    except BaseException:
        ours.close()
        raise
    return process, DriverEnd(ours)


def wait_for_exit(processes: Sequence[BaseProcess]) -> bool:
    """Wait until processes have ended, but no longer than `EXIT_S`.

    ``join`` would wait for the sentinel, which a process that the worker forked may hold open.

    Args:
        processes: that should end.

    Returns:
        Whether all have.
    """
    until = time.monotonic() + EXIT_S
    while any(process.exitcode is None for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Delay Ctrl-C until the block ends; a process that starts within begins with it blocked."""
    resource_tracker.ensure_running()  # starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(sock: socket.socket, gpu: str | None, num_threads: int) -> None:
    """Run a worker's process: start, then run task after task until the driver closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # torch asks for it when it first uses a GPU
    threading.Thread(target=_end_with_driver, daemon=True).start()
    from tqdm import tqdm

    # The default lock is a system semaphore, which a killed worker would leak.
    tqdm.set_lock(threading.RLock())
    pipe = WorkerEnd(sock)
    try:
        start = pipe.receive()
        if start is None:
            return
        worker = _start_worker(start, num_threads)
        if isinstance(worker, EngineError):
            pipe.send(encode(worker))
            return
        pipe.send(encode(None))
        while (task := pipe.receive()) is not None:
            pipe.send(b"")
            pipe.send(_do(worker, task))
    except OSError:  # the driver has closed the pipe
        return


def _start_worker(start: bytes, num_threads: int) -> Worker | EngineError:
    try:
        worker = Worker(decode(start), num_threads)
    except Exception as error:  # an import that fails
        return EngineError(f"a worker could not start: {str(error) or type(error).__name__}")
    return worker.begin() or worker


def _do(worker: Worker, task: bytes) -> bytes:
    try:
        return encode(worker.do(decode(task)))
    except Exception as error:  # of the task's or the result's own code, while it is pickled
        return encode(Failure.of(error))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
