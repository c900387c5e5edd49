"""Figures of a graph: its nodes by depth and block, and where its values are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.graph import Graph
from qsdm.report.figures.canvas import FONT_PT, GRID, PALETTE, canvas, tip, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR_NODES = 40  # edges that skip so many nodes are drawn darker: they are what a reader looks for
MOST_GROUPS = 24


def graph(traced: Graph, width: float = 12.0) -> Figure:
    """Draw the graph: a dot per node, its color the op, its height the block, its size its values.

    Args:
        traced: the graph.
        width: in inches.

    Returns:
        The figure.
    """
    import matplotlib

    figure, (axes,) = canvas(width, width / 2)
    blocks = list(dict.fromkeys(node.block or node.stage for node in traced.nodes))
    position = np.array(
        [[i, blocks.index(node.block or node.stage)] for i, node in enumerate(traced.nodes)],
        dtype=float,
    )
    for a, b in traced.edges:
        far = abs(position[a, 1] - position[b, 1]) > 1 or b - a > FAR_NODES
        look: dict[str, Any] = {
            "color": GRID,
            "linewidth": 0.5,
            "alpha": 0.7 if far else 0.3,
            "zorder": 1,
        }
        axes.plot(*position[[a, b]].T, **look)
    sizes = np.array(
        [6 + 3 * np.sqrt(node.weight.numel) / 10 if node.weight else 6 for node in traced.nodes]
    )
    colors = matplotlib.colormaps["tab20"]
    for k, op in enumerate(sorted({str(node.op) for node in traced.nodes})):
        mine = [i for i, node in enumerate(traced.nodes) if node.op == op]
        x, y = position[mine].T
        area = np.minimum(sizes[mine], 120)
        tip(
            axes.scatter(x, y, s=area, color=colors(k % 20), label=op, zorder=2),
            [traced.nodes[i].name for i in mine],
        )
    axes.set_yticks(range(len(blocks)), [block or "·" for block in blocks], fontsize=6)
    axes.invert_yaxis()
    title(axes, "nodes, from input to output")
    axes.legend(frameon=False, fontsize=FONT_PT["tick"], ncols=2)
    return figure


def weights(traced: Graph, width: float = 12.0) -> Figure:
    """Draw the number of quantizable values by role and by block.

    Args:
        traced: the graph.
        width: in inches.

    Returns:
        The figure.
    """
    figure, side_by_side = canvas(width, 5, columns=2)
    for axes, kind in zip(side_by_side, ("role", "block"), strict=True):
        sums: dict[str, int] = {}
        for weight in traced.weights:
            group = str(getattr(traced.node_of(weight.name), kind)) or "other"
            sums[group] = sums.get(group, 0) + weight.numel
        order = sorted(sums, key=sums.__getitem__)[-MOST_GROUPS:]
        bars = axes.barh(order, [sums[group] / 1e6 for group in order], color=PALETTE["ours"])
        for bar, group in zip(bars, order, strict=True):
            tip(bar, [f"{group}: {sums[group]:,} values"])
        title(axes, "million values", above=f"quantizable values by {kind}")
        axes.grid(axis="y", visible=False)
    return figure
