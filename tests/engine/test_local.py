"""The local pool: whatever dies whenever, every task ends in its result or a sentence."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import threadpoolctl
from engine_work import (
    check_that_all_others_are_done,
    check_that_no_worker_starts,
    interrupt_after_first,
    start,
    start_never,
    threads,
)
from processes import kill_first, workers

from experiments.bench.pool import Run, kill_workers
from qsdm.engine import EngineError, Failure
from qsdm.engine.local import Local, num_cores, visible_gpus

MEGABYTE = 1_000_000


def test_tasks_that_kill_their_worker_or_cannot_be_sent() -> None:
    check_that_all_others_are_done(Local(num_workers=2), "its worker")


def test_a_worker_that_cannot_start_says_why() -> None:
    check_that_no_worker_starts(Local(num_workers=2))


def start_exits() -> Callable[[object], object]:
    raise SystemExit(7)


def start_without_memory() -> Callable[[object], object]:
    raise MemoryError


class StartUnreadable:
    def __call__(self) -> Callable[[object], object]:
        raise AssertionError("it cannot be read")

    def __reduce__(self) -> tuple[Callable, tuple]:
        return start_never, ()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (start_exits, r"workers died 2 times before they could begin \(exit code 7.*num_workers=N"),
        (start_without_memory, "a worker could not start: MemoryError$"),
        (StartUnreadable(), "a worker could not start: no weights$"),
        (lambda: None, "workers cannot be told how to start: .*lambda"),
    ],
)
def test_no_worker_can_start(start: Callable, message: str) -> None:
    with (
        pytest.raises(EngineError, match=message),
        Local(num_workers=2).open(start) as pool,
    ):
        list(pool.map([1, 2, 3]))
    assert not workers()


def test_the_system_allows_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("qsdm.engine.local.spawn", refuse)
    with (
        pytest.raises(EngineError, match="a worker could not start: Resource temporarily"),
        Local(num_workers=2).open(start) as pool,
    ):
        list(pool.map([("square", 2)]))


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_killed_before_it_began(retries: int) -> None:
    with Local(num_workers=1, retries=retries).open(start) as pool:
        killer = threading.Thread(target=kill_first, args=("spawn_main",))
        killer.start()
        if retries:
            assert dict(pool.map([("square", 2), ("square", 3)])) == {0: 4, 1: 9}
        else:
            with pytest.raises(
                EngineError, match=r"workers died 1 times before they could begin .*num_workers"
            ):
                dict(pool.map([("square", 2)]))
        killer.join()


class StartOnce:
    """One worker starts, all others die."""

    def __init__(self, folder: Path) -> None:
        self.started = folder / "started"

    def __call__(self) -> Callable[[Path], int]:
        try:
            self.started.touch(exist_ok=False)
        except FileExistsError:
            os._exit(9)

        def work(task: Path) -> int:
            while not task.exists():
                time.sleep(0.01)
            return os.getpid()

        return work


@pytest.mark.slow
def test_a_pool_goes_on_with_the_workers_that_could_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = tmp_path / "warning"
    monkeypatch.setattr("tqdm.tqdm.write", warning.write_text)
    with Local(num_workers=2).open(StartOnce(tmp_path)) as pool:
        first = dict(pool.map([tmp_path]))  # the only worker that it needs is up
        results = dict(pool.map([warning] * 4))  # they end when the driver has given up
    assert results == dict.fromkeys(range(4), first[0])
    assert warning.read_text() == (
        "workers died 2 times before they could begin (exit code 9: killed, out of memory, or see "
        "above): continuing with 1 workers"
    )


def sizes_and_pids() -> Callable[[bytes | int], tuple[int, bytes]]:
    def work(task: bytes | int) -> tuple[int, bytes]:
        return os.getpid(), bytes(task) if isinstance(task, int) else bytes(len(task) // MEGABYTE)

    return work


def test_a_task_is_sent_to_a_worker_that_does_not_read_and_then_dies() -> None:
    """The pipe takes a small part of the task."""
    with Local(num_workers=1).open(sizes_and_pids) as pool:
        (_, (first, _)) = next(iter(pool.map([0])))
        os.kill(first, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (first, signal.SIGKILL)).start()
        results = dict(pool.map([bytes(8 * MEGABYTE), bytes(MEGABYTE)]))
    assert [len(result) for _, result in (results[0], results[1])] == [8, 1]
    assert first not in {pid for pid, _ in results.values()}


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.2])
def test_a_worker_dies_while_it_sends_a_result_that_nobody_reads(wait_s: float) -> None:
    with Local(num_workers=1).open(sizes_and_pids) as pool:
        results = pool.map([0, 60 * MEGABYTE, 1])
        _, (first, _) = next(results)  # the worker has the next task by now
        time.sleep(wait_s)
        os.kill(first, signal.SIGKILL)
        sizes = {i: len(result) for i, (_, result) in results}
    assert sizes == {1: 60 * MEGABYTE, 2: 1}


def forks() -> Callable[[str], str]:
    def work(task: str) -> str:
        if task:
            if not (child := os.fork()):
                time.sleep(60)
                os._exit(0)
            with Path(task).open("a") as file:
                file.write(f"{child} ")
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def test_a_worker_dies_whose_pipe_another_process_holds_open(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with Local(num_workers=1).open(forks) as pool:
        results = dict(pool.map([str(path), ""]))
        holders = [psutil.Process(int(pid)) for pid in path.read_text().split()]
        assert all(holder.is_running() for holder in holders)
        for holder in holders:
            holder.kill()
    assert results == {0: Failure("its worker died 2 times (exit code -9)"), 1: ""}
    assert len(holders) == 2


def test_a_task_ends_its_process() -> None:
    with Local(num_workers=1, retries=0).open(start) as pool:
        results = dict(pool.map([("exit", 3), ("square", 3)]))
    assert results == {0: Failure("its worker died 1 times (exit code 3)"), 1: 9}


def test_a_worker_that_dies_between_two_maps_is_replaced_and_no_task_pays() -> None:
    with Local(num_workers=1, retries=0).open(sizes_and_pids) as pool:
        pids = []
        for _ in range(3):
            _, (pid, _) = next(iter(pool.map([0])))
            os.kill(pid, signal.SIGKILL)
            pids.append(pid)
        assert len(set(pids)) == 3


def test_a_map_that_is_left_early_leaves_nothing_to_the_next() -> None:
    with Local(num_workers=2).open(start) as pool:
        for round_ in range(5):
            first = pool.map([("square", 1_000 * round_ + i) for i in range(100)])
            i, result = next(first)
            assert result == (1_000 * round_ + i) ** 2
            first.close()  # type: ignore[attr-defined]
            assert dict(pool.map([("square", i) for i in range(5)])) == {i: i * i for i in range(5)}


def test_two_maps_at_a_time_get_their_own_results() -> None:
    with Local(num_workers=2).open(start) as pool:
        first, second = (pool.map([("square", 10 * k + i) for i in range(9)]) for k in (0, 1))
        results: tuple[dict, dict] = ({}, {})
        for pair in zip(first, second, strict=True):
            for own, (i, result) in zip(results, pair, strict=True):
                own[i] = result
    assert results == ({i: i**2 for i in range(9)}, {i: (10 + i) ** 2 for i in range(9)})


def test_workers_start_when_there_are_tasks_for_them() -> None:
    with Local(num_workers=3).open(start) as pool:
        assert not workers()
        assert dict(pool.map([("square", 3)])) == {0: 9}
        assert len(workers()) == 1
    assert not workers()


def pools_of_threads() -> set[int]:
    """Numbers of threads that torch and the BLAS of numpy use for one operation."""
    import torch

    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} | {
        torch.get_num_threads()
    }


def start_counting() -> Callable[[int], set[int]]:
    return lambda _: pools_of_threads()


@pytest.mark.slow
def test_the_driver_and_busy_workers_use_as_many_threads_as_there_are_cores() -> None:
    """Otherwise an operation of the driver waits for a core for each of its threads."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with threadpoolctl.threadpool_limits(3):
            with Local().open(start_counting) as pool:
                assert pools_of_threads() == {1}
                assert dict(pool.map([0])) == {0: {1}}
            assert pools_of_threads() == {3}
            with Local(num_workers=1, num_threads=num_cores() + 1).open(start):
                assert pools_of_threads() == {1}
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_leaving_early_ends_the_workers() -> None:
    with pytest.raises(KeyboardInterrupt), Local(num_workers=1).open(threads) as pool:
        interrupt_after_first(pool)
    assert not workers()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C works, which a job in a shell's background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_while_the_driver_waits_ends_the_workers() -> None:
    """In a notebook the next cell may go on with the same pool."""
    with Local(num_workers=1).open(start) as pool:
        assert dict(pool.map([("square", 3)])) == {0: 9}
        before = workers()
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        os.kill(before[0].pid, signal.SIGSTOP)  # so that the driver waits
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            list(pool.map([("square", 4)]))
        assert not workers()
        assert dict(pool.map([("square", 5)])) == {0: 25}


DRIVER = """
import sys
from engine_work import start
from qsdm.engine.local import Local

if __name__ == "__main__":
    with Local(num_workers=2).open(start) as pool:
        for _ in pool.map([("square", i) for i in range(1_000_000)]):
            print("result", flush=True)
"""


@pytest.mark.slow
def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    here = Path(__file__).parent
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here)))},
        stdout=subprocess.PIPE,
        text=True,
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "result\n"
        own = workers(psutil.Process(driver.pid))
        driver.kill()
    assert own
    _, alive = psutil.wait_procs(own, timeout=30)
    assert not alive


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DRIVER.replace('if __name__ == "__main__":', "if True:"))
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "workers died 2 times before they could begin (exit code 1" in done.stderr


def gpu_and_pid() -> Callable[[str], tuple[str, int]]:
    def work(task: str) -> tuple[str, int]:
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)  # that the others get theirs
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()

    return work


def test_each_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what is tested is the variable, also of a dead worker's successor."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-1")
    with Local(gpus=2, retries=0).open(gpu_and_pid) as pool:
        for tasks in (["see"] * 8, ["die"], ["see"] * 8):
            seen = set()
            while len(seen) < 2:  # until both have started
                results = set(dict(pool.map(tasks)).values())
                if tasks == ["die"]:
                    assert results == {Failure("its worker died 1 times (exit code -9)")}
                    break
                seen |= results
    assert len(seen) == 2
    assert {gpu for gpu, _ in seen} == {"5", "7"}


def test_gpus_are_counted_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible_gpus(1) == ["4"]
    with pytest.raises(
        EngineError, match=r"wanted 3 GPUs \(CUDA_VISIBLE_DEVICES names 2\): give engine.gpus=2"
    ):
        visible_gpus(3)


SHORT = [("400 of 5 kB", 1), ("6,000 tiny", 2)]
LONG = [("6,000 tiny", 1), ("400 of 5 kB", 2), ("20 of 3 MB", 2), ("8 long", 2)]


@pytest.mark.parametrize(
    ("kind", "num_workers", "num_kills"),
    [(*case, 2) for case in SHORT]
    + [pytest.param(*case, 4, marks=pytest.mark.slow) for case in LONG],
)
def test_workers_killed_at_random_moments(kind: str, num_workers: int, num_kills: int) -> None:
    run = kill_workers(Run(kind, num_workers), num_kills, random.Random(num_kills))
    assert run.is_good, run
    assert run.kills == num_kills
    assert run.rounds
