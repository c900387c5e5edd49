"""The table of a sampler's steps: what quantization within one bin of them does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsdm.report.summary import head
from qsdm.store.schemas import StepRow, StepTable


def step_table(
    table: StepTable | None, about: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]] | None:
    """Tabulate what each bin suffers, with paired standard errors.

    Args:
        table: of the bins; None if they were not probed.
        about: label and larger_is_better of metrics, as far as they are known.

    Returns:
        Heads and cells: differences from full precision, or values of the metrics that it does not
        have; None without a table.
    """
    if table is None:
        return None
    metrics = list(table["rows"][0]["metrics"])
    cells = [
        [row["name"], str(row["num_steps"]), *(_cell(row, metric) for metric in metrics)]
        for row in table["rows"]
    ]
    return ["quantized in", "steps", *(head(name, about.get(name)) for name in metrics)], cells


def _cell(row: StepRow, metric: str) -> str:
    if (pair := row["differences"].get(metric)) is not None:
        value, error = f"{pair[0]:+.4g}", pair[1]
    elif (own := row["metrics"][metric]) is not None:
        value, error = f"{own:.4g}", row["standard_errors"].get(metric)
    else:
        return "–"
    return value if error is None else f"{value} ± {error:.2g}"
