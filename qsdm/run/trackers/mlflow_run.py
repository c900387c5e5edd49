"""MLflow: ``tracker=mlflow``, to where ``MLFLOW_TRACKING_URI`` says, else to MLflow's default.

Numbers become metrics, texts tags, everything else artifacts: tables as JSON with columns and data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.run.trackers import Start, columns_of, is_table, missing

EXPERIMENT = "qsdm"


class MlflowRun:
    """An open run of MLflow."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def log(self, values: Mapping[str, Any]) -> None:
        """Send values.

        Args:
            values: see `qsdm.text.Log`; every key has a slash.
        """
        import mlflow

        for key, value in values.items():
            name = re.sub(r"[^\w./ -]", "_", key)
            if isinstance(value, Path):
                log = mlflow.log_artifacts if value.is_dir() else mlflow.log_artifact
                log(str(value), name)
            elif is_table(value):
                columns, rows = columns_of(value)
                mlflow.log_dict({"columns": columns, "data": rows}, f"{name}.json")
            elif isinstance(value, int | float) and math.isfinite(value):
                step = self._steps[name] = self._steps.get(name, -1) + 1
                mlflow.log_metric(name, float(value), step=step)
            elif isinstance(value, str):
                mlflow.set_tag(name, value)

    def finish(self, succeeded: bool) -> None:
        """Close the run.

        Args:
            succeeded: whether the command did.
        """
        import mlflow

        mlflow.end_run("FINISHED" if succeeded else "FAILED")


def start(begin: Start) -> MlflowRun:
    """Open a run.

    Args:
        begin: what it is told.

    Returns:
        The run.

    Raises:
        BadInput: MLflow is not installed.
    """
    try:
        import mlflow
    except ImportError as error:
        raise missing("mlflow") from error
    mlflow.set_experiment(EXPERIMENT)
    tags = {"command": begin.command} | ({"group": begin.group} if begin.group else {})
    mlflow.start_run(run_name=begin.command, tags=tags)
    mlflow.log_dict(begin.config, "config.json")
    return MlflowRun()
