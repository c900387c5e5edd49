"""Trackio: ``tracker=trackio``, on this machine.

Numbers and texts become history, tables and pictures media. Trackio shows no pages and keeps no
files: of these, it is told where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.run.trackers import Start, is_table, missing

PROJECT = "qsdm"


class TrackioRun:
    """An open run of Trackio."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Send values.

        Args:
            values: see `qsdm.text.Log`; every key has a slash.
        """
        import trackio

        trackio.log({key: _panel(value) for key, value in values.items()})

    def finish(self, succeeded: bool) -> None:
        """Close the run.

        Args:
            succeeded: whether the command did.
        """
        import trackio

        trackio.log({"run/succeeded": int(succeeded)})
        trackio.finish()


def start(begin: Start) -> TrackioRun:
    """Open a run.

    Args:
        begin: what it is told.

    Returns:
        The run.

    Raises:
        BadInput: Trackio is not installed.
    """
    try:
        import trackio
    except ImportError as error:
        raise missing("trackio") from error
    config = {"command": begin.command, **begin.config}
    trackio.init(project=PROJECT, config=config, group=begin.group)
    return TrackioRun()


def _panel(value: Any) -> Any:
    import pandas
    import trackio

    if isinstance(value, Path):
        return trackio.Image(str(value)) if value.suffix == ".png" else str(value)
    return trackio.Table(dataframe=pandas.DataFrame(value)) if is_table(value) else value
