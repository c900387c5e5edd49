"""Figures of the predictor and of the labels that it learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qsdm.report.figures.canvas import (
    FONT_PT,
    PALETTE,
    WIDTH_IN,
    canvas,
    tip,
    title,
)
from qsdm.report.results import NotRun, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 24


def predictor(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the rank correlation of each predictor on held-out folds, and the labels' ceiling.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure; bars are means over the folds, lines are standard deviations.

    Raises:
        NotRun: nothing was trained.
    """
    if results.predictor is None:
        raise NotRun(results.denoiser, "predictor", "train")
    scores = results.predictor["scores"]
    mean, std = ([score["srcc"][key] for score in scores.values()] for key in ("mean", "std"))
    figure, (axes,) = canvas(width, 2.6)
    bars = axes.barh(list(scores), mean, xerr=std, color=PALETTE["ours"], ecolor=PALETTE["random"])
    for bar, name, m, s in zip(bars, scores, mean, std, strict=True):
        tip(bar, [f"{name}: {m:.3f} ± {s:.3f}"])
    if noise := results.predictor.get("noise"):
        ceiling = noise["ceiling"]
        axes.axvline(ceiling, color=PALETTE["full"], linestyle="--")
        axes.annotate(
            f"ceiling of the labels {ceiling:.2f}",
            (ceiling, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=FONT_PT["tick"],
            color=PALETTE["full"],
        )
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    title(axes, "Spearman's rank correlation, held out")
    return figure


def bits(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the histogram of the labels' average bits.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: nothing was measured.
    """
    if not results.outcomes:
        raise NotRun(results.denoiser, "labels", "measure")
    counts, edges = np.histogram([label["avg_bits"] for label in results.outcomes], bins=NUM_BINS)
    figure, (axes,) = canvas(width, 2.6)
    center, step = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    bars = axes.bar(center, counts, 0.92 * step, color=PALETTE["random"])
    for bar, middle, count in zip(bars, center, counts, strict=True):
        tip(bar, [f"{middle:.2f} bits: {count}"])
    axes.grid(axis="x", visible=False)
    title(axes, "average bits per weight", "configurations")
    return figure
