"""Ray's own cluster with 64 actors: processes and nodes that are killed, and a lost driver.

    python experiments/bench/ray_cluster.py [--nodes 4] [--configs 250] [--seed 0]

`cluster.py` simulates Ray and time; here both are real. Four nodes of sixteen CPUs that do not
exist run on this machine, each with a raylet of its own, and one actor for each of these CPUs. A
task waits four seconds instead of drawing; an eighth of the actors is four to eight times as slow.
Every few seconds the process of an actor is killed, now and then a whole node, in whose place
another joins. Halfway the driver, a process of its own, is killed, and the same command continues
until nothing is missing.

Checked as in `cluster.py`: each configuration has one outcome, with the right value. Exit status 1
if not. It takes a few minutes, 8 GB of memory, and `pip install 'qsdm[ray]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cluster
import numpy as np
import psutil

from qsdm.engine.ray import Ray
from qsdm.measurement.scoring import ScoredShard
from qsdm.store import Store

CPUS_PER_NODE = 16
TASK_S = 4.0
SLOW_SHARE, SLOWEST = 1 / 8, 8.0
KILL_EVERY_S, NODE_EVERY_S = 8.0, 90.0
MOST_S = 1800.0


def start() -> Callable[[cluster.Span], ScoredShard]:
    """In each actor."""
    rng = np.random.default_rng(os.getpid())
    slowness = rng.uniform(SLOWEST / 2, SLOWEST) if rng.random() < SLOW_SHARE else 1.0

    def work(span: cluster.Span) -> ScoredShard:
        time.sleep(TASK_S * slowness)
        return cluster.scored(span)

    return work


def drive(address: str, folder: Path, num_configs: int, seed: int) -> int:
    """Measure what is missing, as a process of its own.

    Args:
        address: of Ray's cluster.
        folder: of the store.
        num_configs: to be measured.
        seed: of the configurations.

    Returns:
        Exit status: 1 if configurations were set aside.
    """
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(cluster)  # which actors need not import
    qconfigs = cluster.made_up_qconfigs(num_configs, np.random.default_rng(seed))
    intake = cluster.drive(Store(folder, "toy"), qconfigs, Ray(address), start)
    if not (failures := intake.measured.failures):
        return 0
    print(f"{len(failures)} set aside, such as: {next(iter(failures.values()))}", file=sys.stderr)
    return 1


@dataclass(slots=True)
class Report:
    """What happened.

    Attributes:
        actors: that had room.
        drivers: processes, the killed one included.
        killed_actors: processes that were killed.
        killed_nodes: with all their actors.
        seconds: from the first driver's start to the last one's end.
        ended: last line of what each driver said that ended with something missing.
        faults: what is wrong, one sentence each.
    """

    actors: int
    drivers: int = 0
    killed_actors: int = 0
    killed_nodes: int = 0
    seconds: float = 0.0
    ended: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Unrest:
    """Kills actors and nodes.

    Attributes:
        nodes: Ray's cluster.
        others: its nodes but the head.
        rng: of who is killed.
        report: that counts.
    """

    nodes: Any
    others: list[Any]
    rng: np.random.Generator
    report: Report
    _next_kill_s: float = 0.0
    _next_node_s: float = field(default_factory=lambda: time.monotonic() + NODE_EVERY_S)

    def stir(self) -> None:
        """Kill what is due."""
        now_s = time.monotonic()
        if now_s > self._next_kill_s and (actors := actor_processes()):
            actors[self.rng.integers(len(actors))].kill()
            self.report.killed_actors += 1
            self._next_kill_s = now_s + KILL_EVERY_S
        if now_s > self._next_node_s:
            lost = self.others.pop(self.rng.integers(len(self.others)))
            self.nodes.remove_node(lost, allow_graceful=False)
            self.others.append(self.nodes.add_node(num_cpus=CPUS_PER_NODE))
            self.report.killed_nodes += 1
            self._next_node_s = time.monotonic() + NODE_EVERY_S


def actor_processes() -> list[psutil.Process]:
    """Those of this process's nodes."""
    actors = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                actors.append(process)
        except psutil.Error:  # it has ended
            continue
    return actors


def run(folder: Path, num_nodes: int, num_configs: int, seed: int) -> Report:
    """Measure configurations on a cluster that does not hold still.

    Args:
        folder: of the store.
        num_nodes: of the cluster.
        num_configs: to be measured.
        seed: of all that is random here; Ray's own timing is not.

    Returns:
        What happened.
    """
    from ray.cluster_utils import Cluster

    rng, report = np.random.default_rng(seed), Report(num_nodes * CPUS_PER_NODE)
    small = {"object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        others = [nodes.add_node(num_cpus=CPUS_PER_NODE, **small) for _ in range(num_nodes)]
        unrest = Unrest(nodes, others, rng, report)
        arguments = [nodes.address, folder, num_configs, seed]
        command = [sys.executable, __file__, "--drive", *map(str, arguments)]
        store, began = Store(folder, "toy"), time.monotonic()
        status: int | None = None
        is_lost = False
        while status != 0:
            report.drivers += 1
            log = folder / f"driver-{report.drivers}.log"
            with log.open("w") as told, subprocess.Popen(command, stderr=told) as driver:
                try:
                    while (status := driver.poll()) is None:
                        time.sleep(0.2)
                        unrest.stir()
                        if not is_lost and len(store.outcomes()) >= num_configs // 2:
                            driver.kill()
                            is_lost = True
                        if time.monotonic() - began > MOST_S:
                            report.faults.append(f"it has not ended within {MOST_S:.0f} s")
                            return report
                finally:
                    driver.kill()
            if status > 0:  # Ray tells of every death, and our driver why it ended
                report.ended += log.read_text().rstrip().splitlines()[-1:]
        report.seconds = time.monotonic() - began
    finally:
        nodes.shutdown()
    qconfigs = cluster.made_up_qconfigs(num_configs, np.random.default_rng(seed))
    report.faults += cluster.faults_in(store, qconfigs)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4, help=f"of {CPUS_PER_NODE} CPUs each")
    parser.add_argument("--configs", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        address, folder, num_configs, seed = args.drive
        return drive(address, Path(folder), int(num_configs), int(seed))
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), args.nodes, args.configs, args.seed)
    for name, value in dataclasses.asdict(report).items():
        print(f"{name:<15}{f'{value:.0f}' if isinstance(value, float) else value}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
