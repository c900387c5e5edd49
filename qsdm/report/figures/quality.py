"""Figures of quality against size: what was predicted, what was measured, what was chosen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.qconfig import QuantMethod
from qsdm.report.figures.canvas import (
    FONT_PT,
    INK,
    PALETTE,
    SHADES,
    WIDTH_IN,
    canvas,
    fit,
    legend,
    short,
    tip,
    title,
)
from qsdm.report.results import NotRun, Results, parts_of_blocks
from qsdm.report.summary import FULL, candidates, kind_of, main_metric, rows, shown_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS = "average bits per weight"
BASELINES = {
    "uniform": "uniform",
    "greedy_error": "greedy by error",
    "greedy": "greedy by sensitivity",
}
MARKS = {  # shape, area in pt²
    "ours": ("*", 220),
    "steps": ("D", 60),
    "uniform": ("s", 60),
    "random": ("o", 40),
}
TITLES = {
    "ours": "ours",
    "steps": "ours in bins of steps",
    "uniform": "uniform",
    "random": "random, size of ours",
}


def search(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the predicted front and baselines over the labels and the candidates measured.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: the search has not run.
    """
    figure, (axes,) = canvas(width, 4.6)
    _search(axes, results)
    return figure


def measured(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the measured rows: average bits against the main metric; full precision is a line.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: nothing was realized.
    """
    figure, (axes,) = canvas(width, 4.2)
    _measured(axes, results)
    return figure


def front(results: Results, width: float | None = None) -> Figure:
    """Draw `search` and, where something was realized, `measured` beside it.

    Args:
        results: of a denoiser.
        width: in inches; by default, 8 for one and 13 for two.

    Returns:
        The figure.

    Raises:
        NotRun: the search has not run.
    """
    columns = 2 if rows(results.summary) else 1
    figure, side_by_side = canvas(width or (WIDTH_IN, 13)[columns - 1], 4.6, columns)
    _search(side_by_side[0], results)
    if columns == 2:
        _measured(side_by_side[1], results)
    return figure


def path_of(points: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The best predicted quality of a baseline by bits, whatever its other axes.

    Args:
        points: of the baseline; with an axis of fidelity, some give up quality for it.

    Returns:
        Average bits, ascending, and quality, float64 [P] each.
    """
    bits, quality = (np.array([p[key] for p in points]) for key in ("avg_bits", "predicted"))
    order = np.argsort(bits, kind="stable")
    return bits[order], np.maximum.accumulate(quality[order])


def _search(axes: Axes, results: Results) -> None:
    if results.front is None or not results.front["points"]:
        raise NotRun(results.denoiser, "front", "search")
    labels = [label for label in results.outcomes if label.get("quality") is not None]
    _dots(
        axes,
        labels,
        "quality",
        [f"measured: {label['avg_bits']:.3f} bits, {short(label['quality'])}" for label in labels],
        s=10,
        color=PALETTE["random"],
        alpha=0.6,
        linewidths=0,
        label="measured labels",
    )
    for name, text in BASELINES.items():
        points = results.front.get("baselines", {}).get(name, {}).get("points", [])
        if name != "uniform":
            if points:
                x, y = path_of(points)
                axes.plot(x, y, ":", color=PALETTE[name], label=f"predicted, {text}")
            continue
        tips = [f"{text}: {p['avg_bits']:.3f} bits, {short(p['predicted'])}" for p in points]
        look = {"s": 50, "marker": "s", "color": PALETTE[name], "linewidths": 0}
        _dots(axes, points, "predicted", tips, label=f"predicted, {text}", **look)
    points = results.front["points"]
    bits, mean, std = (
        np.array([point[key] for point in points]) for key in ("avg_bits", "predicted", "std")
    )
    tips = [
        f"front: {b:.3f} bits, {short(m)} ± {s:.2g}"
        for b, m, s in zip(bits, mean, std, strict=True)
    ]
    if names := results.front.get("axes"):
        _surface(axes, points, names[0], tips)
    else:
        low, high = mean - std, mean + std
        axes.fill_between(bits, low, high, color=PALETTE["ours"], alpha=0.15, linewidth=0)
        axes.plot(bits, mean, color=PALETTE["ours"], label="predicted, front")
        _dots(axes, points, "predicted", tips, s=14, color=PALETTE["ours"], linewidths=0)
    stars = candidates(results.summary, results.front)
    tips = [
        f"candidate: {star['avg_bits']:.3f} bits, {short(star['quality'])}, "
        f"predicted {short(star['predicted'])}"
        for star in stars
    ]
    look = {"s": 80, "marker": "*", "color": PALETTE["candidates"], "linewidths": 0, "zorder": 3}
    _dots(axes, stars, "quality", tips, label="measured, candidates of the front", **look)
    title(axes, BITS, "quality (more is better)")
    legend(axes)


def _surface(
    axes: Axes, points: Sequence[Mapping[str, Any]], metric: str, tips: Sequence[str]
) -> None:
    """Scatter a front of three objectives; color is the third."""
    values = [point["metrics"][metric] for point in points]
    told = [f"{tip}, {metric} {short(v)}" for tip, v in zip(tips, values, strict=True)]
    look: dict[str, Any] = {"s": 22, "c": values, "cmap": "viridis", "linewidths": 0, "zorder": 2}
    dots = axes.scatter(
        [point["avg_bits"] for point in points],
        [point["predicted"] for point in points],
        label="predicted, surface",
        **look,
    )
    tip(dots, told)
    bar = axes.figure.colorbar(dots, ax=axes)
    bar.set_label(f"{metric}, predicted", fontsize=FONT_PT["note"], color=INK)


def _dots(
    axes: Axes, points: Sequence[Mapping[str, Any]], y: str, tips: Sequence[str], **look: Any
) -> None:
    """Scatter points by bits and the value called ``y``, with a tip for each."""
    if points:
        values = [point[y] for point in points]
        tip(axes.scatter([point["avg_bits"] for point in points], values, **look), tips)


def _measured(axes: Axes, results: Results) -> None:
    metric = main_metric(results.summary) or ""
    present = [row for row in rows(results.summary) if row["metrics"].get(metric) is not None]
    if all(row["name"] == FULL for row in present):
        raise NotRun(results.denoiser, "measured rows", "realize")
    for kind, (shape, area) in MARKS.items():
        mine = sorted(
            (row for row in present if kind_of(row["name"]) == kind),
            key=lambda row: row["avg_bits"],
        )
        points = [{"avg_bits": r["avg_bits"], metric: r["metrics"][metric]} for r in mine]
        tips = [
            f"{row['name']}: {row['avg_bits']:.3f} bits, {metric} {short(row['metrics'][metric])}"
            for row in mine
        ]
        look = {"s": area, "marker": shape, "color": PALETTE[kind], "linewidths": 0, "zorder": 3}
        _dots(axes, points, metric, tips, label=TITLES[kind], **look)
        for i, row in enumerate(mine if kind == "uniform" else ()):
            axes.annotate(
                row["name"],
                (row["avg_bits"], row["metrics"][metric]),
                textcoords="offset points",
                xytext=(0, 7 if i % 2 else -14),
                ha="center",
                fontsize=FONT_PT["note"],
                color=INK,
            )
    for row in present:
        if row["name"] == FULL:
            line: dict[str, Any] = {"color": PALETTE["full"], "linestyle": "--", "linewidth": 1.2}
            axes.axhline(row["metrics"][metric], label="full precision", **line)
    title(axes, BITS, f"{metric}, measured (less is better)")
    axes.margins(0.1)
    legend(axes)


def mix(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw which methods the chosen configuration gives to each block: shares of its values.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: nothing was realized.
    """
    blocks = parts_of_blocks(results)
    if not blocks or not results.chosen:
        raise NotRun(results.denoiser, "chosen configuration", "realize")
    order = list(dict.fromkeys(block for block, _ in blocks.values()))
    shares: dict[str, dict[str, float]] = {}
    for weight, (block, num_values) in blocks.items():
        of_method = shares.setdefault(results.chosen[weight], dict.fromkeys(order, 0.0))
        total = sum(num for other, num in blocks.values() if other == block)
        of_method[block] += 100 * num_values / total
    figure, (axes,) = canvas(width, 0.9 + 0.21 * len(order))
    names, start = fit(order, width), np.zeros(len(order))
    for method, color in _colors(shares).items():
        share = np.array(list(shares[method].values()))
        bars = axes.barh(names, share, left=start, color=color, label=method)
        for bar, block, value in zip(bars, order, share, strict=True):
            tip(bar, [f"{block}, {method}: {value:.0f} %"])
        start += share
    axes.set_xlim(0, 100)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    title(axes, "share of the block's values, %")
    legend(axes)
    return figure


def _colors(methods: Mapping[str, object]) -> dict[str, str]:
    """A color for each method, shades of one for methods of the same bits, few bits first."""
    colors: dict[str, str] = {}
    widths = {name: QuantMethod.parse(name).bits for name in methods}
    for method in sorted(methods, key=lambda name: (widths[name], name)):
        shades = SHADES.get(widths[method], (PALETTE["random"],))
        same = sum(widths[other] == widths[method] for other in colors)
        colors[method] = shades[same % len(shades)]
    return colors


def pictures(results: Results) -> Figure:
    """Show grids side by side: full precision, the best uniform 4-bit and 3-bit ones, ours.

    Args:
        results: of a denoiser.

    Returns:
        The figure.

    Raises:
        NotRun: nothing was realized.
    """
    from PIL import Image

    names = shown_pictures(results.summary, results.pictures)
    if not names:
        raise NotRun(results.denoiser, "pictures", "realize")
    figure, side_by_side = canvas(4 * len(names), 4.6, len(names))
    for axes, name in zip(side_by_side, names, strict=True):
        axes.imshow(np.asarray(Image.open(io.BytesIO(results.pictures[name])).convert("RGB")))
        title(axes, above={FULL: "full precision"}.get(name, name))
        axes.set_axis_off()
    return figure
