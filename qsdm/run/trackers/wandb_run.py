"""W&B: ``wandb=offline`` or ``wandb=online``.

Numbers and texts become history, tables and pictures media, pages HTML, other files and folders
artifacts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.run.conf import BadInput
from qsdm.run.trackers import Start, Wandb, columns_of, is_table, plain_name


class WandbRun:
    """An open run of W&B.

    Args:
        run: that ``wandb.init`` returned.
    """

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, values: Mapping[str, Any]) -> None:
        """Send values.

        Args:
            values: see `qsdm.text.Log`; every key has a slash.
        """
        history = {}
        for key, value in values.items():
            if isinstance(value, Path) and value.suffix not in (".html", ".png"):
                self.run.log_artifact(_artifact(key, value))
            else:
                history[key] = _panel(value)
        if history:
            self.run.log(history)

    def finish(self, succeeded: bool) -> None:
        """Close the run.

        Args:
            succeeded: whether the command did.
        """
        self.run.finish(exit_code=0 if succeeded else 1)


def start(begin: Start) -> WandbRun:
    """Open a run.

    Args:
        begin: what it is told.

    Returns:
        The run.

    Raises:
        BadInput: ``online`` without an account: nothing asks for a login.
    """
    # Before the import: otherwise artifacts land in the user's home.
    for kind in ("DIR", "DATA_DIR", "CACHE_DIR", "ARTIFACT_DIR"):
        os.environ[f"WANDB_{kind}"] = str(begin.folder)
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    if begin.mode is Wandb.online and not wandb.login(prompt=False, verify=False):
        raise BadInput(
            "wandb=online needs an account: run `wandb login` once, or choose wandb=offline"
        )
    run = wandb.init(
        project="qsdm",
        mode=begin.mode.value,  # type: ignore[arg-type]
        dir=str(begin.folder),
        group=begin.group,
        job_type=begin.command,
        config=begin.config,
        settings=wandb.Settings(console="off", silent=True),
    )
    return WandbRun(run)


def _artifact(key: str, path: Path) -> Any:
    """A file or a folder under the key's name; its type is what follows the command."""
    import wandb

    artifact = wandb.Artifact(plain_name(key), type=plain_name(key.rpartition("/")[2]))
    if path.is_dir():
        artifact.add_dir(str(path))
    else:
        artifact.add_file(str(path))
    return artifact


def _panel(value: Any) -> Any:
    """A path as a picture or page, a list of mappings as a table, anything else as it is."""
    import wandb

    if isinstance(value, Path):
        if value.suffix == ".html":
            return wandb.Html(value.read_text(encoding="utf-8"), inject=False)
        return wandb.Image(str(value))
    if is_table(value):
        columns, rows = columns_of(value)
        return wandb.Table(columns=[*columns], data=rows)
    return value
