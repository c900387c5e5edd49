"""What the inputs of layers are like: outliers, errors of rounding, and who rounds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from qsdm.quant.activations import fake_quantize


@dataclass(frozen=True, slots=True)
class InputsTask:
    """Record the inputs of all layers; the result is float64 [W], as `outliers` returns it.

    Attributes:
        protocol: how pictures are drawn.
        num_steps: time steps whose inputs are recorded.
    """

    protocol: Protocol
    num_steps: int


@dataclass(frozen=True, slots=True)
class RoundingTask:
    """Round the inputs of all layers; the result is float64 [W, K], as `rounding_errors` returns
    it.

    Attributes:
        protocol: how pictures are drawn.
        num_steps: time steps whose inputs are recorded.
        bits: K widths, 2 to 8.
    """

    protocol: Protocol
    num_steps: int
    bits: tuple[int, ...]


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


@dataclass(slots=True)
class RoundingError:
    """A hook that rounds what a layer reads, which reads it as it is.

    Attributes:
        bits: K widths, 2 to 8.
        errors: float64 [K], sums of squared errors.
        squares: sum of the values' squares.
    """

    bits: tuple[int, ...]
    errors: np.ndarray
    squares: float = 0.0

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        self.squares += float(x.double().square().sum())
        for k, bits in enumerate(self.bits):
            self.errors[k] += float((fake_quantize(x, bits) - x).double().square().sum())

    @property
    def relative(self) -> np.ndarray:
        """Squared errors over the squares, float64 [K]; 0 for an input of zeros."""
        return self.errors / self.squares if self.squares else np.zeros_like(self.errors)


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
    weights = drawer.graph.weights
    extents = {weight.parameter: Extent() for weight in weights}
    _watch(drawer, calls, extents)
    return np.array([extents[weight.parameter].ratio for weight in weights])


@torch.inference_mode()
def rounding_errors(drawer: Drawer, calls: Sequence[Call], bits: tuple[int, ...]) -> np.ndarray:
    """Compute the error of rounding every layer's input, as of weights (`MethodTable`).

    Args:
        drawer: the pipeline, which is set to full precision.
        calls: recorded inputs of the denoiser.
        bits: K widths, 2 to 8.

    Returns:
        Squared error over squared norm, float64 [W, K], for the weights of the graph; 0 for a layer
        that is not called as a module.
    """
    weights = drawer.graph.weights
    errors = {weight.parameter: RoundingError(bits, np.zeros(len(bits))) for weight in weights}
    _watch(drawer, calls, errors)
    return np.stack([errors[weight.parameter].relative for weight in weights])


def _watch(drawer: Drawer, calls: Sequence[Call], hooks: Mapping[str, Any]) -> None:
    """Call the denoiser in full precision, with a hook for the layer of each parameter."""
    drawer.switch(QuantConfig(drawer.model.name, {}))
    layers = {name: drawer.denoiser.get_submodule(name.rpartition(".")[0]) for name in hooks}
    handles = [
        layer.register_forward_pre_hook(hooks[name])
        for name, layer in layers.items()
        if not isinstance(layer, nn.Embedding)  # which reads numbers of rows
    ]
    try:
        for call in calls:
            args, kwargs = call.arguments
            drawer.denoiser(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
