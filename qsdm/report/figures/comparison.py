"""Figures of a comparison of pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.report.figures.canvas import PALETTE, WIDTH_IN, canvas, legend, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("ours", "uniform", "candidates", "full", "harm", "greedy_error", "random")


def per_drawing(content: Mapping[str, Any], metric: str, width: float = WIDTH_IN) -> Figure:
    """Draw a metric of fidelity of every picture, sorted, a line for each pipeline.

    Args:
        content: of compare.json.
        metric: one of its metrics of fidelity.
        width: in inches.

    Returns:
        The figure; the pictures that changed most are at the left.
    """
    figure, (axes,) = canvas(width, 3.2)
    about = content["metrics"][metric]
    for i, entry in enumerate(content["pipelines"][1:]):
        values = np.sort(entry["per_drawing"][metric])
        values = values if about["larger_is_better"] else values[::-1]
        share = 100 * (np.arange(len(values)) + 0.5) / len(values)
        color = PALETTE[COLORS[i % len(COLORS)]]
        axes.plot(share, values, color=color, label=entry["name"], linewidth=1.6)
    axes.set_xlim(0, 100)
    title(axes, "share of the pictures, %", about["label"])
    legend(axes)
    return figure
