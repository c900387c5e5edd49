"""Engines: results of all tasks, whatever some of them do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from qsdm.engine import EngineError, Failure, Pool
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial


def start() -> Callable[[tuple[str, int]], int]:
    started = os.getpid()

    def work(task: tuple[str, int]) -> int:
        kind, value = task
        assert os.getpid() == started
        if kind == "raise":
            raise ValueError(f"cannot do {value}")
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return value * value

    return work


def start_never() -> Callable[[int], int]:
    raise FileNotFoundError("no weights")


def threads() -> Callable[[int], int]:
    import torch

    return lambda _: torch.get_num_threads()


def test_serial_sets_a_failing_task_aside() -> None:
    with Serial().open(start) as pool:
        results = dict(pool.map([("square", 2), ("raise", 3), ("square", 4)]))
    assert results == {0: 4, 1: Failure("ValueError: cannot do 3"), 2: 16}


@pytest.mark.slow
def test_local_survives_tasks_that_kill_their_worker() -> None:
    tasks = [("square", i) for i in range(8)]
    tasks[2], tasks[5] = ("die", 2), ("raise", 5)
    with Local(num_workers=2).open(start) as pool:
        results = dict(pool.map(tasks))
        again = dict(pool.map([("square", 9)]))
    assert {i: results[i] for i in (0, 1, 3, 4, 6, 7)} == {i: i * i for i in (0, 1, 3, 4, 6, 7)}
    assert isinstance(results[2], Failure)
    assert "died 2 times" in results[2].reason
    assert results[5] == Failure("ValueError: cannot do 5")
    assert again == {0: 81}


@pytest.mark.slow
def test_local_says_why_no_worker_can_start() -> None:
    with (
        pytest.raises(EngineError, match="a worker could not start: no weights"),
        Local(num_workers=1).open(start_never) as pool,
    ):
        dict(pool.map([1, 2]))


def interrupt_after_first(pool: Pool) -> None:
    for _, result in pool.map([0] * 10_000):
        assert result == 1  # thread
        raise KeyboardInterrupt


@pytest.mark.slow
def test_leaving_early_ends_the_workers() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Local(num_workers=1).open(threads) as pool:
        interrupt_after_first(pool)
    assert time.monotonic() - began < 60


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers and num_threads must be positive"):
        Local(num_workers=0)
