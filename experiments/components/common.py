"""What the scripts of this folder share: parts of a pipeline, results, a command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qsdm.calibrate import calibrate
from qsdm.qconfig import SpaceSpec
from qsdm.store.files import read_json, write_json
from qsdm.trace import trace
from qsdm.workspace import Workspace

METRICS = ("fd_lite0", "psnr")


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """What was measured of each pipeline, in a file.

    Attributes:
        path: of the file.
    """

    path: Path

    def read(self) -> dict[str, Any]:
        """All results so far, by pipeline."""
        return read_json(self.path) if self.path.exists() else {}

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Write the results of a pipeline in the place of its former ones."""
        write_json(self.path, self.read() | {name: dict(result)})


def prepared(workspace: Workspace, spec: SpaceSpec | None = None) -> Workspace:
    """A workspace with this folder's metrics and a space, traced and calibrated."""
    chosen = {metric: workspace.model.metrics[metric] for metric in METRICS}
    model = dataclasses.replace(workspace.model, metrics=chosen)
    ready = dataclasses.replace(workspace, model=model, spec=spec or workspace.spec)
    if not ready.path("graph.json").exists():
        trace(ready, page=False)
    if not ready.path(f"calibration/{ready.space_name}/table.safetensors").exists():
        calibrate(ready)
    return ready


def run(
    about: str | None,
    measure: Callable[[argparse.Namespace], None],
    table: Callable[[], str],
    **numbers: int,
) -> None:
    """Measure the pipeline that is named on the command line, if one is, and print the table.

    Args:
        about: what the script does.
        measure: gets ``name``, ``store`` and the numbers.
        table: of all pipelines.
        numbers: what else can be given, with defaults.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--name")
    parser.add_argument("--store", default="store")
    for key, default in numbers.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    if args.name:
        measure(args)
    print(table())
