"""Processes that a test started, found by what their command says."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


def children(
    of: str, parent: psutil.Process | None = None, recursive: bool = True
) -> list[psutil.Process]:
    """Processes below ``parent``, or this one, whose command names ``of``."""
    matching = []
    for process in (parent or psutil.Process()).children(recursive):
        with suppress(psutil.Error):  # it has just ended
            if of in " ".join(process.cmdline()):
                matching.append(process)
    return matching


def workers(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Workers of the local engine."""
    return children("spawn_main", parent, recursive=False)


def kill_first(of: str) -> None:
    """Wait for such a process, and kill it."""
    while not (processes := children(of)):
        time.sleep(0.01)
    processes[0].kill()
