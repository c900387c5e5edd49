"""How long functions report progress: a callable that takes plain values by key.

`qsdm.run` sends them to W&B; nothing else knows it.

Example:
    >>> from qsdm.log import Log, ignore
    >>> def work(log: Log = ignore) -> None:
    ...     log({"work/share": 0.5})
    >>> values = {}
    >>> work(values.update)
    >>> values
    {'work/share': 0.5}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Log = Callable[[Mapping[str, Any]], None]
"""Takes numbers, text, lists of rows (a table), and paths of pictures and pages."""


def ignore(values: Mapping[str, Any]) -> None:
    """Drop what is logged: the default.

    Args:
        values: by key.
    """
