"""Plotly figures as dicts (data and layout), for the page and for W&B.

Colours are mid-tones that read on light and on dark grounds; the page sets the colours of text and grid by its theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qsdm.report.results import FULL, kind_of

COLOURS = {
    "ours": "#3b76f6",
    "uniform": "#e8912d",
    "random": "#8b93a1",
    "fp": "#2aa876",
    "greedy": "#2aa876",
    "greedy_error": "#b8860b",
    "candidates": "#c2418f",
}
DIVERGING = [[0.0, "#2aa876"], [0.5, "rgba(139,147,161,0.12)"], [1.0, "#e0533d"]]
SEQUENTIAL = [[0.0, "rgba(59,118,246,0.06)"], [0.5, "#8a63d2"], [1.0, "#e0533d"]]
Figure = dict[str, Any]


def figure(data: Sequence[Mapping[str, Any]], height: int = 380, **layout: Any) -> Figure:
    """What all figures share."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "bargap": 0.25,
        "xaxis": {},
        "yaxis": {},
    }
    layout = base | layout
    for axis in ("xaxis", "yaxis"):
        if "title" in layout[axis]:
            layout[axis]["title"] = dict(layout[axis]["title"]) | {
                "font": {"size": 12},
                "standoff": 8,
            }
    return {"data": [dict(trace) for trace in data], "layout": layout}


def measured(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure | None:
    """Measured rows: average bits against a metric; full precision as a line."""
    rows = [row for row in rows if row["metrics"].get(metric) is not None]
    quantized = [row for row in rows if row["name"] != FULL]
    if not quantized:
        return None
    names = {"uniform": "uniform", "random": "random, size of ours", "ours": "ours"}
    data = []
    for kind, title in names.items():
        mine = sorted(
            (row for row in quantized if kind_of(row["name"]) == kind),
            key=lambda row: row["avg_bits"],
        )
        if not mine:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if kind == "uniform" else "markers",
                "name": title,
                "x": [row["avg_bits"] for row in mine],
                "y": [row["metrics"][metric] for row in mine],
                "text": [row["name"] for row in mine],
                "textposition": [
                    "top center" if i % 2 else "bottom center" for i in range(len(mine))
                ],
                "textfont": {"size": 11},
                "hovertemplate": "%{text}<br>%{x:.3f} bits<br>"
                + metric
                + " %{y:.4g}<extra></extra>",
                "marker": {
                    "color": COLOURS[kind],
                    "size": {"ours": 17, "uniform": 11, "random": 9}[kind],
                    "symbol": {"ours": "star", "uniform": "square", "random": "circle"}[kind],
                },
            }
        )
    shapes = []
    annotations = []
    for row in rows:
        if row["name"] == FULL:
            value = row["metrics"][metric]
            line = {"color": COLOURS["fp"], "dash": "dash", "width": 1.5}
            shapes = [
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": value,
                    "y1": value,
                    "line": line,
                }
            ]
            note = {
                "text": "full precision",
                "showarrow": False,
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
            }
            annotations = [
                note | {"y": value, "yanchor": "top", "font": {"size": 11, "color": COLOURS["fp"]}}
            ]
    axis = {"title": {"text": f"{metric} (less is better)"}, "rangemode": "tozero"}
    x = {"title": {"text": "average bits per weight"}}
    return figure(data, 420, xaxis=x, yaxis=axis, shapes=shapes, annotations=annotations)


def search(
    front: Mapping[str, Any] | None,
    labels: Sequence[Mapping[str, Any]] = (),
    candidates: Sequence[Mapping[str, Any]] = (),
) -> Figure | None:
    """The predicted front with its fold deviation, the predicted baselines, and what random configurations and the
    front's candidates measured.
    """
    if not front or not front["points"]:
        return None
    points = front["points"]
    x = [p["avg_bits"] for p in points]
    mean, std = (np.array([p[key] for p in points]) for key in ("predicted", "std"))
    data: list[dict[str, Any]] = []
    known = [label for label in labels if label.get("quality") is not None]
    if known:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured labels",
                "x": [label["avg_bits"] for label in known],
                "y": [label["quality"] for label in known],
                "marker": {"color": COLOURS["random"], "size": 5, "opacity": 0.55},
                "hovertemplate": "measured<br>%{x:.3f} bits<br>%{y:.4g}<extra></extra>",
            }
        )
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*x, *x[::-1]],
            "y": [*(mean + std).tolist(), *(mean - std)[::-1].tolist()],
            "fill": "toself",
            "fillcolor": "rgba(59,118,246,0.15)",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    )
    titles = {
        "uniform": "uniform",
        "greedy_error": "greedy by error",
        "greedy": "greedy by sensitivity",
    }
    for name, title in titles.items():
        baseline = front.get("baselines", {}).get(name)
        if not baseline:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers" if name == "uniform" else "lines",
                "name": f"predicted, {title}",
                "x": [p["avg_bits"] for p in baseline["points"]],
                "y": [p["predicted"] for p in baseline["points"]],
                "line": {"color": COLOURS[name], "width": 1.5, "dash": "dot"},
                "marker": {"color": COLOURS[name], "size": 9, "symbol": "square"},
                "hovertemplate": title + "<br>%{x:.3f} bits<br>%{y:.4g}<extra></extra>",
            }
        )
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "predicted, front",
            "x": x,
            "y": mean.tolist(),
            "customdata": std.tolist(),
            "line": {"color": COLOURS["ours"], "width": 2},
            "marker": {"color": COLOURS["ours"], "size": 5},
            "hovertemplate": "front<br>%{x:.3f} bits<br>%{y:.4g} ± %{customdata:.2g}<extra></extra>",
        }
    )
    if candidates:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured, candidates of the front",
                "x": [c["avg_bits"] for c in candidates],
                "y": [c["quality"] for c in candidates],
                "customdata": [c["predicted"] for c in candidates],
                "marker": {"color": COLOURS["candidates"], "size": 10, "symbol": "star"},
                "hovertemplate": "candidate<br>%{x:.3f} bits<br>%{y:.4g}, predicted %{customdata:.4g}<extra></extra>",
            }
        )
    y = {"title": {"text": "quality (more is better)"}}
    return figure(data, 460, xaxis={"title": {"text": "average bits per weight"}}, yaxis=y)


def bars(entries: Sequence[Mapping[str, Any]], unit: str) -> Figure | None:
    """Horizontal bars, the largest on top.

    Args:
        entries: name, value, and optionally std and note (shown on hover).
    """
    if not entries:
        return None
    order = sorted(entries, key=lambda entry: entry["value"])
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": [entry["name"] for entry in order],
        "x": [entry["value"] for entry in order],
        "text": [entry.get("note", "") for entry in order],
        "textposition": "none",
        "marker": {
            "color": [COLOURS["ours"] if e["value"] >= 0 else COLOURS["uniform"] for e in order]
        },
        "hovertemplate": "%{y}: %{x:.4g}<br>%{text}<extra></extra>",
    }
    if any(entry.get("std") is not None for entry in order):
        bar = {
            "type": "data",
            "array": [entry.get("std") or 0 for entry in order],
            "thickness": 1,
            "width": 3,
        }
        trace["error_x"] = bar | {"color": COLOURS["random"]}
    height = max(220, 24 * len(order) + 80)
    y = {"automargin": True, "showgrid": False, "ticksuffix": "  ", "tickfont": {"size": 12}}
    return figure([trace], height, xaxis={"title": {"text": unit}}, yaxis=y)


def heat(
    names: Sequence[str],
    methods: Sequence[str],
    values: Sequence[Sequence[float | None]],
    unit: str,
) -> Figure | None:
    """Weights by methods, in the order of the graph; None where a method is not on offer."""
    if not names or not methods:
        return None
    array = np.array(
        [[np.nan if value is None else value for value in row] for row in values], dtype=float
    ).T
    scale = float(np.nanquantile(np.abs(array), 0.98)) or 1.0  # a few weights would fade all others
    signed = bool((array < 0).any())
    few = len(names) <= 40
    trace = {
        "type": "heatmap",
        "x": list(names),
        "y": list(methods),
        "z": [[None if np.isnan(v) else float(v) for v in row] for row in array],
        "zmin": -scale if signed else 0,
        "zmax": scale,
        "colorscale": DIVERGING if signed else SEQUENTIAL,
        "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "%{x}<br>%{y}: %{z:.4g}<extra></extra>",
        "xgap": 1 if few else 0,
        "ygap": 1,
    }
    x = {
        "showticklabels": few,
        "tickangle": -60,
        "automargin": True,
        "showgrid": False,
        "ticks": "",
    }
    if not few:
        x |= {"title": {"text": f"{len(names)} weights, from input to output"}}
    y = {"autorange": "reversed", "automargin": True, "showgrid": False, "ticksuffix": "  "}
    return figure(
        [trace],
        110 + 32 * len(methods),
        xaxis=x,
        yaxis=y,
        margin={"l": 40, "r": 8, "t": 8, "b": 40},
    )


def interventions(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Measured harm of each weight quantized alone against what is attributed to it; equal ones lie on the line."""
    if len(rows) < 3:
        return None
    x, y = ([row[key] for row in rows] for key in ("measured", "integrated_gradients"))
    ends = [min(*x, *y), max(*x, *y)]
    line = {"color": COLOURS["fp"], "dash": "dash", "width": 1.5}
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "text": [f"{row['weight']}, {row['method']}" for row in rows],
        "marker": {"color": COLOURS["ours"], "size": 8, "opacity": 0.6},
        "hovertemplate": "%{text}<br>measured %{x:.2f}, attributed %{y:.2f}<extra></extra>",
    }
    equal = {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "line": line,
        "hoverinfo": "skip",
    }
    axes = {
        "xaxis": {"title": {"text": "measured harm"}},
        "yaxis": {"title": {"text": "attributed harm"}},
    }
    return figure([equal, dots], 340, showlegend=False, **axes)


def predictor(entries: Sequence[Mapping[str, Any]], ceiling: float | None = None) -> Figure | None:
    """Rank correlation of each predictor over the folds, and the ceiling that the labels' noise sets."""
    if not entries:
        return None
    shown = [{"name": e["name"], "value": e["srcc"], "std": e.get("srcc_std")} for e in entries]
    made = bars(shown, "Spearman's rank correlation, held out")
    if made is None or ceiling is None:
        return made
    line = {"color": COLOURS["fp"], "dash": "dash", "width": 1.5}
    made["layout"]["shapes"] = [
        {
            "type": "line",
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "x0": ceiling,
            "x1": ceiling,
            "line": line,
        }
    ]
    note = {
        "text": f"ceiling {ceiling:.2f}",
        "showarrow": False,
        "x": ceiling,
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
    }
    made["layout"]["annotations"] = [note | {"font": {"size": 11, "color": COLOURS["fp"]}}]
    made["layout"]["margin"] = {"l": 56, "r": 16, "t": 28, "b": 48}
    return made


def bits(labels: Sequence[Mapping[str, Any]], num_bins: int = 24) -> Figure | None:
    """Histogram of the labels' average bits."""
    if not labels:
        return None
    counts, edges = np.histogram([label["avg_bits"] for label in labels], bins=num_bins)
    trace = {
        "type": "bar",
        "x": ((edges[1:] + edges[:-1]) / 2).round(4).tolist(),
        "y": counts.tolist(),
        "marker": {"color": COLOURS["random"]},
        "hovertemplate": "%{x:.2f} bits: %{y}<extra></extra>",
    }
    x, y = {"title": {"text": "average bits per weight"}}, {"title": {"text": "configurations"}}
    return figure([trace], 260, xaxis=x, yaxis=y, bargap=0.08)


def mix(chosen: Mapping[str, str] | None, blocks: Mapping[str, tuple[str, int]]) -> Figure | None:
    """Which methods the chosen configuration gives to each block: shares of its values, stacked.

    Args:
        chosen: method by weight.
        blocks: (block, number of values) by weight, in the order of the graph.
    """
    if not chosen or not blocks:
        return None
    order = list(dict.fromkeys(block for block, _ in blocks.values()))
    methods = sorted(set(chosen.values()), key=lambda m: (m.split("-")[1], m))
    total = {block: sum(n for other, n in blocks.values() if other == block) for block in order}
    shades = {"3": ["#e8912d", "#d9662b", "#f3b562"], "4": ["#3b76f6", "#6d5bd0", "#7fb2f7"]}
    used = {"3": 0, "4": 0}
    data = []
    for method in methods:
        width = method.split("-")[1]
        palette = shades.get(width, ["#8b93a1"])
        colour = palette[used.get(width, 0) % len(palette)]
        used[width] = used.get(width, 0) + 1
        share = [
            100
            * sum(n for w, (other, n) in blocks.items() if other == b and chosen.get(w) == method)
            / total[b]
            for b in order
        ]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": method,
                "y": order,
                "x": share,
                "marker": {"color": colour},
                "hovertemplate": "%{y}<br>" + method + ": %{x:.0f} %<extra></extra>",
            }
        )
    y = {
        "autorange": "reversed",
        "automargin": True,
        "showgrid": False,
        "ticksuffix": "  ",
        "tickfont": {"size": 12},
    }
    x = {"title": {"text": "share of the block's weights, %"}, "range": [0, 100]}
    return figure(data, max(240, 22 * len(order) + 110), barmode="stack", xaxis=x, yaxis=y)
