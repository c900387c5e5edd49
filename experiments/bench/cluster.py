"""A simulated cluster of 64 workers: deaths, slow nodes, and a driver that is started again.

    python experiments/bench/cluster.py [--workers 64] [--configs 1000] [--seed 0]

The driver is the real one: `qsdm.engine.ray` hands out tasks and `qsdm.measurement.intake` stores
shards and outcomes. Ray is replaced by `Cluster`, whose time is simulated: its actors take minutes
to start and to draw, an eighth of them four to twenty times as long, and each dies now and then, at
work or before it is up. Halfway, the driver is lost with everything that runs, and the same command
continues. Whatever was set aside is tried again by the next run, as a user does.

Checked: each configuration has one outcome, with the value that its pictures give; the simulated
time stays below a bound; no file of a shard is left over. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qsdm.engine.ray import Ray
from qsdm.measurement.intake import Intake
from qsdm.measurement.scoring import ScoredShard
from qsdm.outcome import Protocol
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.store import Store

NUM_IMAGES, NUM_SHARDS = 64, 4
TASK_S, START_S = 60.0, 120.0
SLOW_SHARE, SLOWEST = 1 / 8, 20.0
DEATH = 0.05
"""Share of tasks and starts in which an actor dies."""
PROTOCOL = Protocol(
    "toy", "w", "1", "DDIM", 10, 2.0, 32, "float32", "p", seed_set=0, num_images=NUM_IMAGES
)


class RayError(Exception):
    """In the place of Ray's own."""


class RayTaskError(RayError):
    """In the place of Ray's own."""


@dataclass(eq=False, slots=True)
class Reference:
    """What a call will return.

    Attributes:
        due_s: when it is there.
        value: computes it; None if the actor dies before.
    """

    due_s: float
    value: Callable[[], Any] | None


@dataclass(eq=False)
class Cluster:
    """What `qsdm.engine.ray` uses of the module ray, with simulated time and nodes.

    Attributes:
        num_workers: that have room.
        rng: of deaths, slowness and durations.
        now_s: simulated time.
        deaths: of actors, so far.
        results: of tasks, so far.
        busy_s: that all actors have spent on tasks that they finished.
    """

    num_workers: int
    rng: np.random.Generator
    now_s: float = 0.0
    deaths: int = 0
    results: int = 0
    busy_s: float = 0.0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.num_workers}}]

    def remote(self, **_resources: float) -> Callable[[type], Any]:
        # All actors share a worker, which keeps nothing between tasks.
        shared = functools.cache(lambda kind, *args: kind(*args))
        return lambda kind: Call(lambda *args: Actor(self, shared(kind, *args)))

    def wait(
        self, references: Sequence[Reference], num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        assert num_returns == 1
        first = min(references, key=lambda reference: reference.due_s)
        self.now_s = max(self.now_s, min(first.due_s, self.now_s + timeout))
        ready = [first] if first.due_s <= self.now_s else []
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: Reference) -> Any:
        if reference.value is None:
            self.deaths += 1
            raise RayError("the actor died")
        return reference.value()

    def kill(self, actor: Actor) -> None:
        pass

    def after(self, seconds: float, value: Callable[[], Any]) -> Reference:
        """A call that takes some time, or in which the actor dies."""
        if self.rng.random() < DEATH:
            return Reference(self.now_s + self.rng.uniform(0, seconds), None)
        return Reference(self.now_s + seconds, value)

    def node(self) -> float:
        """How many times as long as others the node of the next actor takes."""
        is_slow = self.rng.random() < SLOW_SHARE
        return float(self.rng.uniform(SLOWEST / 5, SLOWEST)) if is_slow else 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """As ``method.remote(...)`` in Ray."""

    remote: Callable[..., Any]


class Actor:
    """A worker on a node of its own."""

    def __init__(self, cluster: Cluster, worker: Any) -> None:
        self._cluster, self._worker, self._slowness = cluster, worker, cluster.node()
        self.__ray_ready__ = Call(lambda: cluster.after(START_S * self._slowness, lambda: True))
        self.do = Call(self._do)

    def _do(self, task: Any) -> Reference:
        cluster = self._cluster
        seconds = TASK_S * self._slowness * cluster.rng.uniform(0.8, 1.2)

        def finished() -> Any:
            cluster.results += 1
            cluster.busy_s += seconds
            return self._worker.do(task)

        return cluster.after(seconds, finished)


@contextmanager
def in_place_of_ray(cluster: Cluster) -> Iterator[None]:
    """Let ``import ray`` give the simulated cluster."""
    module, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")
    for name in ("is_initialized", "nodes", "remote", "wait", "get", "kill"):
        setattr(module, name, getattr(cluster, name))
    exceptions.RayError, exceptions.RayTaskError = RayError, RayTaskError  # type: ignore[attr-defined]
    names = {"ray": module, "ray.exceptions": exceptions}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                del sys.modules[name]
            else:
                sys.modules[name] = earlier


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric: the mean of made-up features."""

    name: str = "mean"
    version: str = "1"
    larger_is_better: bool = True
    label: str = "mean"
    digits: int = 3

    def features(
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None, /
    ) -> np.ndarray:
        raise NotImplementedError("no picture is drawn")

    def reduce(self, features: np.ndarray, /) -> float | None:
        return float(features.mean())


Span = tuple[str, int, int]
"""Digest of a configuration, its first picture, and the one after its last."""


def features_of(span: Span) -> np.ndarray:
    """Made-up features of pictures, float32 [N, 1]."""
    digest, first, after = span
    rng = np.random.default_rng([int(digest[:12], 16), first])
    return rng.standard_normal((after - first, 1)).astype(np.float32)


def scored(span: Span) -> ScoredShard:
    """What a worker returns of pictures."""
    features = features_of(span)
    digests = np.zeros((len(features), 32), np.uint8)
    return ScoredShard({"mean": features}, digests, {"drawing_s": TASK_S, "scoring_s": 0.0})


def start() -> Callable[[Span], ScoredShard]:
    """In each worker."""
    return scored


class DriverLost(Exception):
    """The driver's process has ended."""


@dataclass(slots=True)
class Report:
    """What happened.

    Attributes:
        runs: of the driver.
        tasks: that were handed in.
        deaths: of workers.
        set_aside: configurations, by all runs together.
        simulated_s: that all runs took.
        bound_s: that they may take.
        driver_s: CPU-seconds of the driver, the simulated cluster included.
        faults: what is wrong, one sentence each.
    """

    runs: int = 0
    tasks: int = 0
    deaths: int = 0
    set_aside: int = 0
    simulated_s: float = 0.0
    bound_s: float = 0.0
    driver_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def drive(
    store: Store,
    qconfigs: Sequence[QuantConfig],
    engine: Ray,
    start: Callable[[], Callable[[Span], ScoredShard]] = start,
    lost_after: int | None = None,
) -> Intake:
    """One run of the driver.

    Args:
        store: that it writes.
        qconfigs: to be measured.
        engine: of the workers.
        start: in each worker.
        lost_after: number of results after which the driver is lost; None: it lives.

    Returns:
        What it has measured.

    Raises:
        DriverLost: after so many results.
    """
    intake = Intake(store, PROTOCOL, {"mean": Mean()}, NUM_IMAGES // NUM_SHARDS)
    intake.expect(qconfigs)
    tasks = intake.tasks(Path("full"))
    spans = [(task.qconfig.digest, task.start, task.stop) for task in tasks]
    with engine.open(start) as pool:
        for num, (i, result) in enumerate(pool.map(spans), 1):
            intake.take(tasks[i], result)
            if num == lost_after:
                raise DriverLost
    return intake


def made_up_qconfigs(num: int, rng: np.random.Generator) -> list[QuantConfig]:
    """Different configurations of a model that is not there."""
    names = [f"layer{i}" for i in range(20)]
    methods = [QuantMethod("uaq", 3), QuantMethod("uaq", 4)]
    configs = {
        one.digest: one
        for one in (
            QuantConfig("toy", {name: methods[rng.integers(2)] for name in names})
            for _ in range(2 * num)
        )
    }
    return list(configs.values())[:num]


def simulate(folder: Path, num_workers: int, num_configs: int, seed: int) -> Report:
    """Measure configurations with drivers that come and go.

    Args:
        folder: of the store.
        num_workers: of the cluster.
        num_configs: to be measured.
        seed: of all that is random.

    Returns:
        What happened.
    """
    rng, began = np.random.default_rng(seed), time.process_time()
    qconfigs = made_up_qconfigs(num_configs, rng)
    store, report = Store(folder, "toy"), Report()
    num_tasks = num_configs * NUM_SHARDS
    while report.runs < 20:
        cluster = Cluster(num_workers, rng)
        lost_after = num_tasks // 2 if report.runs == 0 else None
        aside = 0
        with suppress(DriverLost), in_place_of_ray(cluster):
            measured = drive(store, qconfigs, Ray(), lost_after=lost_after).measured
            aside = len(measured.failures)
        report.runs += 1
        report.tasks += cluster.results
        report.deaths += cluster.deaths
        report.set_aside += aside
        report.simulated_s += cluster.now_s
        # Each run starts, works at an eighth less than full speed with twice the usual losses, and
        # waits for its slowest task, which may be tried twice.
        report.bound_s += (
            START_S
            + cluster.results * 1.2 * TASK_S / (num_workers * (1 - SLOW_SHARE) * (1 - 2 * DEATH))
            + 2 * 1.2 * TASK_S * SLOWEST
        )
        if lost_after is None and not aside:
            break
    report.driver_s = time.process_time() - began
    report.faults = faults_in(store, qconfigs)
    if report.simulated_s > report.bound_s:
        report.faults.append(f"it took {report.simulated_s:.0f} s of at most {report.bound_s:.0f}")
    return report


def faults_in(store: Store, qconfigs: Sequence[QuantConfig]) -> list[str]:
    """Compare the store with what should be in it.

    Args:
        store: that the drivers have written.
        qconfigs: that were to be measured.

    Returns:
        A sentence per fault.
    """
    faults = []
    outcomes = store.outcomes()
    digests = [outcome.qconfig.digest for outcome in outcomes]
    if len(set(digests)) != len(digests):
        faults.append("an outcome is stored twice")
    if lost := {one.digest for one in qconfigs} - set(digests):
        faults.append(f"{len(lost)} of {len(qconfigs)} configurations have no outcome")
    size = NUM_IMAGES // NUM_SHARDS
    for outcome in outcomes:
        digest = outcome.qconfig.digest
        spans = [(digest, first, first + size) for first in range(0, NUM_IMAGES, size)]
        features = np.concatenate([features_of(span) for span in spans])
        if outcome.metrics["mean"] != float(features.mean()):
            faults.append(f"{digest[:12]} has the value of other pictures")
    if left := list(store.path("shards").rglob("*.safetensors")):
        faults.append(f"{len(left)} files of shards are left over")
    return faults


def writes_per_s(folder: Path, num: int = 300) -> float:
    """How many outcomes a driver stores per second, one by one."""
    from qsdm.outcome import Outcome
    from qsdm.store.outcomes import OutcomeDatabase

    database = OutcomeDatabase(folder / "writes" / "outcomes.sqlite")
    methods = {f"layer{i}": QuantMethod("uaq", 4) for i in range(500)}
    outcomes = [
        Outcome(QuantConfig("toy", methods | {"first": QuantMethod("uaq_g64", 3)} | {
            f"number{i}": QuantMethod("uaq", 3)}), PROTOCOL.digest, {"mean": 1.0}, NUM_IMAGES)
        for i in range(num)
    ]  # fmt: skip
    began = time.perf_counter()
    for outcome in outcomes:
        database.add(outcome, PROTOCOL)
    return num / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--configs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = simulate(Path(folder), args.workers, args.configs, args.seed)
        print(f"{args.workers} workers, {args.configs} configurations of {NUM_SHARDS} shards")
        for name, value in dataclasses.asdict(report).items():
            print(f"{name:<14}{value if isinstance(value, (int, list)) else f'{value:,.1f}'}")
        print(f"{'writes_per_s':<14}{writes_per_s(Path(folder)):,.0f}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
