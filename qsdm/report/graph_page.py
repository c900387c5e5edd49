"""A graph as one self-contained HTML page: fold and unfold stages and blocks, colour, search, click for details.

The page loads nothing; its drawing is a canvas, so that some thousand nodes stay smooth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import Graph, Node
from qsdm.store import write_text

TEMPLATE = Path(__file__).with_name("graph_page.html.j2")


def write(path: Path, graph: Graph, values: Mapping[str, float] | None = None, label: str = "value") -> None:
    """Write the page of ``graph`` to ``path``.

    Args:
        values: by weight name, to colour the nodes by; an error, a sensitivity.
        label: what the values are.

    Raises:
        StoreError: it cannot be written.
    """
    write_text(path, render(graph, values, label))


def render(graph: Graph, values: Mapping[str, float] | None = None, label: str = "value") -> str:
    """The page.

    Raises:
        ValueError: a value is of no weight of the graph.
    """
    import jinja2

    values = dict(values or {})
    if odd := values.keys() - {weight.name for weight in graph.weights}:
        raise ValueError(f"the graph of {graph.denoiser!r} has no weight {min(odd)!r}")
    nodes = [_entry(node, values) for node in graph.nodes]
    data = {"nodes": nodes, "edges": [list(edge) for edge in graph.edges], "label": label if values else None}
    # "</" would end the script element
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        denoiser=graph.denoiser,
        num_nodes=f"{len(graph.nodes):,}",
        num_edges=f"{len(graph.edges):,}",
        num_weights=f"{len(graph.weights):,}",
        num_values=f"{graph.num_values:,}",
        giga_macs=f"{sum(node.macs for node in graph.nodes) / 1e9:,.2f}",
        data=text,
    )


def _entry(node: Node, values: Mapping[str, float]) -> dict[str, Any]:
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
        "v": values.get(weight.name) if weight else None,
    }
    return {key: value for key, value in entry.items() if value not in (None, "", 0) or key == "d"}
