"""Actors on a Ray cluster, or on one that is started on this machine until the block ends.

Each actor is a process with the CPUs and GPUs that Ray gave it; Ray lets it see only its own GPUs.
An actor gets tasks once it runs, so nodes that join later take part. One that dies before it is up
is replaced like one that dies at work, until as many as there are have failed in a row. The nodes
of a cluster need qsdm, and the store and the model under the same paths. Ray reports actors and
nodes that died, but not an actor that never starts because the cluster has no room for it: see
``start_s``. Several machines and GPUs have not been tried.

References:
    Ray: A Distributed Framework for Emerging AI Applications (Moritz et al., 2018).
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qsdm.engine import EngineError, Failure, Start
from qsdm.engine.worker import Worker

_MOST_FAILED_STARTS = 3  # in a row, of few workers; of many, one each


@dataclass(frozen=True, slots=True)
class Ray:
    """Options of the actors.

    Attributes:
        address: of a cluster, as ``ray start`` prints it, or auto for the one that this machine
            belongs to; None to start one on this machine.
        num_workers: number of actors; None for as many as the cluster has CPUs and GPUs for.
        num_cpus: number of CPUs of each actor.
        num_gpus: number of GPUs of each actor; with a fraction, several share one.
        num_threads: number of threads of each actor.
        retries: how often a task is retried after its actor died.
        start_s: how long to wait while no actor runs, in seconds; further actors may start later.
        init: further arguments of ``ray.init``, such as object_store_memory or runtime_env.
    """

    address: str | None = None
    num_workers: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    retries: int = 1
    start_s: float = 600.0
    init: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            (self.num_workers is not None and self.num_workers < 1)
            or self.num_threads < 1
            or self.num_cpus <= 0
        ):
            raise ValueError(
                f"num_workers, num_threads and num_cpus must be positive "
                f"(got {self.num_workers}, {self.num_threads}, {self.num_cpus})"
            )
        if self.retries < 0 or self.num_gpus < 0:
            raise ValueError(
                f"retries and num_gpus must not be negative (got {self.retries}, {self.num_gpus})"
            )
        if not self.start_s > 0:
            raise ValueError(f"start_s must be positive (got {self.start_s})")

    @contextmanager
    def open(self, start: Start) -> Iterator[_RayPool]:
        """Start actors (see `qsdm.engine.Engine.open`)."""
        try:
            import ray
        except ImportError as error:
            raise EngineError("the engine ray needs Ray: pip install 'qsdm[ray]'") from error

        ours = not ray.is_initialized()
        try:
            if ours:
                self._connect(ray)
            num_workers = self.num_workers or self._room(ray)
            pool = _RayPool(ray, self, start)
            try:
                for _ in range(num_workers):
                    pool.hire()
                yield pool
            finally:
                pool.end()
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        here = {"include_dashboard": False} if self.address is None else {}
        try:
            if at := re.fullmatch(r"(?:ray://)?(.+):(\d+)", self.address or ""):
                # Ray itself would try for a quarter of an hour.
                socket.create_connection((at[1], int(at[2])), 10).close()
            ray.init(address=self.address or "local", **(quiet | here | dict(self.init)))
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(
                f"no Ray cluster at {self.address or 'this machine'} ({_first_line(error)})"
            ) from error

    def _room(self, ray: Any) -> int:
        """How many actors the nodes have CPUs and GPUs for."""
        per_actor = {
            name: num for name, num in (("CPU", self.num_cpus), ("GPU", self.num_gpus)) if num
        }
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # Plus a thousandth, because Ray counts in ten-thousandths: 1 / 0.1 must be 10.
        room = sum(
            min(int(node.get(name, 0) / num + 1e-3) for name, num in per_actor.items())
            for node in nodes
        )
        if room < 1:
            raise EngineError(
                f"no node of the cluster has {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs "
                "for a worker: give smaller engine.num_cpus and engine.num_gpus"
            )
        return room


class _RayPool:
    def __init__(self, ray: Any, options: Ray, start: Start) -> None:
        self._ray, self._options = ray, options
        actor = ray.remote(num_cpus=options.num_cpus, num_gpus=options.num_gpus)(Worker)
        self._new = lambda: actor.remote(start, options.num_threads)
        self._idle: list[Any] = []
        self._coming: dict[Any, Any] = {}  # actors by the reference that is ready once they run
        self._num_hired = 0
        self._failed_starts = 0  # since one has succeeded

    def hire(self) -> None:
        self._num_hired += 1
        self._start()

    def _start(self) -> None:
        actor = self._new()
        self._coming[actor.__ray_ready__.remote()] = actor

    def end(self) -> None:
        for actor in (*self._idle, *self._coming.values()):
            self._ray.kill(actor)

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        from ray.exceptions import RayError, RayTaskError

        todo = deque(range(len(tasks)))
        deaths = [0] * len(tasks)
        doing: dict[Any, tuple[Any, int]] = {}
        running_at = time.monotonic()  # when an actor last ran
        try:
            while todo or doing:
                while todo and self._idle:
                    i = todo.popleft()
                    try:
                        result = self._idle[-1].do.remote(tasks[i])
                    except Exception as error:  # a task that cannot be pickled
                        yield i, Failure.of(error)
                    else:
                        doing[result] = self._idle.pop(), i
                if not todo and not doing:
                    break
                if doing:
                    running_at = time.monotonic()
                references, _ = self._ray.wait([*doing, *self._coming], num_returns=1, timeout=1)
                if not references:
                    if time.monotonic() - running_at > self._options.start_s:
                        raise EngineError(self._none_started())
                    continue
                (ready,) = references
                if ready in self._coming:
                    actor = self._coming.pop(ready)
                    try:
                        self._ray.get(ready)
                    except RayError as error:  # for example, its node was lost
                        self._failed_starts += 1
                        if self._failed_starts > max(_MOST_FAILED_STARTS, self._num_hired):
                            raise EngineError(
                                f"a worker could not start: {_last_line(error)}"
                            ) from error
                        self._ray.kill(actor)
                        self._start()
                        continue
                    self._failed_starts = 0
                    self._idle.append(actor)
                    continue
                actor, i = doing.pop(ready)
                try:
                    result = self._ray.get(ready)
                except RayTaskError as error:  # a result that cannot be pickled
                    result = Failure(_last_line(error))
                except RayError as death:  # of the actor or of its node
                    self._ray.kill(actor)
                    self._start()
                    deaths[i] += 1
                    if deaths[i] <= self._options.retries:
                        todo.append(i)
                        continue
                    yield i, Failure(f"its worker died {deaths[i]} times ({type(death).__name__})")
                    continue
                self._idle.append(actor)
                if isinstance(result, EngineError):
                    raise result
                yield i, result
        finally:
            # An actor runs its tasks one by one, so a busy one may be given more.
            self._idle += [actor for actor, _ in doing.values()]

    def _none_started(self) -> str:
        options = self._options
        return (
            f"no worker has started within {options.start_s:g} s: the cluster may have no room for "
            f"one with {options.num_cpus:g} CPUs and {options.num_gpus:g} GPUs, or is still "
            "setting up its environment (see ray status): free some, give smaller "
            "engine.num_cpus and engine.num_gpus, or give a longer engine.start_s"
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]
