"""Where long functions report to: a callable that takes plain values by key. `qsdm.run` sends them to W&B; nobody else
knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Log = Callable[[Mapping[str, Any]], None]


def ignore(values: Mapping[str, Any]) -> None:
    """The default: nobody listens."""
