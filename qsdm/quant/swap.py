"""A module's weights change from one configuration to the next: fake quantization in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qsdm.graph import Graph, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod

Dequantize = Callable[[str, QuantMethod, torch.Tensor | None], torch.Tensor]


class Switch:
    """Holds a module whose weights follow a configuration, and one copy of the originals.

    Args:
        module: the denoiser; changed in place, parameters keep their identity, type and device.
        graph: of the space that the configurations come from (``space.graph``).
        dequantize: (weight's name, method, float32 output or None) => float32 values on the CPU.

    Raises:
        ValueError: the module has no such parameter, or of another shape.
    """

    def __init__(self, module: nn.Module, graph: Graph, dequantize: Dequantize) -> None:
        self.graph, self.dequantize = graph, dequantize
        parameters = dict(module.named_parameters(remove_duplicate=False))
        names = dict.fromkeys(
            name for weight in graph.weights for name in (weight.parameter, *weight.ties)
        )
        if missing := [name for name in names if name not in parameters]:
            raise ValueError(
                f"the module has no parameter {missing[0]!r}, which the graph of {graph.denoiser!r} names: "
                "trace it again"
            )
        self._parameters = {name: parameters[name] for name in names}
        for weight in graph.weights:
            _check(weight, self._parameters[weight.parameter])
        self._originals = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }
        # For values on their way to parameters of another type: a fresh tensor costs more than decoding into it.
        self._scratch = torch.empty(
            max((math.prod(weight.shape) for weight in graph.weights), default=0)
        )
        self._now: dict[str, QuantMethod | None] = dict.fromkeys(
            weight.name for weight in graph.weights
        )

    @torch.no_grad()
    def to(self, qconfig: QuantConfig) -> int:
        """Sets every weight to its method; full precision where none is named. Returns how many were touched."""
        if odd := set(qconfig.methods) - set(self._now):
            raise OutsideSpace(f"the graph of {self.graph.denoiser!r} has no weight {min(odd)!r}")
        touched = 0
        for weight in self.graph.weights:
            method = qconfig.methods.get(weight.name)
            if method == self._now[weight.name]:
                continue
            self._set(weight, method)
            self._now[weight.name] = method
            touched += 1
        return touched

    def restore(self) -> int:
        """Full precision everywhere. Returns how many weights were touched."""
        return self.to(QuantConfig(self.graph.denoiser, {}))

    def _set(self, weight: Weight, method: QuantMethod | None) -> None:
        first, *ties = (
            sliced(self._parameters[name], weight) for name in (weight.parameter, *weight.ties)
        )
        if method is None:
            for name in (weight.parameter, *weight.ties):
                sliced(self._parameters[name], weight).copy_(sliced(self._originals[name], weight))
            return
        if first.dtype == torch.float32 and first.device.type == "cpu" and first.is_contiguous():
            self.dequantize(weight.name, method, first)
        else:
            scratch = self._scratch[: first.numel()].view(first.shape)
            first.copy_(self.dequantize(weight.name, method, scratch))
        for tie in ties:
            tie.copy_(first)


@contextmanager
def quantized(
    module: nn.Module, graph: Graph, qconfig: QuantConfig, dequantize: Dequantize
) -> Iterator[Switch]:
    """The module under a configuration; full precision again when the block ends, however it ends."""
    switch = Switch(module, graph, dequantize)
    try:
        switch.to(qconfig)
        yield switch
    finally:
        switch.restore()


def sliced(parameter: torch.Tensor, weight: Weight) -> torch.Tensor:
    """The weight's input channels of its parameter, as a view."""
    return parameter.detach()[:, weight.start : weight.start + weight.shape[1]]


def _check(weight: Weight, parameter: torch.Tensor) -> None:
    if tuple(sliced(parameter, weight).shape) != weight.shape:
        raise ValueError(
            f"wanted {weight.name!r} of shape {weight.shape} (got a parameter of shape {tuple(parameter.shape)}): "
            f"module and graph are of different models"
        )
