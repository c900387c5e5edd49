"""Engines: results of all tasks, whatever some of them do."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine import Engine, EngineError, Failure, Pool
from qsdm.engine.local import Local, visible_gpus
from qsdm.engine.ray import Ray
from qsdm.engine.serial import Serial
from qsdm.engine.slurm import Slurm
from qsdm.measure import measure
from qsdm.outcome import Outcome
from qsdm.qconfig import SpaceSpec
from qsdm.store import Store
from qsdm.trace import trace

TESTS = Path(__file__).parent
SMALL = {"num_cpus": 2, "object_store_memory": 80_000_000}
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
needs_submitit = pytest.mark.skipif(
    not importlib.util.find_spec("submitit"), reason="submitit is not installed"
)


@pytest.fixture
def path_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are not spawned by Python itself shall find this file, and qsdm beside it."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")


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


def check_that_all_others_are_done(engine: Engine, deadly: str) -> None:
    """One task kills its worker each time, one raises."""
    tasks = [("square", i) for i in range(8)]
    tasks[2], tasks[5] = ("die", 2), ("raise", 5)
    with engine.open(start) as pool:
        found = list(pool.map(tasks))
        again = dict(pool.map([("square", 9)]))
        assert list(pool.map([])) == []
    results = dict(found)
    assert len(found) == len(results) == 8
    assert {i: results[i] for i in (0, 1, 3, 4, 6, 7)} == {i: i * i for i in (0, 1, 3, 4, 6, 7)}
    assert isinstance(results[2], Failure)
    assert f"{deadly} died 2 times" in results[2].reason
    assert results[5] == Failure("ValueError: cannot do 5")
    assert again == {0: 81}


def check_that_no_worker_starts(engine: Engine) -> None:
    with (
        pytest.raises(EngineError, match=r"a worker could not start: no weights$"),
        engine.open(start_never) as pool,
    ):
        dict(pool.map([1, 2]))


@pytest.mark.slow
def test_local_survives_tasks_that_kill_their_worker() -> None:
    check_that_all_others_are_done(Local(num_workers=2), "its worker")


@pytest.mark.slow
def test_local_says_why_no_worker_can_start() -> None:
    check_that_no_worker_starts(Local(num_workers=1))


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_killed_before_it_began(retries: int) -> None:
    with Local(num_workers=1, retries=retries).open(start) as pool:
        threading.Thread(target=kill_first, args=("spawn_main",)).start()
        if retries:
            assert dict(pool.map([("square", 2), ("square", 3)])) == {0: 4, 1: 9}
        else:
            with pytest.raises(
                EngineError, match=r"workers died 1 times before they could begin .*num_workers"
            ):
                dict(pool.map([("square", 2)]))


def kill_first(of: str) -> None:
    while not (found := children(of)):
        time.sleep(0.01)
    found[0][1].kill()


def interrupt_after_first(pool: Pool, look: Callable[[], None] = lambda: None) -> None:
    for _, result in pool.map([0] * 1_000):
        assert result == 1  # thread
        look()
        raise KeyboardInterrupt


def children(of: str) -> list[tuple[str, psutil.Process]]:
    """Processes below this one whose command names ``of``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found.append((" ".join(process.cmdline()), process))
    return [(command, process) for command, process in found if of in command]


@pytest.mark.slow
def test_leaving_early_ends_the_workers() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Local(num_workers=1).open(threads) as pool:
        interrupt_after_first(pool)
    assert time.monotonic() - began < 60


def gpu_and_pid() -> Callable[[str], tuple[str, int]]:
    def work(task: str) -> tuple[str, int]:
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)  # that the others get theirs
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()

    return work


@pytest.mark.slow
def test_each_local_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what is tested is the variable, also of the worker that takes a dead one's place."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-1")
    with Local(gpus=2, retries=0).open(gpu_and_pid) as pool:
        for tasks in (["see"] * 8, ["die"], ["see"] * 8):
            seen = dict(pool.map(tasks))
    found = set(seen.values())
    assert len(found) == 2
    assert {gpu for gpu, _ in found} == {"5", "7"}


def test_gpus_are_counted_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible_gpus(1) == ["4"]
    with pytest.raises(
        EngineError, match=r"wanted 3 GPUs \(CUDA_VISIBLE_DEVICES names 2\): give engine.gpus=2"
    ):
        visible_gpus(3)


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_ray_survives_ends_and_says_why() -> None:
    """On one cluster, which takes seconds to start."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, **SMALL)
    try:
        check_that_all_others_are_done(Ray(), "its worker")
        check_that_no_worker_starts(Ray(num_workers=1))
        with pytest.raises(
            EngineError, match="no node of the cluster has 1 CPUs and 1 GPUs for a worker"
        ):
            Ray(num_gpus=1).open(start).__enter__()
        assert ray.is_initialized()  # whoever started it ends it
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_leaving_early_ends_the_cluster_that_ray_started() -> None:
    import ray

    started = []
    with pytest.raises(KeyboardInterrupt), Ray(num_workers=1, init=SMALL).open(threads) as pool:
        interrupt_after_first(pool, lambda: started.extend(children("ray")))
    assert any("raylet" in name for name, _ in started)
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs([process for _, process in started], timeout=30)
    assert not alive


@needs_ray
def test_ray_does_not_wait_for_a_cluster_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"no Ray cluster at {address} "):
            Ray(address=address).open(start).__enter__()


def local_jobs(folder: Path, **options: Any) -> Slurm:
    return Slurm(cluster="local", folder=str(folder), poll_s=0.1, **options)


@needs_submitit
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_slurm_survives_jobs_that_die(tmp_path: Path) -> None:
    check_that_all_others_are_done(local_jobs(tmp_path, tasks_per_job=3, max_jobs=2), "its job")
    assert not list(tmp_path.rglob("*.pkl"))  # what is read is removed
    check_that_no_worker_starts(local_jobs(tmp_path))


def stopped() -> Callable[[str], int]:
    def work(task: str) -> int:
        if task == "stop":
            os.kill(os.getpid(), signal.SIGUSR2)  # as Slurm does some time before a job's end
        return os.getpid()

    return work


@needs_submitit
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_a_job_that_is_told_to_stop_keeps_what_it_has_done(tmp_path: Path) -> None:
    with local_jobs(tmp_path, retries=0).open(stopped) as pool:
        results = dict(pool.map(["first", "stop", "not begun"]))
    assert results[1] == Failure("its job died 1 times (it was told to stop)")
    assert isinstance(results[0], int)
    assert isinstance(results[2], int)
    assert results[0] != results[2]


@needs_submitit
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_leaving_early_ends_the_jobs(tmp_path: Path) -> None:
    jobs = []
    with (
        pytest.raises(KeyboardInterrupt),
        local_jobs(tmp_path, tasks_per_job=1, max_jobs=2).open(threads) as pool,
    ):
        interrupt_after_first(pool, lambda: jobs.extend(children("submitit")))
    _, alive = psutil.wait_procs([process for _, process in jobs], timeout=30)
    assert not alive


@needs_submitit
@pytest.mark.usefixtures("path_of_workers")
def test_slurm_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="there is no Slurm here"):
        Slurm(folder=str(tmp_path)).open(start).__enter__()
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    with (
        local_jobs(tmp_path).open(start) as pool,
        pytest.raises(EngineError, match=r"a job cannot run: Module\w+: .*; see"),
    ):
        list(pool.map([("square", 2)]))


@pytest.mark.parametrize(("engine", "package"), [(Ray(), "ray"), (Slurm(), "submitit")])
def test_a_missing_package_is_named(
    engine: Engine, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=r"needs \w+: pip install 'qsdm\[(ray|slurm)\]'"):
        engine.open(start).__enter__()


@needs_ray
@needs_submitit
@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen processes start, each importing all
@pytest.mark.usefixtures("path_of_workers")
def test_every_engine_measures_the_same(tiny_model: Model, tmp_path: Path) -> None:
    """To rounding, each configuration once."""
    space = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))
    engines = {
        "serial": Serial(),
        "local 2": Local(2),
        "local 4": Local(4),
        "ray": Ray(num_workers=1, init=SMALL),
        "slurm": local_jobs(tmp_path / "jobs"),
    }
    trace(tiny_model, tmp_path / "serial")
    calibrate(tiny_model, space, tmp_path / "serial")
    found: dict[str, list[Outcome]] = {}
    for name, engine in engines.items():
        store = tmp_path / name
        for part in ("graph.json", "calibration"):
            if not (target := store / "tiny" / part).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(tmp_path / "serial" / "tiny" / part)
        measured = measure(
            tiny_model, space, store, num_configs=3, num_images=4, batch_size=3, engine=engine
        )
        kept = Store(store, "tiny").outcomes()
        assert (
            len(kept) == len({outcome.key for outcome in kept}) == 4
        )  # full precision is one of them
        assert {outcome.key for outcome in measured} < {outcome.key for outcome in kept}
        found[name] = measured
    for name, outcomes in found.items():
        for outcome, wanted in zip(outcomes, found["serial"], strict=True):
            assert outcome.key == wanted.key, name
            assert outcome.metrics == pytest.approx(wanted.metrics, rel=1e-3), name


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers and num_threads must be positive"):
        Local(num_workers=0)
    with pytest.raises(ValueError, match=r"retries and gpus must not be negative \(got 1, -1\)"):
        Local(gpus=-1)
    with pytest.raises(ValueError, match="num_workers, num_threads and num_cpus must be positive"):
        Ray(num_cpus=0)
    with pytest.raises(ValueError, match=r"tasks_per_job must be positive \(got 0\)"):
        Slurm(tasks_per_job=0)
    with pytest.raises(
        ValueError, match=r"cluster must be one of slurm, local, debug \(got 'pbs'\)"
    ):
        Slurm(cluster="pbs")
