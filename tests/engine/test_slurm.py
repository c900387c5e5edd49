"""The engine slurm: jobs that die or vanish, as processes of this machine and with a Slurm that is
made up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_work import (
    check_that_all_others_are_done,
    check_that_no_worker_starts,
    interrupt_after_first,
    needs_submitit,
    start,
    threads,
)
from processes import children

from qsdm.engine import EngineError, Failure
from qsdm.engine.slurm import Slurm


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
    jobs: list[psutil.Process] = []
    with (
        pytest.raises(KeyboardInterrupt),
        local_jobs(tmp_path, tasks_per_job=1, max_jobs=2).open(threads) as pool,
    ):
        interrupt_after_first(pool, lambda: jobs.extend(children("submitit")))
    _, alive = psutil.wait_procs(jobs, timeout=30)
    assert not alive


@needs_submitit
@pytest.mark.usefixtures("path_of_workers")
def test_slurm_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="there is no Slurm here"):
        Slurm(folder=str(tmp_path)).open(start).__enter__()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with (
        local_jobs(tmp_path).open(start) as pool,
        pytest.raises(EngineError, match=r"a job cannot run: Module\w+: .*; see"),
    ):
        list(pool.map([("square", 2)]))


def made_up_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, squeue: str) -> None:
    """Commands that take every job and run none."""
    commands = {
        "sbatch": "echo Submitted batch job $$",
        "sacct": "exit 1",  # a cluster without accounting
        "srun": "",
        "scancel": "",
        "squeue": squeue,
    }
    for name, script in commands.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


def slurm_jobs(folder: Path, **options: Any) -> Slurm:
    return Slurm(folder=str(folder / "jobs"), poll_s=0.05, lost_s=0.4, **options)


@needs_submitit
def test_jobs_that_slurm_forgets_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_slurm(tmp_path, monkeypatch, "exit 0")
    with slurm_jobs(tmp_path, tasks_per_job=1, retries=1).open(start) as pool:
        results = dict(pool.map([("square", 1), ("square", 2)]))
    for i in (0, 1):
        reason = results[i].reason
        assert reason.startswith("its job died 2 times (UNKNOWN, not in squeue for 0.4 s, see ")


@needs_submitit
def test_a_slurm_that_does_not_answer_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_slurm(tmp_path, monkeypatch, "echo Unable to contact slurm controller >&2; exit 1")
    with (
        slurm_jobs(tmp_path).open(start) as pool,
        pytest.raises(
            EngineError,
            match=r"Slurm has not answered for 0.4 s \(Unable to contact slurm controller\)",
        ),
    ):
        list(pool.map([("square", 1)]))


@needs_submitit
def test_a_job_that_slurm_lists_may_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for dead only once the queue has been without it for a while."""
    waiting = tmp_path / "waiting"
    waiting.touch()
    made_up_slurm(
        tmp_path,
        monkeypatch,
        f"echo x >> {tmp_path}/asked; test -e {waiting} && cat {tmp_path}/id; exit 0",
    )
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/sh\necho 17 > {tmp_path}/id; echo Submitted batch job 17\n")
    asked = tmp_path / "asked"
    sleeps = 0

    def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if asked.exists() and len(asked.read_text().split()) >= 8:  # twice as long as ``lost_s``
            waiting.unlink(missing_ok=True)
        time_sleep(seconds)

    time_sleep = time.sleep
    monkeypatch.setattr("qsdm.engine.slurm.time.sleep", sleep)
    with slurm_jobs(tmp_path, retries=0).open(start) as pool:
        results = dict(pool.map([("square", 1)]))
    assert not waiting.exists()
    assert results[0].reason.startswith("its job died 1 times")


@needs_submitit
def test_slurm_says_why_it_takes_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_slurm(tmp_path, monkeypatch, "")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho invalid partition specified: gpus >&2; exit 1\n")
    with (
        slurm_jobs(tmp_path).open(start) as pool,
        pytest.raises(EngineError, match=r"a job cannot be submitted: .*invalid partition"),
    ):
        list(pool.map([("square", 1)]))
