"""Jobs on a Slurm cluster, through submitit; each job calls `start` once and runs several tasks.

A job that is told to stop, because its time is up or it is preempted, returns its results so far.
The remaining tasks of such a job, and all tasks of a job that died, are retried in jobs of one
task, so that a task that kills its job is set aside alone. Each run has its own folder for
submissions, results and logs. The nodes must see this folder, qsdm, the store and the model under
the same paths. Results are removed once they are read; logs stay. If the driver is killed, the jobs
that it has submitted run to their end, and nobody reads their results.

Slurm reports a dead job late (submitit asks sacct at most every ten minutes) or, without accounting
or after a final preemption, not at all: submitit regards UNKNOWN and PREEMPTED as temporary states.
So squeue is asked too, and a job that it has not listed for ``lost_s`` counts as dead. A job that
it lists may wait in the queue for as long as necessary.

Slurm itself has not been tried. The tests use ``cluster=local``, which runs the same jobs as
processes on this machine.
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

from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.pipe import decode, encode
from qsdm.engine.worker import Worker
from qsdm.text import require

CLUSTERS = ("slurm", "local", "debug")
GRACE_S = {"slurm": 15.0}
"""How long a shared file system may take to show the result of a job that ended, in seconds."""
END_S = 10.0
"""How long to wait for processes on this machine that are told to end, in seconds."""


@dataclass(frozen=True, slots=True)
class Slurm:
    """Options of the jobs.

    Attributes:
        cluster: slurm, local (processes on this machine) or debug (in this process).
        folder: folder of submissions, results and logs.
        tasks_per_job: number of tasks of a job, which share what it loads.
        max_jobs: maximum number of jobs at a time.
        partition: of the cluster.
        timeout_min: time limit of a job in minutes, including loading.
        gpus_per_node: number of GPUs of a job, which has one node.
        cpus_per_task: number of CPUs and threads of a job.
        mem_gb: memory of a job in GB.
        retries: how often a task is retried, in a job of its own, after its job died.
        setup: shell commands to run before the job.
        additional: further options of sbatch by their long names, for example {account: NAME}.
        poll_s: time between two checks for results, in seconds.
        lost_s: how long Slurm may fail to list a job without a result, or to answer at all, in
            seconds.
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
        """Unknown (None), because the cluster decides how many jobs run; 1 for ``debug``."""
        return 1 if self.cluster == "debug" else None

    @contextmanager
    def open(self, start: Start) -> Iterator[_SlurmPool]:
        """Prepare to submit jobs (see `qsdm.engine.Engine.open`)."""
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

        # For this run alone: local jobs are named by their process id, which is reused.
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
                # In a job that was told to stop, only the first of them had begun.
                for i in left if why else left[:1]:
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
        """Submit jobs, as one array if there are several."""
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
        """Whether a job is over, and its result is in the file or will not arrive."""
        if not job.done():
            return self._queue is not None and self._queue.has_lost(job.job_id)
        if self._options.cluster == "debug" or job.paths.result_pickle.exists():
            return True
        seen = job.__dict__.setdefault("seen_ended", time.monotonic())
        return time.monotonic() - seen >= GRACE_S.get(self._options.cluster, 0)

    def _read(self, job: Any) -> tuple[list[Any], str | None]:
        """Results of a job's tasks and, if it died, the reason why there are no more."""
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
    """Keeps track of which jobs Slurm lists.

    Args:
        lost_s: see `Slurm`.
    """

    def __init__(self, lost_s: float) -> None:
        self._lost_s = lost_s
        self._listed_at: dict[str, float] = {}  # by job id; at first the time of submission
        self._asked_at = float("-inf")
        self._answered_at: float | None = None

    def look(self, job_ids: Sequence[str]) -> None:
        """Ask Slurm about jobs without a result, four times within ``lost_s`` or once a minute.

        Args:
            job_ids: of these jobs.

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
    """The job is told to stop; not an `Exception`, which would be blamed on the task."""


class Job:
    """What runs on a node: turns tasks into results, fewer if the job is told to stop.

    Tasks and results are encoded one by one, so that an unreadable one does not affect the others.

    Args:
        start: returns the function from a task to its result.
        tasks: encoded tasks.
        num_threads: number of threads of torch.
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
        """Stop; submitit calls this in the middle of a task when Slurm is about to end the job."""
        raise _Stopped
