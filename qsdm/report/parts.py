"""What each part of a pipeline takes, where several share a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsdm.graph import Graph, parts_of, subgraph
from qsdm.qconfig import QuantConfig, cost


@dataclass(frozen=True, slots=True)
class Part:
    """One part under a configuration.

    Attributes:
        name: of the component.
        num_weights: that are quantized, or could be.
        avg_bits: per value.
        size_bytes: of the weights.
        full_bytes: of the weights in full precision.
    """

    name: str
    num_weights: int
    avg_bits: float
    size_bytes: int
    full_bytes: int


def parts(graph: Graph, qconfig: QuantConfig, full_bits: int) -> tuple[Part, ...]:
    """Divide what a configuration takes among the parts of its pipeline.

    Args:
        graph: of the parts.
        qconfig: methods by weight name.
        full_bits: bits of full precision.

    Returns:
        The parts in the order of the graph; none if it is of one.
    """
    taken = []
    for name in parts_of(graph):
        own = subgraph(graph, name, graph.denoiser)
        prefix = f"{name}."
        methods = {
            weight.removeprefix(prefix): method
            for weight, method in qconfig.methods.items()
            if weight.startswith(prefix)
        }
        chosen = QuantConfig(graph.denoiser, methods)
        taken.append(
            Part(
                name,
                len(own.weights),
                cost.avg_bits(own, chosen, full_bits),
                cost.size_bytes(own, chosen, full_bits),
                cost.size_bytes(own, QuantConfig(graph.denoiser, {}), full_bits),
            )
        )
    return tuple(taken)


def part_table(found: Sequence[Part]) -> tuple[list[str], list[list[str]]] | None:
    """Tabulate parts for the page.

    Args:
        found: of the chosen configuration.

    Returns:
        Heads and cells; None without parts.
    """
    if not found:
        return None
    cells = [
        [
            part.name,
            f"{part.num_weights:,}",
            f"{part.avg_bits:.2f}",
            f"{part.size_bytes:,}",
            f"{part.full_bytes:,}",
        ]
        for part in found
    ]
    return ["", "weights", "bits", "bytes", "bytes in full precision"], cells
