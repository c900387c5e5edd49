"""Values, pictures and pages of a run, in W&B.

Pictures are those of `qsdm.report.figures`, which attribute writes as PNG files; the page that
realize writes has all figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from qsdm.run.conf import BadInput
from qsdm.text import Log, ignore


class Wandb(Enum):
    """Where the run is logged to."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@contextmanager
def wandb_log(
    mode: Wandb, command: str, folder: Path, group: str | None, cfg: Any
) -> Iterator[Log]:
    """Open a W&B run, which is finished in any case.

    Args:
        mode: where the run is logged to.
        command: its name; keys without a slash become ``command/quantity``.
        folder: for W&B's files.
        group: name of the sweep; None for a single run.
        cfg: the composed config.

    Yields:
        A `Log` that sends values to the run.

    Raises:
        BadInput: ``online`` without an account: nothing asks for a login.
    """
    if mode is Wandb.disabled:
        yield ignore
        return
    from omegaconf import OmegaConf

    # Before the import: otherwise artifacts land in the user's home.
    for kind in ("DIR", "DATA_DIR", "CACHE_DIR", "ARTIFACT_DIR"):
        os.environ[f"WANDB_{kind}"] = str(folder)
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    if mode is Wandb.online and not wandb.login(prompt=False, verify=False):
        raise BadInput(
            "wandb=online needs an account: run `wandb login` once, or choose wandb=offline"
        )
    config: Any = OmegaConf.to_container(
        cfg, resolve=True, throw_on_missing=False, enum_to_str=True
    )
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(
        project="qsdm",
        mode=mode.value,
        dir=str(folder),
        group=group,
        job_type=command,
        config=config,
        settings=settings,
    )

    def log(values: Mapping[str, Any]) -> None:
        run.log(
            {
                key if "/" in key else f"{command}/{key}": _panel(wandb, value)
                for key, value in values.items()
            }
        )

    status = 1
    try:
        yield log
        status = 0
    finally:
        run.finish(exit_code=status)


def _panel(wandb: Any, value: Any) -> Any:
    """A path as a picture or page, a list of mappings as a table, anything else as it is."""
    if isinstance(value, Path):
        return (
            wandb.Html(value.read_text(encoding="utf-8"), inject=False)
            if value.suffix == ".html"
            else wandb.Image(str(value))
        )
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        columns = list(dict.fromkeys(key for row in value for key in row))
        return wandb.Table(
            columns=columns, data=[[row.get(key) for key in columns] for row in value]
        )
    return value
