"""Whether this machine has room for a stage: memory and disk, checked before it starts.

Only what the stage takes for certain is asked for. So a stage that passes may still run out of
memory, but none that would fit is refused.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from qsdm import text
from qsdm.store.files import StoreError

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class NoRoom(StoreError):
    """Memory or disk does not suffice for what a stage takes."""


def require_disk(what: str, size_bytes: int, folder: Path) -> None:
    """Check that files fit on a disk.

    Args:
        what: is written, the subject of a sentence in the singular.
        size_bytes: that it takes.
        folder: where it goes; it need not exist.

    Raises:
        NoRoom: less is free.
    """
    free = free_disk(folder)
    if free is not None and size_bytes > free:
        raise NoRoom(
            f"{what} takes {text.size(size_bytes)} of disk, and {text.size(free)} are free at "
            f"{folder}: free some space or choose another store="
        )


def require_memory(
    what: str, size_bytes: int, num_workers: int = 1, advice: str = "use a larger machine"
) -> None:
    """Check that workers fit into the memory of this machine.

    Args:
        what: they do, the subject of a sentence in the singular.
        size_bytes: that each takes at least.
        num_workers: that run at the same time.
        advice: what else can be done where not even one fits.

    Raises:
        NoRoom: less is available.
    """
    free = free_memory()
    if free is None or size_bytes * num_workers <= free:
        return
    least, each = text.size(size_bytes * num_workers), ""
    if num_workers > 1:
        each = f" ({text.size(size_bytes)} for each of {num_workers} workers)"
    if size_bytes <= free:
        advice = f"give engine.num_workers={free // size_bytes}"
    raise NoRoom(
        f"{what} takes at least {least} of memory{each}, and {text.size(free)} are available: "
        f"end other programs, or {advice}"
    )


def free_disk(folder: Path) -> int | None:
    """Bytes that may be written to a folder, or to the one in which it will be made.

    Args:
        folder: need not exist.

    Returns:
        Bytes; None if unknown.
    """
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    with suppress(OSError):
        return shutil.disk_usage(existing).free
    return None


def free_memory() -> int | None:
    """Bytes that processes may still take, without what the system can drop from its caches.

    Returns:
        Bytes; None if unknown.
    """
    free = _of_machine()
    with suppress(OSError, ValueError, KeyError):  # a container may be allowed less
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        anonymous = int(dict(line.split() for line in lines)["anon"])
        free = min(limit if free is None else free, max(0, limit - anonymous))
    return free


def _of_machine() -> int | None:
    with suppress(OSError, ValueError, KeyError):
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return 1024 * int(sizes["MemAvailable"].split()[0])
    with suppress(OSError, ValueError, AttributeError):  # not on Windows, and not all on macOS
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
