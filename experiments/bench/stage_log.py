"""Stages that run as commands of their own, each with its seconds, CPU-seconds, memory and disk.

What a stage took is added to FOLDER/stages.json. A killed run continues with the first stage that
is missing; the seconds of all tries are added up.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil


def run_stages(
    about: str,
    commands: Callable[[argparse.Namespace], Mapping[str, Sequence[str]]],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """Run the stages that are not done yet, as the arguments of this process say.

    Args:
        about: what the program does, for --help.
        commands: arguments of the interpreter by stage, of the program's arguments.
        add_options: adds options of this program.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=lambda path: Path(path).resolve())
    parser.add_argument("--only", nargs="+", metavar="STAGE")
    parser.add_argument("--table", action="store_true", help="print what was measured so far")
    add_options(parser)
    args = parser.parse_args()
    to_run = commands(args)
    if unknown := set(args.only or ()) - set(to_run):
        parser.error(f"no stage {min(unknown)!r}: the stages are {', '.join(to_run)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "stages.json"
    stages = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if args.table:
        print(table({name: stages.get(name, []) for name in to_run}))
        return
    for name, command in to_run.items():
        tries = stages.setdefault(name, [])
        if (args.only and name not in args.only) or (tries and tries[-1]["status"] == 0):
            continue
        status, figures = measured(command, args.folder)
        tries.append({"status": status, **figures})
        file.write_text(json.dumps(stages, indent=1), encoding="utf-8")
        if status:
            sys.exit(f"{name} ended with status {status}; the same command tries again")
        print(table({name: tries}).splitlines()[-1], flush=True)


def measured(command: Sequence[str], folder: Path) -> tuple[int, dict[str, float]]:
    """Run a command, and measure it with all its processes.

    Args:
        command: arguments of the interpreter.
        folder: whose size is measured.

    Returns:
        Exit status; wall_s, cpu_s, memory_gib, and disk_gib (added).
    """
    before, began = size_gib(folder), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *command])
    most = [0.0]

    def watch() -> None:
        while process.poll() is None:
            most[0] = max(most[0], private_gib(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    watcher.join()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, {
        "wall_s": time.perf_counter() - began,
        "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
        "memory_gib": most[0],
        "disk_gib": size_gib(folder) - before,
    }


def private_gib(pid: int) -> float:
    """Memory beside mapped files, of a process and all its children."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            line = re.search(r"RssAnon:\s+(\d+)", status)
            total += int(line[1]) if line else 0
    except (psutil.Error, OSError):  # it ended meanwhile
        pass
    return total / 2**20


def size_gib(folder: Path) -> float:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it was removed meanwhile
            continue
    return total / 2**30


def added(tries: list[dict[str, float]]) -> dict[str, float]:
    """What several tries of a stage took together.

    Args:
        tries: figures of each; the last one finished.
    """
    last = tries[-1]
    summed = {key: sum(each[key] for each in tries) for key in ("wall_s", "cpu_s", "disk_gib")}
    return last | summed | {"memory_gib": max(each["memory_gib"] for each in tries)}


def table(stages: dict[str, list[dict[str, float]]]) -> str:
    """The stages that were run, as Markdown.

    Args:
        stages: figures of each try by stage.
    """
    lines = [
        "| stage | seconds | CPU-seconds | GiB of memory | GiB of disk |",
        "|---|---|---|---|---|",
    ]
    for name, tries in stages.items():
        if not tries:
            continue
        row = added(tries)
        again = "" if len(tries) == 1 else f" ({len(tries)} tries)"
        lines.append(
            f"| {name}{again} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} | "
            f"{row['memory_gib']:.1f} | {row['disk_gib']:.2f} |"
        )
    return "\n".join(lines)
