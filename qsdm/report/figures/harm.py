"""Figures of sensitivity: what quantization costs by group, by weight, and as measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.report.figures.canvas import (
    FONT_PT,
    GRID,
    INK,
    PALETTE,
    WIDTH_IN,
    canvas,
    diverging,
    fit,
    legend,
    short,
    tip,
    title,
)
from qsdm.report.results import NotRun, Results, harms, matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABLATIONS = {
    "to_full": ("|", "restored to full precision"),
    "from_full": ("x", "quantized alone"),
}
"""Markers and labels."""

BAR_IN = 0.21  # height of a bar and its gap
NAME_IN = 0.11  # width that a weight's name needs under the heat map
NUM_NAMED = 3
FEWEST_INTERVENTIONS = 3  # a scatter of less says nothing


def sensitivity(
    results: Results, kinds: Sequence[str] = ("role", "block"), width: float | None = None
) -> Figure:
    """Draw the harm of each role, op or block, the most harmful on top.

    Bars are integrated gradients, which add up to the whole harm; markers are the two ablations.

    Args:
        results: of a denoiser.
        kinds: role, op or block; one plot each, side by side.
        width: in inches; by default, 6.5 for each.

    Returns:
        The figure.

    Raises:
        NotRun: attribution has not run.
    """
    attributed = _attributed(results)
    groups = [harms(attributed, kind) for kind in kinds]
    height = 1.0 + BAR_IN * max(map(len, groups))
    figure, side_by_side = canvas(width or 6.5 * len(kinds), height, len(kinds))
    for axes, kind, entries in zip(side_by_side, kinds, groups, strict=True):
        num_hidden = len(attributed["tables"][kind]) - len(entries)
        parts = [f"by {kind}"] * (len(kinds) > 1)
        parts += [f"{num_hidden} less harmful ones not shown"] * (num_hidden > 0)
        _bars(axes, entries, figure.get_figwidth() / len(kinds))
        title(axes, f"harm ({_unit(attributed)})", above=", ".join(parts))
        legend(axes, "lower right")
    return figure


def _bars(axes: Axes, entries: Sequence[Mapping[str, Any]], width: float) -> None:
    names = fit([entry["name"] for entry in entries], width)
    values = [entry["value"] for entry in entries]
    colors = [PALETTE["ours"] if value >= 0 else PALETTE["uniform"] for value in values]
    bars = axes.barh(names, values, color=colors)
    for bar, entry in zip(bars, entries, strict=True):
        tip(bar, [f"{entry['name']}: {short(entry['value'])}; {entry['note']}"])
    for key, (shape, text) in ABLATIONS.items():
        ablated = [entry[key] for entry in entries]
        look: dict[str, Any] = {"marker": shape, "s": 22, "linewidths": 1.1, "zorder": 3}
        tips = [f"{entry['name']}, {text}: {short(entry[key])}" for entry in entries]
        tip(axes.scatter(ablated, names, color=INK, label=text, **look), tips)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def heat(results: Results, width: float = WIDTH_IN, most: int | None = None) -> Figure:
    """Draw the harm of each weight under each method; nothing where a method is not on offer.

    Weights follow the order of the graph. Their names stand below where there is room for them.

    Args:
        results: of a denoiser.
        width: in inches.
        most: number of weights, the most sensitive ones; by default, all.

    Returns:
        The figure.

    Raises:
        NotRun: attribution has not run.
    """
    from matplotlib.collections import PolyCollection

    attributed = _attributed(results)
    weights, methods, nested = matrix(attributed)
    scores = np.array(
        [[np.nan if value is None else value for value in row] for row in nested], dtype=float
    ).reshape(len(weights), len(methods))
    if most is not None and most < len(weights):
        mean = np.nansum(scores, axis=1) / np.maximum(1, (~np.isnan(scores)).sum(axis=1))
        kept = np.sort(np.argsort(-mean)[:most])
        weights, scores = [weights[i] for i in kept], scores[kept]
    # A few weights would fade all others.
    limit = float(np.nanquantile(np.abs(scores), 0.98)) or 1.0
    named = NAME_IN * len(weights) <= width - 2
    longest = 0.06 * max(map(len, weights)) if named else 0.0
    figure, (axes,) = canvas(width, 0.9 + 0.25 * len(methods) + longest)
    cells = [(i, j) for i, j in np.ndindex(scores.shape) if not np.isnan(scores[i, j])]
    squares = [
        [(i - 0.5, j - 0.5), (i + 0.5, j - 0.5), (i + 0.5, j + 0.5), (i - 0.5, j + 0.5)]
        for i, j in cells
    ]
    values = np.array([scores[cell] for cell in cells])
    look: dict[str, Any] = {"linewidths": 0, "antialiased": False}  # no gaps between cells
    map_of_cells = PolyCollection(squares, cmap=diverging(), array=values, **look)
    map_of_cells.set_clim(-limit, limit)
    tip(map_of_cells, [f"{weights[i]}, {methods[j]}: {short(scores[i, j])}" for i, j in cells])
    axes.add_collection(map_of_cells)
    axes.set(xlim=(-0.5, len(weights) - 0.5), ylim=(len(methods) - 0.5, -0.5))
    axes.set_yticks(range(len(methods)), methods)
    axes.grid(visible=False)
    if named:
        axes.set_xticks(range(len(weights)), weights, rotation=90, fontsize=FONT_PT["note"] - 1)
    else:
        axes.set_xticks([])
        title(axes, f"{len(weights)} weights, from input to output")
    bar = figure.colorbar(map_of_cells, ax=axes, shrink=0.9, aspect=12, pad=0.01)
    bar.set_label("harm", fontsize=FONT_PT["label"], color=INK)
    if bar.solids is not None:
        bar.solids.set(rasterized=False, antialiased=False)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=FONT_PT["tick"], color=INK, labelcolor=INK)
    return figure


def interventions(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the attributed harm of weights against their measured harm when quantized alone.

    Equal ones lie on the line. The axes are linear below 1 and logarithmic above; the most harmful
    weights are named.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: attribution has not run, or too few weights were measured alone.
    """
    attributed = _attributed(results)
    pairs = attributed.get("interventions", [])
    if len(pairs) < FEWEST_INTERVENTIONS:
        raise NotRun(results.denoiser, "weights measured alone", "measure alone=METHOD")
    x, y = (np.array([pair[key] for pair in pairs]) for key in ("measured", "integrated_gradients"))
    figure, (axes,) = canvas(width, min(4.6, width))
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())]) * 1.1
    axes.plot(ends, ends, "--", color=PALETTE["full"], linewidth=1.2, zorder=1)
    dots = axes.scatter(x, y, s=28, color=PALETTE["ours"], alpha=0.6, linewidths=0)
    tips = [
        f"{pair['weight']}, {pair['method']}: measured {pair['measured']:.2f}, "
        f"attributed {pair['integrated_gradients']:.2f}"
        for pair in pairs
    ]
    tip(dots, tips)
    for i in np.argsort(-x)[:NUM_NAMED]:
        axes.annotate(
            pairs[i]["weight"],
            (x[i], y[i]),
            xytext=(-6, 6),
            textcoords="offset points",
            ha="right",
            fontsize=FONT_PT["note"],
            color=INK,
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.grid(color=GRID, alpha=0.25, linewidth=0.6)
    title(axes, "measured harm of the weight quantized alone", f"attributed ({_unit(attributed)})")
    return figure


def _unit(attributed: Mapping[str, Any]) -> str:
    """What harms are measured in: predicted fd_lite0, or predicted quality if it has parts."""
    weights = attributed.get("objective", {})
    return (
        f"predicted {next(iter(weights))}"
        if list(weights.values()) == [-1]
        else "predicted quality"
    )


def _attributed(results: Results) -> Mapping[str, Any]:
    if results.sensitivity is None:
        raise NotRun(results.denoiser, "sensitivity", "attribute")
    return results.sensitivity
