"""Trackers: where values, tables, pictures, pages and files of a run go.

One file per library, each with a function ``start`` that opens a run, which has ``log`` and
``finish``. Nothing else of qsdm knows them: functions take a `qsdm.text.Log`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from qsdm.run.conf import BadInput
from qsdm.text import Log, ignore


class Wandb(Enum):
    """Where W&B logs a run to."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class Tracker(Enum):
    """Which library tracks a run."""

    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"


@dataclass(frozen=True, slots=True)
class Start:
    """What a tracker is told when a run begins.

    Attributes:
        command: name of the command.
        folder: of this run.
        group: name of the sweep; None for a single run.
        config: the composed config, as plain data.
        mode: for W&B.
    """

    command: str
    folder: Path
    group: str | None
    config: dict[str, Any]
    mode: Wandb = Wandb.disabled


class Run(Interface):
    """An open run of a tracker."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Send values.

        Args:
            values: see `qsdm.text.Log`; every key has a slash.
        """
        ...

    def finish(self, succeeded: bool) -> None:
        """Close the run.

        Args:
            succeeded: whether the command did.
        """
        ...


@contextmanager
def tracked(tracker: Tracker, begin: Start) -> Iterator[Log]:
    """Open a run, which is finished in any case.

    Args:
        tracker: the library.
        begin: what it is told; keys without a slash become ``command/quantity``.

    Yields:
        A `Log` that sends values to the run.

    Raises:
        BadInput: the library is not installed, or has no account.
    """
    if tracker is Tracker.wandb and begin.mode is Wandb.disabled:
        yield ignore
        return
    run: Run = importlib.import_module(f"qsdm.run.trackers.{tracker.value}_run").start(begin)

    def log(values: Mapping[str, Any]) -> None:
        run.log({k if "/" in k else f"{begin.command}/{k}": value for k, value in values.items()})

    succeeded = False
    try:
        yield log
        succeeded = True
    finally:
        run.finish(succeeded)


def missing(package: str) -> BadInput:
    """The error about a tracker that is not installed.

    Args:
        package: its name.
    """
    return BadInput(f"tracker={package} needs the package {package}: run pip install {package}")


def is_table(value: Any) -> bool:
    """Whether a value is a table: a list of rows, one mapping of columns each.

    Args:
        value: that is logged.
    """
    return isinstance(value, list) and bool(value) and all(isinstance(r, Mapping) for r in value)


def columns_of(rows: list[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Turn a table into columns.

    Args:
        rows: see `is_table`; one may lack a column.

    Returns:
        Names, and the cells of each row; None where a row lacks a column.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[row.get(key) for key in columns] for row in rows]


def plain_name(key: str) -> str:
    """Spell a key with letters, digits, dots, dashes and underscores alone.

    Args:
        key: of any value.
    """
    return re.sub(r"[^\w.-]+", "-", key)
