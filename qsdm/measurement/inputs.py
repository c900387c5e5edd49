"""Outliers in the inputs of layers, and which layers round their inputs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qsdm.graph import Graph, Op
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.forward import Call
from qsdm.outcome import Protocol
from qsdm.qconfig import QuantConfig


@dataclass(frozen=True, slots=True)
class InputsTask:
    """Record the inputs of all layers; the result is float64 [W], as `outliers` returns it.

    Attributes:
        protocol: how pictures are drawn.
        num_steps: time steps whose inputs are recorded.
    """

    protocol: Protocol
    num_steps: int


def by_role(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Group weights by what they are for; embedding tables, which read no values, are left out.

    Args:
        graph: of the denoiser.

    Returns:
        Names of weights by role, in the order of the graph; the parts of one parameter together.
    """
    first: dict[str, str] = {}
    groups: dict[str, dict[str, None]] = {}
    for node in graph.nodes:
        if node.weight is not None and node.op != Op.EMBEDDING:
            role = first.setdefault(node.weight.parameter, str(node.role) or str(node.op))
            groups.setdefault(role, {})[node.weight.name] = None
    return {role: tuple(names) for role, names in groups.items()}


@dataclass(slots=True)
class Extent:
    """A hook that keeps the largest magnitude, sum and sum of squares of what a layer reads.

    Attributes:
        largest: magnitude.
        total: sum of the values.
        squares: sum of their squares.
        count: number of values.
    """

    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        self.largest = max(self.largest, float(x.abs().max()))
        self.total += float(x.sum(dtype=torch.float64))
        self.squares += float(x.double().square().sum())
        self.count += x.numel()

    @property
    def ratio(self) -> float:
        """Largest magnitude over standard deviation; NaN if all values are the same."""
        mean = self.total / max(self.count, 1)
        variance = self.squares / max(self.count, 1) - mean**2
        return self.largest / float(np.sqrt(variance)) if variance > 0 else float("nan")


@torch.inference_mode()
def outliers(drawer: Drawer, calls: Sequence[Call]) -> np.ndarray:
    """Compute the largest magnitude of every layer's input over its standard deviation.

    Args:
        drawer: the pipeline, which is set to full precision.
        calls: recorded inputs of the denoiser.

    Returns:
        Float64 [W], for the weights of the graph; NaN for a layer that reads a constant, or whose
        module was not called, and for an embedding table.
    """
    drawer.switch(QuantConfig(drawer.model.name, {}))
    weights = drawer.graph.weights
    extents = {weight.parameter: Extent() for weight in weights}
    layers = {name: drawer.denoiser.get_submodule(name.rpartition(".")[0]) for name in extents}
    hooks = [
        layer.register_forward_pre_hook(extents[name])
        for name, layer in layers.items()
        if not isinstance(layer, nn.Embedding)  # which reads numbers of rows
    ]
    try:
        for call in calls:
            args, kwargs = call.arguments
            drawer.denoiser(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return np.array([extents[weight.parameter].ratio for weight in weights])
