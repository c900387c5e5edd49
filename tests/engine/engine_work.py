"""What workers of the engines' tests do, and what every engine must do with them."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable

import pytest

from qsdm.engine import Engine, EngineError, Failure, Pool

SMALL = {"num_cpus": 2, "object_store_memory": 80_000_000}  # of a Ray cluster
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
needs_submitit = pytest.mark.skipif(
    not importlib.util.find_spec("submitit"), reason="submitit is not installed"
)


class Unreadable:
    """Can be pickled, but not read."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return unreadable, ()


def unreadable() -> None:
    raise ValueError("cannot be read")


def start() -> Callable[[tuple], object]:
    """Work on (what to do, a value)."""
    started = os.getpid()

    def work(task: tuple) -> object:
        kind, value = task
        assert os.getpid() == started
        if kind == "raise":
            raise ValueError(f"cannot do {value}")
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "lambda":
            return lambda: value
        if kind == "unreadable":
            return Unreadable()
        if kind == "exit":
            raise SystemExit(value)
        return value * value

    return work


def start_never() -> Callable[[int], int]:
    raise FileNotFoundError("no weights")


def threads() -> Callable[[int], int]:
    import torch

    return lambda _: torch.get_num_threads()


def check_that_all_others_are_done(engine: Engine, deadly: str) -> None:
    """One task kills its worker each time, one raises, others cannot be sent there or back."""
    tasks: list[tuple] = [("square", i) for i in range(12)]
    tasks[2], tasks[5] = ("die", 2), ("raise", 5)
    tasks[7], tasks[8] = ("lambda", 7), ("unreadable", 8)
    tasks[9], tasks[10] = ("square", lambda: 9), ("square", Unreadable())
    with engine.open(start) as pool:
        pairs = list(pool.map(tasks))
        again = dict(pool.map([("square", 9)]))
        assert list(pool.map([])) == []
    results = dict(pairs)
    assert sorted(i for i, _ in pairs) == list(range(12))
    able = [0, 1, 3, 4, 6, 11]
    assert [results[i] for i in able] == [i * i for i in able]
    assert isinstance(results[2], Failure)
    assert f"{deadly} died 2 times" in results[2].reason
    assert results[5] == Failure("ValueError: cannot do 5")
    assert again == {0: 81}
    assert isinstance(results[7], Failure) or results[7]() == 7  # some engines pickle functions
    for i in (8, 9, 10):
        assert isinstance(results[i], Failure), (i, results[i])


def check_that_no_worker_starts(engine: Engine) -> None:
    with (
        pytest.raises(EngineError, match=r"a worker could not start: no weights$"),
        engine.open(start_never) as pool,
    ):
        dict(pool.map([1, 2]))


def interrupt_after_first(pool: Pool, look: Callable[[], None] = lambda: None) -> None:
    for _, result in pool.map([0] * 1_000):
        assert result == 1  # thread
        look()
        raise KeyboardInterrupt
