"""What users read: progress, sizes, durations, tables, a sentence about a number out of range.

Example:
    >>> from qsdm.text import duration, size, table
    >>> size(1_696_864), duration(29_900)
    ('1.7 MB', '8 hours and 18 minutes')
    >>> print(table(["method", "bits", "bytes"], [["uaq-4", 4.14, 2_014_352]], floats=".3f"))
    method      bits      bytes
    uaq-4      4.140  2,014,352
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MANY = 1_000_000
"""The largest number of pictures, configurations or points, because all are listed in memory."""

Log = Callable[[Mapping[str, Any]], None]
"""How long functions report progress: takes numbers, text, lists of rows (a table), and paths of
pictures, pages and other files or folders, by key. `qsdm.run` sends them to a tracker; nothing else
knows it."""


def ignore(values: Mapping[str, Any]) -> None:
    """Drop what is logged: the default.

    Args:
        values: by key.

    Example:
        >>> from qsdm.text import Log, ignore
        >>> def work(log: Log = ignore) -> None:
        ...     log({"work/share": 0.5})
        >>> values = {}
        >>> work(values.update)
        >>> values
        {'work/share': 0.5}
    """


def size(num_bytes: float) -> str:
    """Format a number of bytes in decimal units, with three significant digits.

    Args:
        num_bytes: not negative.

    Returns:
        For example 7.85 MB.
    """
    import humanize

    return humanize.naturalsize(num_bytes, format="%.3g")


def duration(seconds: float) -> str:
    """Format a duration: to the second below two minutes, to the minute below a day.

    Args:
        seconds: not negative; at least one is shown.

    Returns:
        For example 8 hours and 18 minutes.
    """
    import humanize

    unit = "seconds" if seconds < 120 else "minutes" if seconds < 24 * 3600 else "hours"
    return humanize.precisedelta(max(1, seconds), minimum_unit=unit, format="%.0f")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    floats: str | Sequence[str] = ".4f",
    are_texts: bool = False,
) -> str:
    """Align rows in columns: the first to the left, all others to the right.

    Args:
        heads: names of the columns.
        rows: a cell for each column; None is shown as a dash, integers with separators.
        floats: format of numbers with a fraction, of all columns or of each.
        are_texts: whether all cells are texts, which are shown as they are, +0.50 too.

    Returns:
        Lines without a final newline.
    """
    import tabulate

    first = floats if isinstance(floats, str) else floats[0]
    cells = [  # the first column's numbers by hand, since its names must not be read as numbers
        [
            format(cell, first) if i == 0 and isinstance(cell, float) else cell
            for i, cell in enumerate(row)
        ]
        for row in rows
    ]
    return tabulate.tabulate(
        cells,
        heads,
        tablefmt="plain",
        floatfmt=floats,
        intfmt=",",
        missingval="-",
        colalign=("left", *["right"] * (len(heads) - 1)) if cells else None,
        # a name like 1e5 is a name
        disable_numparse=are_texts or ([0] if cells else False),
    )


def require(least: float, most: float = float("inf"), /, **values: float | None) -> None:
    """Check that values lie within [least, most].

    Args:
        least: smallest allowed value.
        most: largest allowed value.
        **values: by name; None is not checked.

    Raises:
        ValueError: one of them does not; the message says which, what was wanted and what came.

    Example:
        >>> from qsdm.text import require
        >>> require(1, 64, num_workers=0)
        Traceback (most recent call last):
        ValueError: wanted num_workers of at least 1 (got 0)
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            is_low = value < least or most == float("inf")
            bound = f"least {least:,}" if is_low else f"most {most:,}"
            raise ValueError(f"wanted {name} of at {bound} (got {value:,})")
