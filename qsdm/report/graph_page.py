"""A graph as one self-contained HTML page: fold stages and blocks, color, search, see details.

The page loads nothing; its drawing is a canvas, so that some thousand nodes stay smooth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import Graph, Node
from qsdm.qconfig.cost import MethodTable
from qsdm.store.files import write_text

TEMPLATE = Path(__file__).with_name("graph_page.html.j2")
Values = Mapping[str, Mapping[str, float]]
"""What the nodes can be colored by: label => weight name => value."""


def write(path: Path, graph: Graph, values: Values | None = None) -> None:
    """Write the page of a graph.

    Args:
        path: of the HTML file.
        graph: of a denoiser.
        values: errors, sensitivities; the page opens with the first of them.

    Raises:
        StoreError: it cannot be written.
    """
    write_text(path, render(graph, values))


def errors(graph: Graph, table: MethodTable) -> dict[str, dict[str, float]]:
    """Read the relative error of every weight under each method.

    The slices of a weight that the table has whole get its error.

    Args:
        graph: of the denoiser.
        table: of a calibration.

    Returns:
        Errors by method and weight.
    """
    row = {name: i for i, name in enumerate(table.weights)}
    values: dict[str, dict[str, float]] = {}
    for weight in graph.weights:
        i = row.get(weight.name, row.get(weight.name.partition("#")[0]))
        for j, method in enumerate(table.methods):
            if i is not None and not math.isnan(table.rel_error[i, j]):
                values.setdefault(f"error of {method}", {})[weight.name] = float(
                    table.rel_error[i, j]
                )
    return values


def render(graph: Graph, values: Values | None = None) -> str:
    """Make the page.

    Args:
        graph: of a denoiser.
        values: errors, sensitivities; the page opens with the first of them.

    Returns:
        HTML.

    Raises:
        ValueError: there is a value for a weight that the graph does not have.

    Example:
        >>> from qsdm.graph import Graph, Node, Op, Role, Weight
        >>> from qsdm.report import graph_page
        >>> node = Node("proj", Op.LINEAR, Role.FF_IN, weight=Weight("proj", "proj.weight", (8, 4)))
        >>> graph_page.render(Graph("tiny", (node,), ()))[:15]
        '<!doctype html>'
    """
    import jinja2

    values = values or {}
    names = {weight.name for weight in graph.weights}
    if unknown := {name for column in values.values() for name in column} - names:
        raise ValueError(f"the graph of {graph.denoiser!r} has no weight {min(unknown)!r}")
    nodes = [_entry(node, values) for node in graph.nodes]
    data = {"nodes": nodes, "edges": [list(edge) for edge in graph.edges], "labels": list(values)}
    # "</" would end the script element
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        denoiser=graph.denoiser,
        num_nodes=f"{len(graph.nodes):,}",
        num_edges=f"{len(graph.edges):,}",
        num_weights=f"{len(graph.weights):,}",
        num_values=f"{graph.num_values:,}",
        giga_macs=f"{sum(node.macs for node in graph.nodes) / 1e9:,.2f}",
        data=text,
    )


def _entry(node: Node, values: Values) -> dict[str, Any]:
    """A node for the page, without what is empty."""
    weight = node.weight
    entry = {
        "n": node.name,
        "o": str(node.op),
        "r": str(node.role),
        "s": node.stage,
        "b": node.block,
        "w": list(weight.shape) if weight else None,
        "a": list(node.activation),
        "m": node.macs,
        "d": round(node.depth, 4),
        "x": node.dead or None,
        "t": len(weight.ties) if weight and weight.ties else None,
        "v": _digits([column.get(weight.name) for column in values.values()]) if weight else None,
    }
    return {
        key: value for key, value in entry.items() if value not in (None, "", 0, []) or key == "d"
    }


def _digits(values: list[float | None]) -> list[float | None]:
    """Four significant digits: the page need not be larger for more."""
    return [None if value is None else float(f"{value:.4g}") for value in values]
