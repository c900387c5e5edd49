"""The C library's heap of a process that draws.

Every operation of a network allocates its output. By default glibc gives large blocks back to the
system as soon as they are free, and the system clears every page of the next one: that took a tenth
of the time of the shipped U-Net.

References:
    mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = 1 << 25  # as far as glibc's own, adaptive threshold goes
_KEPT_BYTES = 1 << 28


def keep_freed_memory() -> bool:
    """Make this process reuse up to 256 MiB of freed memory instead of giving it back.

    Returns:
        Whether the C library can do so: glibc can.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
