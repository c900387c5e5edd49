"""What quantization within one bin of a sampler's steps does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsdm.report.figures.canvas import INK, PALETTE, canvas, title
from qsdm.store.schemas import StepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("ours", "uniform", "full", "candidates", "random", "harm")


def steps(table: StepTable, metric: str) -> Figure:
    """Draw what each bin of steps does to a metric.

    Args:
        table: of the bins.
        metric: its name.

    Returns:
        The figure; whiskers are paired standard errors.
    """
    figure, (axes,) = canvas(5, 3.2)
    draw_bins(axes, [table], metric)
    title(axes, "quantized steps", f"{metric}, {_what(table, metric)}", table["denoiser"])
    return figure


def draw_bins(axes: Axes, tables: Sequence[StepTable], metric: str) -> None:
    """Draw bars of several denoisers side by side, bin by bin.

    Args:
        axes: to be drawn into.
        tables: of equally many bins.
        metric: its name.
    """
    width = 0.8 / len(tables)
    for i, table in enumerate(tables):
        rows = table["rows"][:-1]
        pairs = [
            row["differences"].get(metric)
            or [row["metrics"][metric], row["standard_errors"].get(metric)]
            for row in rows
        ]
        values = [float("nan") if value is None else value for value, _ in pairs]
        errors = [error or 0.0 for _, error in pairs]
        places = [number + (i - (len(tables) - 1) / 2) * width for number in range(len(rows))]
        color = PALETTE[COLORS[i % len(COLORS)]]
        axes.bar(
            places,
            values,
            0.9 * width,
            yerr=errors,
            color=color,
            ecolor=INK,
            label=table["denoiser"],
        )
        axes.set_xticks(range(len(rows)), [row["name"] for row in rows])


def _what(table: StepTable, metric: str) -> str:
    is_change = metric in table["rows"][0]["differences"]
    return "minus full precision's" if is_change else "to full precision"
