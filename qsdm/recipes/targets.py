"""Engines that a search can aim at, and which methods each can hold.

An engine holds a method if it stores values of the same kind (a uniform grid, a codebook, 8-bit
floats) at the same bits; how it fits them may differ, see `HOLDS` of the format.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from qsdm.graph import Graph, Weight
from qsdm.qconfig import QuantMethod
from qsdm.qconfig.activations import FULL
from qsdm.recipes import Layer, gguf, layers, sdnq, torchao

TARGETS: dict[str, Callable[[Layer, QuantMethod], bool]] = {
    "qsdm": lambda _layer, _method: True,
    "torchao": torchao.can_hold,
    "gguf": gguf.can_hold,
    "sdnq": sdnq.can_hold,
}
"""Whether an engine can hold a layer under a method, by the engine's name."""


def held_by(target: str | None, graph: Graph) -> Callable[[Weight, QuantMethod], bool] | None:
    """Ask an engine about the weights of a graph.

    Args:
        target: name of the engine; None for any.
        graph: of the denoiser.

    Returns:
        Weight and method => whether the engine holds them; None if it holds everything.

    Raises:
        ValueError: there is no such engine.
    """
    if target is not None and target not in TARGETS:
        close = difflib.get_close_matches(target, TARGETS, 1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"target: wanted one of {', '.join(TARGETS)} (got {target!r}){guess}")
    if target in (None, "qsdm"):
        return None
    can_hold = TARGETS[target]
    owner = {weight.name: layer for layer in layers(graph) for weight in layer.weights}
    # Engines round inputs by rules of their own, if they do.
    return lambda weight, method: method.inputs == FULL and can_hold(owner[weight.name], method)
