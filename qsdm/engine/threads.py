"""How many threads the libraries of a process use for one operation: torch, BLAS, OpenMP.

More threads than free cores wait for each other: a matrix product takes as long as the slowest of
its threads waits for a core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


def set_threads(num: int) -> None:
    """Set the number of threads of the libraries that are loaded.

    Args:
        num: of threads.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(num)
    threadpool_limits(num)


@contextmanager
def limited_threads(num: int) -> Iterator[None]:
    """Limit the libraries that are loaded until the block ends.

    Args:
        num: of threads.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else num
    with threadpool_limits(num):
        if torch:
            torch.set_num_threads(num)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
