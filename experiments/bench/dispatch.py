"""How many tasks the local pool's driver hands out per second, to workers that do nothing.

    python experiments/bench/dispatch.py [--tasks 6000] [--rounds 5]

On two cores, driver and workers share them, so the driver's own CPU time per task is the figure
that holds on larger machines: it bounds how many workers one driver can keep busy.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from pool import Task, start

from qsdm.engine.local import Local


def rates(num_workers: int, num_tasks: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure rounds of tasks.

    Args:
        num_workers: of the pool.
        num_tasks: in each round.
        rounds: that are measured, after one until all workers are up.

    Returns:
        Tasks per second, and the driver's CPU-seconds per task, of each round.
    """
    tasks = [Task(i, 0.0, 0, b"") for i in range(num_tasks)]
    wall, cpu = np.zeros(rounds), np.zeros(rounds)
    with Local(num_workers=num_workers).open(start) as pool:
        for _ in pool.map(tasks):
            pass
        for k in range(rounds):
            began, used = time.perf_counter(), time.process_time()
            results = dict(pool.map(tasks))
            wall[k], cpu[k] = time.perf_counter() - began, time.process_time() - used
            if results != {i: (i, b"") for i in range(num_tasks)}:
                raise SystemExit("a task was lost, or has another one's result")
    return num_tasks / wall, cpu / num_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    heads = "tasks per s", "slowest round", "driver, CPU-µs"
    print(f"{'workers':>7}" + "".join(f"{head:>16}" for head in heads))
    for num_workers in (1, 2, 8):
        per_second, cpu_s = rates(num_workers, args.tasks, args.rounds)
        row = np.median(per_second), per_second.min(), 1e6 * np.median(cpu_s)
        print(f"{num_workers:>7}{row[0]:>16,.0f}{row[1]:>16,.0f}{row[2]:>16.0f}", flush=True)


if __name__ == "__main__":
    main()
