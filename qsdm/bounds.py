"""Numbers that a command cannot work with are refused before it begins."""

from __future__ import annotations

MANY = 1_000_000
"""The largest number of pictures, configurations or points: what is listed in memory."""


def require(least: float, most: float = float("inf"), /, **values: float | None) -> None:
    """Refuse the first value outside [least, most]; None is no value.

    Raises:
        ValueError: its name, what was wanted and what came.
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            wanted = (
                f"of at least {least:,}"
                if value < least or most == float("inf")
                else f"of at most {most:,}"
            )
            raise ValueError(f"wanted {name} {wanted} (got {value:,})")
