"""Sensitivities as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"integrated_gradients": "#3b6ea5", "to_full": "#e0a030", "from_full": "#7a9e5a"}
LABELS = {
    "integrated_gradients": "integrated gradients",
    "to_full": "ablation: back to full precision",
    "from_full": "ablation: quantized alone",
}


def bars(rows: list[dict[str, Any]], kind: str, unit: str, limit: int = 24) -> Figure:
    """Harm of each group by three attributions, the greatest first.

    Args:
        rows: of `qsdm.sensitivity.tables.table`.
        unit: of the harm, as "predicted fd_lite0".
    """
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: -row["integrated_gradients"])[:limit][::-1]
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(ordered))
    for offset, name in zip((0.26, 0.0, -0.26), COLORS, strict=True):
        axes.barh(
            place + offset,
            [row[name] for row in ordered],
            0.25,
            color=COLORS[name],
            label=LABELS[name],
        )
    axes.set_yticks(place, [f"{row['name']} ({row['num_weights']})" for row in ordered], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel(f"harm ({unit}); number of weights in brackets")
    left_out = len(rows) - len(ordered)
    axes.set_title(
        f"Sensitivity per {kind}" + (f", {left_out} smaller ones left out" if left_out else ""),
        fontsize=10,
    )
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def against_measured(rows: list[dict[str, Any]], unit: str, named: int = 3) -> Figure:
    """Attributed harm of weights against what was measured of each, quantized alone; linear below 1, logarithmic above.

    Args:
        rows: weight, method, measured, integrated_gradients.
        named: how many of the most harmful ones get their name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    x, y = (np.array([row[key] for row in rows]) for key in ("measured", "integrated_gradients"))
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())]) * 1.1
    axes.plot(ends, ends, "--", color="gray", linewidth=1, zorder=0)
    axes.scatter(x, y, s=26, color=COLORS["integrated_gradients"], alpha=0.6, linewidths=0)
    for i in np.argsort(-x)[:named]:
        axes.annotate(
            rows[i]["weight"],
            (x[i], y[i]),
            (-6, 6),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )
    for set_scale in (axes.set_xscale, axes.set_yscale):
        set_scale("symlog", linthresh=1)
    axes.set_xlabel("measured harm of the weight quantized alone")
    axes.set_ylabel(f"attributed harm ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def heat_map(sensitivity: Sensitivity, unit: str, limit: int = 120) -> Figure:
    """Harm of every weight, in the graph's order, under every method; the ``limit`` most sensitive ones of many."""
    from matplotlib.figure import Figure

    chosen = np.sort(np.argsort(-np.nan_to_num(sensitivity.per_weight))[:limit])
    scores, methods = sensitivity.scores[chosen], [str(method) for method in sensitivity.methods]
    figure = Figure(figsize=(7, 1.5 + 0.15 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    top = max(float(np.nanquantile(np.abs(scores), 0.98)), 1e-12)
    masked = np.ma.masked_invalid(scores)
    image = axes.imshow(
        masked, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest"
    )
    axes.set_facecolor("#dddddd")
    axes.set_xticks(range(len(methods)), methods, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(chosen)), [sensitivity.weights[i] for i in chosen], fontsize=5)
    axes.set_title(
        f"Harm of each decision ({sensitivity.attribution.replace('_', ' ')}); grey: not on offer",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label=unit, shrink=0.5)
    return figure
