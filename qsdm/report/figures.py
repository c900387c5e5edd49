"""Matplotlib figures for notebooks, the README and PNG files, from the same plain data as the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.graph import Graph
from qsdm.report.charts import COLOURS
from qsdm.report.results import (
    FULL,
    Results,
    candidates,
    harms,
    kind_of,
    main_metric,
    matrix,
    rows,
    shown_pictures,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def axes(width: float = 8, height: float = 4.5, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that no window and no global state knows, and its axes side by side."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    found = list(made.subplots(1, columns, squeeze=False)[0])
    for ax in found:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#8b93a1", alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return made, found


def front(results: Results) -> Figure:
    """The predicted front with its fold deviation and baselines over the measured labels; beside it the measured rows.

    Raises:
        ValueError: the search has not run.
    """
    if results.front is None:
        raise ValueError(
            f"no front of {results.denoiser!r}: run python -m qsdm.search +model={results.denoiser}"
        )
    measured = rows(results.summary)
    made, found = axes(13 if measured else 8, columns=2 if measured else 1)
    _search(found[0], results.front, results.outcomes, candidates(results))
    if measured:
        _measured(found[1], measured, main_metric(results.summary) or "")
    return made


def _search(
    ax: Axes,
    search: Mapping[str, Any],
    labels: Sequence[Mapping[str, Any]],
    realized: Sequence[Mapping[str, Any]],
) -> None:
    known = [label for label in labels if label.get("quality") is not None]
    x, y = [label["avg_bits"] for label in known], [label["quality"] for label in known]
    if known:
        ax.scatter(x, y, s=9, color=COLOURS["random"], alpha=0.6, label="measured labels")
    titles = {
        "uniform": "uniform",
        "greedy_error": "greedy by error",
        "greedy": "greedy by sensitivity",
    }
    for name, title in titles.items():
        points = search["baselines"].get(name, {}).get("points", [])
        style: dict[str, Any] = (
            {"marker": "s", "linestyle": ""} if name == "uniform" else {"linestyle": ":"}
        )
        x, y = [p["avg_bits"] for p in points], [p["predicted"] for p in points]
        ax.plot(x, y, color=COLOURS[name], label=f"predicted, {title}", **style)
    bits, mean, std = (
        np.array([p[key] for p in search["points"]]) for key in ("avg_bits", "predicted", "std")
    )
    ax.fill_between(bits, mean - std, mean + std, color=COLOURS["ours"], alpha=0.15, linewidth=0)
    ax.plot(bits, mean, color=COLOURS["ours"], label="predicted, front")
    if realized:
        x, y = [c["avg_bits"] for c in realized], [c["quality"] for c in realized]
        ax.scatter(
            x,
            y,
            s=60,
            marker="*",
            color=COLOURS["candidates"],
            label="measured, candidates",
            zorder=3,
        )
    ax.set(xlabel="average bits per weight", ylabel="quality (more is better)")
    ax.legend(frameon=False, fontsize=8)


def _measured(ax: Axes, measured: Sequence[Mapping[str, Any]], metric: str) -> None:
    for i, row in enumerate(measured):
        kind, value = kind_of(row["name"]), row["metrics"].get(metric)
        if value is None:
            continue
        if row["name"] == FULL:
            ax.axhline(
                value, color=COLOURS["fp"], linestyle="--", linewidth=1.2, label="full precision"
            )
            continue
        mark = {"ours": "*", "uniform": "s", "random": "o"}[kind]
        size = {"ours": 220, "uniform": 60, "random": 40}[kind]
        name = row["name"] if kind == "uniform" else None
        title = {"ours": "ours", "random": "random, size of ours"}.get(kind)
        drawn = ax.get_legend_handles_labels()[1]
        label = title if title not in drawn else None
        ax.scatter(
            row["avg_bits"], value, s=size, marker=mark, color=COLOURS[kind], label=label, zorder=3
        )
        if name:
            ax.annotate(
                name,
                (row["avg_bits"], value),
                textcoords="offset points",
                xytext=(0, 7 if i % 2 else -14),
                ha="center",
                fontsize=8,
            )
    ax.set(xlabel="average bits per weight", ylabel=f"{metric}, measured (less is better)")
    ax.margins(0.08)
    ax.legend(frameon=False, fontsize=8)


def sensitivity(results: Results, kinds: Sequence[str] = ("role", "block")) -> Figure:
    """Bars per role and per block (or op).

    Raises:
        ValueError: attribution has not run.
    """
    tables = _sensitivity(results)
    groups = [harms(tables, kind) for kind in kinds]
    made, found = axes(6 * len(kinds), 1.2 + 0.26 * max(map(len, groups)), columns=len(kinds))
    for ax, kind, entries in zip(found, kinds, groups, strict=True):
        values = [entry["value"] for entry in reversed(entries)]
        colours = [COLOURS["ours"] if value >= 0 else COLOURS["uniform"] for value in values]
        ax.barh([entry["name"] for entry in reversed(entries)], values, color=colours)
        ax.set(xlabel="harm in predicted quality", title=f"by {kind}")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", labelsize=8)
    return made


def heat(results: Results) -> Figure:
    """Harm of each weight under each method; white where a method is not on offer.

    Raises:
        ValueError: attribution has not run.
    """
    names, methods, values = matrix(_sensitivity(results))
    array = np.array(
        [[np.nan if value is None else value for value in row] for row in values], dtype=float
    )
    limit = float(np.nanquantile(np.abs(array), 0.98)) or 1.0
    made, (ax,) = axes(7, min(2 + 0.09 * len(names), 14))
    image = ax.imshow(
        array, aspect="auto", cmap="RdYlGn_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    ax.set_xticks(range(len(methods)), methods, fontsize=8)
    ax.set_ylabel(f"{len(names)} weights, from input to output")
    ax.grid(visible=False)
    made.colorbar(image, ax=ax, label="harm in predicted quality", shrink=0.6)
    return made


def graph(traced: Graph) -> Figure:
    """The graph by depth: a dot per node, its colour the op, its height the block; weights are larger by their
    values.
    """
    made, (ax,) = axes(12, 6)
    blocks = list(dict.fromkeys(node.block or node.stage for node in traced.nodes))
    place = np.array(
        [[i, blocks.index(node.block or node.stage)] for i, node in enumerate(traced.nodes)],
        dtype=float,
    )
    for a, b in traced.edges:
        far = abs(place[a, 1] - place[b, 1]) > 1 or b - a > 40
        ax.plot(
            *place[[a, b]].T, color="#8b93a1", linewidth=0.5, alpha=0.7 if far else 0.3, zorder=1
        )
    ops = sorted({str(node.op) for node in traced.nodes})
    sizes = np.array(
        [6 + 3 * np.sqrt(node.weight.numel) / 10 if node.weight else 6 for node in traced.nodes]
    )
    import matplotlib

    colours = matplotlib.colormaps["tab20"]
    for k, op in enumerate(ops):
        mine = [i for i, node in enumerate(traced.nodes) if node.op == op]
        x, y = place[mine].T
        ax.scatter(x, y, s=np.minimum(sizes[mine], 120), color=colours(k % 20), label=op, zorder=2)
    ax.set_yticks(range(len(blocks)), [block or "·" for block in blocks], fontsize=6)
    ax.invert_yaxis()
    ax.set(xlabel="nodes, from input to output")
    ax.legend(frameon=False, fontsize=8, ncols=2)
    return made


def weights(traced: Graph) -> Figure:
    """Quantizable values by role and by block."""
    made, found = axes(12, 5, columns=2)
    for ax, kind in zip(found, ("role", "block"), strict=True):
        sums: dict[str, int] = {}
        for weight in traced.weights:
            group = str(getattr(traced.node_of(weight.name), kind)) or "other"
            sums[group] = sums.get(group, 0) + weight.numel
        order = sorted(sums, key=sums.__getitem__)[-24:]
        ax.barh(order, [sums[group] / 1e6 for group in order], color=COLOURS["ours"])
        ax.set(xlabel="million values", title=f"quantizable values by {kind}")
        ax.tick_params(axis="y", labelsize=7)
        ax.grid(axis="y", visible=False)
    return made


def predictor(results: Results) -> Figure:
    """Held-out rank correlation of the predictors, mean and deviation over the folds, and the ceiling of the labels.

    Raises:
        ValueError: nothing was trained.
    """
    if results.predictor is None:
        raise ValueError(
            f"no predictor of {results.denoiser!r}: run python -m qsdm.train +model={results.denoiser}"
        )
    made, (ax,) = axes(7, 3)
    scores = [
        (name, found["srcc"]["mean"], found["srcc"]["std"])
        for name, found in results.predictor["scores"].items()
    ]
    names, mean, std = zip(*reversed(scores), strict=True)
    ax.barh(names, mean, xerr=std, color=COLOURS["ours"], ecolor=COLOURS["random"])
    if noise := results.predictor.get("noise"):
        ax.axvline(
            noise["ceiling"], color=COLOURS["fp"], linestyle="--", label="ceiling of the labels"
        )
        ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set(xlabel="Spearman's rank correlation, held out")
    ax.grid(axis="y", visible=False)
    return made


def pictures(results: Results) -> Figure:
    """The grids side by side: full precision, the best uniform 4-bit and 3-bit ones, ours.

    Raises:
        ValueError: nothing was realized.
    """
    import io

    from PIL import Image

    names = shown_pictures(results)
    if not names:
        raise ValueError(
            f"no pictures of {results.denoiser!r}: run python -m qsdm.realize +model={results.denoiser}"
        )
    made, found = axes(4 * len(names), 4.6, columns=len(names))
    for ax, name in zip(found, names, strict=True):
        ax.imshow(np.asarray(Image.open(io.BytesIO(results.pictures[name])).convert("RGB")))
        ax.set_title({"fp": "full precision"}.get(name, name))
        ax.set_axis_off()
    return made


def _sensitivity(results: Results) -> Mapping[str, Any]:
    if results.sensitivity is None:
        raise ValueError(
            f"no sensitivity of {results.denoiser!r}: run python -m qsdm.attribute +model={results.denoiser}"
        )
    return results.sensitivity
