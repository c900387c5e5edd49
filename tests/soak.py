"""Parameters of a test of which every run takes a few, and only ``-m soak`` all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def soaked(values: Iterable[str], fast: Collection[str]) -> list[Any]:
    """Mark values as `soak`.

    Args:
        values: all of a test's values.
        fast: those that every run takes.

    Raises:
        ValueError: one of `fast` is not among the values.
    """
    values = list(values)
    if missing := set(fast) - set(values):
        raise ValueError(f"no such values: {', '.join(sorted(missing))}")
    return [
        value if value in fast else pytest.param(value, marks=pytest.mark.soak) for value in values
    ]
