"""A graph as one self-contained HTML page: fold and unfold stages and blocks, colour, search, click for details.

The page loads nothing; its drawing is a canvas, so that some thousand nodes stay smooth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.cost import MethodTable
from qsdm.graph import Graph, Node
from qsdm.store.files import write_text

TEMPLATE = Path(__file__).with_name("graph_page.html.j2")
Values = Mapping[str, Mapping[str, float]]
"""What the nodes can be coloured by: label => weight name => value."""


def write(path: Path, graph: Graph, values: Values | None = None) -> None:
    """Write the page of ``graph`` to ``path``.

    Args:
        values: errors, sensitivities; the page opens with the first of them.

    Raises:
        StoreError: it cannot be written.
    """
    write_text(path, render(graph, values))


def errors(graph: Graph, table: MethodTable) -> dict[str, dict[str, float]]:
    """`Values` of a calibration: the relative error of every weight under each method.

    A weight that the table has whole lends its error to the slices that the graph has of it.
    """
    row = {name: i for i, name in enumerate(table.weights)}
    found: dict[str, dict[str, float]] = {}
    for weight in graph.weights:
        i = row.get(weight.name, row.get(weight.name.partition("#")[0]))
        for j, method in enumerate(table.methods):
            if i is not None and not math.isnan(table.rel_error[i, j]):
                found.setdefault(f"error of {method}", {})[weight.name] = float(
                    table.rel_error[i, j]
                )
    return found


def render(graph: Graph, values: Values | None = None) -> str:
    """The page.

    Raises:
        ValueError: a value is of no weight of the graph.
    """
    import jinja2

    values = values or {}
    if odd := {name for column in values.values() for name in column} - {
        weight.name for weight in graph.weights
    }:
        raise ValueError(f"the graph of {graph.denoiser!r} has no weight {min(odd)!r}")
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
