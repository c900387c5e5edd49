"""Figures of sensitivities."""

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
    """Plot the harm of each group by three attributions, the most harmful group first.

    Args:
        rows: of `qsdm.sensitivity.tables.table`.
        kind: of the groups: role, op or block.
        unit: of the harm, for example "predicted fd_lite0".
        limit: maximum number of groups.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: -row["integrated_gradients"])[:limit][::-1]
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    position = np.arange(len(ordered))
    for offset, name in zip((0.26, 0.0, -0.26), COLORS, strict=True):
        axes.barh(
            position + offset,
            [row[name] for row in ordered],
            0.25,
            color=COLORS[name],
            label=LABELS[name],
        )
    names = [f"{row['name']} ({row['num_weights']})" for row in ordered]
    axes.set_yticks(position, names, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel(f"harm ({unit}); number of weights in parentheses")
    num_hidden = len(rows) - len(ordered)
    hidden = f", {num_hidden} less harmful ones not shown" if num_hidden else ""
    axes.set_title(f"Sensitivity per {kind}{hidden}", fontsize=10)
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def against_measured(rows: list[dict[str, Any]], unit: str, named: int = 3) -> Figure:
    """Plot the attributed harm of weights against their measured harm when quantized alone.

    The axes are linear below 1 and logarithmic above.

    Args:
        rows: mappings with weight, method, measured and integrated_gradients.
        unit: of the attributed harm, for example "predicted fd_lite0".
        named: number of weights, the most harmful ones, that are annotated with their names.

    Returns:
        The figure.
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
    """Plot the harm of every weight under every method, in the order of the graph.

    Args:
        sensitivity: scores of all decisions.
        unit: of the harm, for example "predicted fd_lite0".
        limit: maximum number of weights; the most sensitive ones are shown.

    Returns:
        The figure.
    """
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
        f"Harm of each decision ({sensitivity.attribution.replace('_', ' ')}); gray: not on offer",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label=unit, shrink=0.5)
    return figure
