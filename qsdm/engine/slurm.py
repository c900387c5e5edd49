"""Jobs of a Slurm cluster (submitit), of several tasks each: a job loads once what `start` loads.

A job that is told to stop, for its time is up or it is preempted, returns what it has done. What is
left of a job, and all of one that died, is done again by jobs of one task, so a task that kills its
job is set aside alone. Submissions, results and logs lie in a folder of the run's own, which the
nodes must see too, as they must see qsdm, the store and the model under the same paths; what is
read is removed, logs stay. If the driver is killed, the jobs it has submitted run to their end, and
nobody reads their results.

Slurm tells late of a job that died (submitit asks sacct every ten minutes at most), and without
accounting, or of a job that was preempted for good, not at all: submitit takes UNKNOWN and
PREEMPTED for states that pass. So squeue is asked as well, and a job that it does not list for
``lost_s`` is taken for dead. A job that it lists may wait in the queue as long as the cluster
likes.

Not tried: Slurm itself. What is tested is ``cluster=local``, which runs the same jobs as processes
on this machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsdm.bounds import require
from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.pipe import decode, encode
from qsdm.engine.worker import Worker

CLUSTERS = ("slurm", "local", "debug")
GRACE_S = {"slurm": 15.0}
"""How long after a job's end its result may still be on its way, as a shared file system has it."""
END_S = 10.0
"""How long to wait for processes on this machine that are told to end."""


@dataclass(frozen=True, slots=True)
class Slurm:
    """Options of the jobs.

    Attributes:
        cluster: slurm, local (processes on this machine) or debug (in this process).
        folder: of submissions, results and logs.
        tasks_per_job: tasks that share one loading.
        max_jobs: at a time.
        partition: of the cluster.
        timeout_min: of a job, its loading included.
        gpus_per_node: for a job, which has one node.
        cpus_per_task: for a job, and threads that it computes with.
        mem_gb: for a job.
        retries: how often a task is done again, in a job of its own, after its job died.
        setup: lines of shell before the job.
        additional: further options of sbatch by their long names, as {account: NAME}.
        poll_s: between two looks for results.
        lost_s: how long Slurm may not list a job that has no result, or not answer at all.
    """

    cluster: str = "slurm"
    folder: str = "submitit"
    tasks_per_job: int = 8
    max_jobs: int = 16
    partition: str | None = None
    timeout_min: int = 240
    gpus_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    retries: int = 1
    setup: Sequence[str] = ()
    additional: Mapping[str, Any] = field(default_factory=dict)
    poll_s: float = 1.0
    lost_s: float = 900.0

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise ValueError(f"cluster must be one of {', '.join(CLUSTERS)} (got {self.cluster!r})")
        for name in (
            "tasks_per_job",
            "max_jobs",
            "timeout_min",
            "cpus_per_task",
            "poll_s",
            "lost_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive (got {getattr(self, name)})")
        require(1, gpus_per_node=self.gpus_per_node)
        require(0.001, mem_gb=self.mem_gb)
        if self.retries < 0:
            raise ValueError(f"retries must not be negative (got {self.retries})")

    @property
    def num_workers(self) -> int | None:
        """How many jobs run at a time is up to the cluster."""
        return 1 if self.cluster == "debug" else None

    @contextmanager
    def open(self, start: Start) -> Iterator[_SlurmPool]:
        pool = _SlurmPool(self, self._executor(), start)
        try:
            yield pool
        finally:
            pool.end()

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise EngineError(
                "the engine slurm needs submitit: pip install 'qsdm[slurm]'"
            ) from error

        # Of this run alone: local jobs are named by their process, whose number comes again.
        folder = Path(self.folder).expanduser() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            executor = submitit.AutoExecutor(folder, self.cluster)
        except RuntimeError as error:
            raise EngineError(
                "there is no Slurm here (no srun): run this where sbatch works, "
                "or give engine.cluster=local"
            ) from error
        setup = list(self.setup) or None
        executor.update_parameters(
            name="qsdm",
            timeout_min=self.timeout_min,
            gpus_per_node=self.gpus_per_node,
            cpus_per_task=self.cpus_per_task,
            mem_gb=self.mem_gb,
            slurm_partition=self.partition,
            slurm_array_parallelism=self.max_jobs,
            slurm_additional_parameters=dict(self.additional) or None,
            slurm_setup=setup,
            local_setup=setup,
        )
        return executor


class _SlurmPool:
    def __init__(self, options: Slurm, executor: Any, start: Start) -> None:
        self._options, self._executor, self._start = options, executor, start
        self._jobs: list[Any] = []  # submitted and not read
        self._queue = Queue(options.lost_s) if options.cluster == "slurm" else None

    def end(self) -> None:
        for job in self._jobs:
            job.cancel(check=False)
        if self._options.cluster == "local":
            until = time.monotonic() + END_S
            while time.monotonic() < until and not all(job.done() for job in self._jobs):
                time.sleep(0.1)

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        encoded: dict[int, bytes] = {}
        for i, task in enumerate(tasks):
            try:
                encoded[i] = encode(task)
            except Exception as error:  # of the object's own code
                yield i, Failure.of(error)
        able, size = list(encoded), self._options.tasks_per_job
        todo = [able[i : i + size] for i in range(0, len(able), size)]
        deaths = [0] * len(tasks)
        doing: list[tuple[Any, list[int]]] = []
        while todo or doing:
            free = max(0, self._options.max_jobs - len(doing))
            now, todo = todo[:free], todo[free:]
            doing += zip(
                self._submit([[encoded[i] for i in group] for group in now]), now, strict=True
            )
            if self._queue is not None:
                self._queue.look([job.job_id for job, _ in doing])
            ended = [(job, group) for job, group in doing if self._ended(job)]
            for job, group in ended:
                doing.remove((job, group))
                results, why = self._read(job)
                for i, result in zip(group, results, strict=False):
                    if isinstance(result, EngineError):
                        raise result
                    yield i, result
                left = group[len(results) :]
                for i in (
                    left if why else left[:1]
                ):  # of a job that was stopped, the later ones had not begun
                    deaths[i] += 1
                for i in left:
                    if deaths[i] <= self._options.retries:
                        todo.append([i])
                    else:
                        yield (
                            i,
                            Failure(
                                f"its job died {deaths[i]} times ({why or 'it was told to stop'})"
                            ),
                        )
            if doing and not ended:
                time.sleep(self._options.poll_s)

    def _submit(self, groups: Sequence[Sequence[bytes]]) -> list[Any]:
        """Jobs, as one array if there are several."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not groups:
            return []
        works = [Job(self._start, group, self._options.cpus_per_task) for group in groups]
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(work) for work in works]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise EngineError(f"a job cannot be submitted: {str(error).strip()}") from error
        self._jobs += jobs
        return jobs

    def _ended(self, job: Any) -> bool:
        """Whether a job is over, with its result in the file or past hope."""
        if not job.done():
            return self._queue is not None and self._queue.has_lost(job.job_id)
        if self._options.cluster == "debug" or job.paths.result_pickle.exists():
            return True
        seen = job.__dict__.setdefault("seen_ended", time.monotonic())
        return time.monotonic() - seen >= GRACE_S.get(self._options.cluster, 0)

    def _read(self, job: Any) -> tuple[list[Any], str | None]:
        """Results of the tasks that a job has done, and why there are no more, if it died."""
        from submitit.core.utils import FailedJobError

        self._jobs.remove(job)
        paths = job.paths
        try:
            if self._options.cluster != "debug" and not paths.result_pickle.exists():
                state = f"{job.state}, " if self._options.cluster == "slurm" else ""
                if self._queue is not None and self._queue.has_lost(job.job_id):
                    state += f"not in squeue for {self._options.lost_s:g} s, "
                return [], f"{state}see {paths.stderr}"
            return [_decoded(result) for result in job.result()], None
        except FailedJobError as error:
            trace = str(error).partition("\n---")[2].partition("\n---")[0].strip()
            raise EngineError(
                f"a job cannot run: {(trace or str(error)).splitlines()[-1]}; see {paths.stderr}"
            ) from error
        finally:
            paths.submitted_pickle.unlink(missing_ok=True)
            paths.result_pickle.unlink(missing_ok=True)


class Queue:
    """Which jobs Slurm lists.

    Args:
        lost_s: see `Slurm`.
    """

    def __init__(self, lost_s: float) -> None:
        self._lost_s = lost_s
        self._listed_at: dict[str, float] = {}  # last, or when it was submitted, by the job's id
        self._asked_at = float("-inf")
        self._answered_at: float | None = None

    def look(self, job_ids: Sequence[str]) -> None:
        """Ask for jobs without a result, four times within ``lost_s``, or once a minute.

        Raises:
            EngineError: Slurm has not answered for ``lost_s``.
        """
        now = time.monotonic()
        for job_id in job_ids:
            self._listed_at.setdefault(job_id, now)
        if not job_ids or now - self._asked_at < min(60, self._lost_s / 4):
            return
        self._asked_at = now
        if self._answered_at is None:
            self._answered_at = now
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            if now - self._answered_at >= self._lost_s:
                stderr = (getattr(error, "stderr", None) or "").strip()
                raise EngineError(
                    f"Slurm has not answered for {self._lost_s:g} s ({stderr or error}): "
                    "run the same command again when squeue works, or give a longer engine.lost_s"
                ) from error
            return
        self._answered_at = now
        self._listed_at.update(dict.fromkeys(answer.split(), now))

    def has_lost(self, job_id: str) -> bool:
        """Whether Slurm answers, but has not listed the job for ``lost_s``."""
        assert self._answered_at is not None
        return self._answered_at - self._listed_at[job_id] >= self._lost_s


def _decoded(result: bytes) -> Any:
    try:
        return decode(result)
    except Exception as error:  # the result's own code
        return Failure.of(error)


def _encoded(result: Any) -> bytes:
    try:
        return encode(result)
    except Exception as error:  # the result's own code
        return encode(Failure.of(error))


class _Stopped(BaseException):
    """The job is told to stop. Not an `Exception`, or it would be taken for one of the task's."""


class Job:
    """What runs on a node: tasks => their results, fewer if the job is told to stop.

    Both are encoded one by one, so that one that cannot be read does not take the others with it.
    """

    def __init__(self, start: Start, tasks: Sequence[bytes], num_threads: int) -> None:
        self.start, self.tasks, self.num_threads = start, list(tasks), num_threads

    def __call__(self) -> list[bytes]:
        results: list[bytes] = []
        try:
            worker = Worker(self.start, self.num_threads)
            for encoded in self.tasks:
                task = _decoded(encoded)
                result = task if isinstance(task, Failure) else worker.do(task)
                results.append(_encoded(result))
                if isinstance(result, EngineError):
                    break
        except _Stopped:
            pass
        return results

    def checkpoint(self) -> None:
        """submitit calls it, in the midst of a task, when Slurm's signal says that the job will be
        ended."""
        raise _Stopped
