"""The ranges of numbers that users give, checked before any work begins."""

from __future__ import annotations

MANY = 1_000_000
"""The largest number of pictures, configurations or points, because all are listed in memory."""


def require(least: float, most: float = float("inf"), /, **values: float | None) -> None:
    """Check that values lie within [least, most].

    Args:
        least: smallest allowed value.
        most: largest allowed value.
        **values: by name; None is not checked.

    Raises:
        ValueError: one of them does not; the message says which, what was wanted and what came.

    Example:
        >>> from qsdm.bounds import require
        >>> require(1, 64, num_workers=0)
        Traceback (most recent call last):
        ValueError: wanted num_workers of at least 1 (got 0)
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            is_low = value < least or most == float("inf")
            bound = f"least {least:,}" if is_low else f"most {most:,}"
            raise ValueError(f"wanted {name} of at {bound} (got {value:,})")
