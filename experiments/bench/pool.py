"""Kill workers of the local pool at random moments, and count what its driver does then.

    python experiments/bench/pool.py [--kills 500] [--delay 1.5] [--out pool.jsonl]

A run is a driver in a process of its own, which does rounds of tasks until this program has killed
10 of its workers, each 0 to 1.5 s after it appeared, and then ends. On a busy machine most die
before they are up: with a longer delay more of them die at work. A run that has not ended 30 s
after its last kill hangs. Each round's results are compared with what they should be: none may
be lost, doubled, or of another round. Every third round is left early, as when its consumer fails.

Finished runs are kept in the file, and skipped when the program is started again. Exit status 1 if
a run hung, failed, or had wrong results. Not in CI: 500 kills take 10 to 25 minutes; tests run it
with a few.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

import psutil
from tqdm import tqdm

from qsdm.engine.local import Local

DELAY_S = 1.5
"""At most, between a worker's appearance and its death."""
HANG_S = 30.0
"""After the last kill."""
KILLS_PER_RUN = 10
LEFT_AFTER = 5  # results, in the rounds that are left early


@dataclass(frozen=True)
class Kind:
    """Tasks of one kind.

    Attributes:
        num_tasks: in a round.
        task_bytes: that each task carries to the worker.
        result_bytes: that it carries back.
        task_s: how long it takes.
    """

    num_tasks: int
    task_bytes: int = 0
    result_bytes: int = 0
    task_s: float = 0.0


KINDS = {
    "6,000 tiny": Kind(6_000),
    "400 of 5 kB": Kind(400, task_bytes=5_000),
    "20 of 3 MB": Kind(20, task_bytes=3_000_000, result_bytes=3_000_000),
    "8 long": Kind(8, task_s=0.4),
}
NUM_WORKERS = (1, 2)


@dataclass
class Run:
    """What happened in one run.

    Attributes:
        kills: of living workers.
        rounds: of tasks, those left early included.
        ended_s: from the last kill to the driver's end.
        error: the driver's last line, if it failed.
    """

    kind: str
    num_workers: int
    kills: int = 0
    rounds: int = 0
    tasks: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    ended_s: float = 0.0
    hung: bool = False
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Every task's result came once."""
        return not (self.hung or self.error or self.lost or self.doubled or self.wrong)


@dataclass(frozen=True)
class Task:
    number: int
    sleep_s: float
    result_bytes: int
    load: bytes = field(repr=False)


def start() -> Callable[[Task], tuple[int, bytes]]:
    """In each worker."""

    def work(task: Task) -> tuple[int, bytes]:
        time.sleep(task.sleep_s)
        return task.number + len(task.load), bytes(task.result_bytes)

    return work


def drive(run: Run, stop: Path) -> None:
    """In a process of its own: rounds of tasks until ``stop`` exists, then the run as JSON."""
    kind = KINDS[run.kind]
    load = bytes(kind.task_bytes)
    numbers = count()
    # Only what is killed again and again would be set aside; here everything shall come.
    with Local(num_workers=run.num_workers, retries=1_000_000).open(start) as pool:
        while not stop.exists():
            tasks = [
                Task(number, kind.task_s, kind.result_bytes, load)
                for number in islice(numbers, kind.num_tasks)
            ]
            is_left = run.rounds % 3 == 2
            results = pool.map(tasks)
            seen: set[int] = set()
            for i, result in islice(results, LEFT_AFTER) if is_left else results:
                run.doubled += i in seen
                seen.add(i)
                expected = tasks[i].number + kind.task_bytes, bytes(kind.result_bytes)
                run.wrong += result != expected
            results.close()  # type: ignore[attr-defined]
            run.rounds += 1
            run.tasks += len(seen)
            run.lost += 0 if is_left else len(tasks) - len(seen)
    print(json.dumps(asdict(run)))


def workers_of(driver: psutil.Process) -> Iterator[psutil.Process]:
    """Processes that multiprocessing spawned."""
    with suppress(psutil.NoSuchProcess):
        for child in driver.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if any("spawn_main" in argument for argument in child.cmdline()):
                    yield child


def kill_workers(run: Run, num_kills: int, rng: random.Random, delay_s: float = DELAY_S) -> Run:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"
        output = Path(folder) / "output"
        command = [sys.executable, __file__, "--drive", json.dumps(asdict(run)), str(stop)]
        with output.open("w") as file:
            driver = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        process = psutil.Process(driver.pid)
        due: dict[psutil.Process, float] = {}
        kills, last_kill = 0, time.monotonic()
        while kills < num_kills and driver.poll() is None:
            now = time.monotonic()
            for worker in workers_of(process):
                if worker not in due:
                    due[worker] = now + rng.uniform(0, delay_s)
                elif due[worker] <= now and worker.is_running() and kills < num_kills:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
                        due[worker] = float("inf")
                        kills, last_kill = kills + 1, time.monotonic()
            if now - last_kill > 10 * HANG_S:  # no worker has appeared since
                break
            time.sleep(0.005)
        stop.touch()
        try:
            driver.wait(max(0, HANG_S - (time.monotonic() - last_kill)))
            hung = False
        except subprocess.TimeoutExpired:
            hung = True
            driver.kill()
            driver.wait()
        lines = output.read_text().splitlines() or [""]
    if not hung and driver.returncode == 0:
        run = Run(**json.loads(lines[-1]))
    elif not hung:
        run.error = lines[-1]
    run.kills, run.hung, run.ended_s = kills, hung, time.monotonic() - last_kill
    return run


def table(runs: list[Run]) -> str:
    """Sums by kind of tasks and number of workers, as Markdown."""
    names = [
        "runs",
        "kills",
        "rounds",
        "results",
        "hung",
        "failed",
        "lost",
        "doubled",
        "wrong",
        "slowest_end_s",
    ]
    lines = [
        "| tasks | workers | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---|--:|" + "--:|" * len(names),
    ]
    cases = [(kind, num) for kind in KINDS for num in NUM_WORKERS]
    for kind, num in [*cases, ("all", 0)]:
        own = [run for run in runs if kind == "all" or (run.kind, run.num_workers) == (kind, num)]
        if not own:
            continue
        sums = [
            sum(getattr(run, name) for run in own)
            for name in ("kills", "rounds", "tasks", "hung", "lost", "doubled", "wrong")
        ]
        failed = sum(bool(run.error) for run in own)
        row = [len(own), *sums[:4], failed, *sums[4:]]
        cells = " | ".join(f"{value:,}" for value in row)
        slowest = max(run.ended_s for run in own)
        lines.append(f"| {kind} | {num or ''} | {cells} | {slowest:.1f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--delay", type=float, default=DELAY_S, help="seconds, at most")
    parser.add_argument("--out", type=Path, default=Path("pool.jsonl"), help="finished runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Run(**json.loads(options.drive[0])), Path(options.drive[1]))
        return 0
    runs = []
    if options.out.exists():
        runs = [Run(**json.loads(line)) for line in options.out.read_text().splitlines()]
    killed = sum(run.kills for run in runs)
    cases = [(kind, num) for kind in KINDS for num in NUM_WORKERS]
    with tqdm(total=options.kills, initial=killed, unit="kill", disable=None) as bar:
        while killed < options.kills:
            kind, num_workers = cases[len(runs) % len(cases)]
            rng = random.Random(options.seed * 1_000_003 + len(runs))
            num_kills = min(KILLS_PER_RUN, options.kills - killed)
            run = kill_workers(Run(kind, num_workers), num_kills, rng, options.delay)
            runs.append(run)
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")
            killed += max(run.kills, 1)  # so that it ends even if no worker ever appears
            bar.update(run.kills)
    print(table(runs))
    for run in runs:
        if not run.is_good:
            print(run)
    return 0 if all(run.is_good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
