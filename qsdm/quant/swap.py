"""Fake quantization in place: a module follows one configuration after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qsdm.graph import Graph, Weight
from qsdm.qconfig import QuantConfig, QuantMethod, input_bits
from qsdm.quant.activations import switch_rounding

Dequantize = Callable[[str, QuantMethod, torch.Tensor], torch.Tensor]
"""(weight's name, method, where they go) => its values, written there in that tensor's type."""


PIECE = 1 << 20  # values that are compared at a time

Originals = Callable[[str], torch.Tensor | None]
"""Parameter's name => its full-precision values, such as those of a mapped file; None: unknown."""


class Switch:
    """A module whose weights and activations follow a configuration, and the original weights.

    Args:
        module: the denoiser, changed in place; parameters keep their identity, type and device.
        graph: of the configurations' space (``space.graph``).
        dequantize: writes the quantized values of a weight into its parameter, for example
            `qsdm.quant.calibrated.PackedWeights.dequantize`.
        originals: where full-precision values can be read again, so that no copy of them is kept.
            What differs from the module's values, as a fused adapter does, is copied all the same.

    Raises:
        ValueError: the module lacks a parameter of the graph, or has it in another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: Graph,
        dequantize: Dequantize,
        originals: Originals = lambda _name: None,
    ) -> None:
        self.graph, self.dequantize = graph, dequantize
        parameters = dict(module.named_parameters(remove_duplicate=False))
        names = dict.fromkeys(
            name for weight in graph.weights for name in (weight.parameter, *weight.ties)
        )
        if missing := [name for name in names if name not in parameters]:
            raise ValueError(
                f"the module lacks the parameter {missing[0]!r} of the graph of "
                f"{graph.denoiser!r}: trace it again"
            )
        self._parameters = {name: parameters[name] for name in names}
        for weight in graph.weights:
            _check(weight, self._parameters[weight.parameter])
        self._originals = {
            name: _kept(parameter.detach(), originals(name))
            for name, parameter in self._parameters.items()
        }
        self._current: dict[str, QuantMethod | None] = dict.fromkeys(
            weight.name for weight in graph.weights
        )
        self._module = module
        self._rounded: tuple[dict[str, int], bool] = ({}, False)

    @torch.no_grad()
    def to(self, qconfig: QuantConfig) -> int:
        """Set every weight to its method, and let layers round their inputs.

        Args:
            qconfig: the configuration; weights that it does not name get full precision.

        Returns:
            How many weights changed.

        Raises:
            OutsideSpace: it names a weight that the graph lacks.
            ValueError: a layer's input cannot be rounded, or it has bins of steps.
        """
        if qconfig.steps:
            raise ValueError(
                "a configuration with bins of steps needs a sampler, whose step says what applies "
                f"(got {', '.join(map(str, qconfig.steps))}): draw pictures with it"
            )
        rounded = input_bits(self.graph, qconfig), qconfig.activations is not None
        if rounded != self._rounded:
            switch_rounding(self._module, *rounded)
            self._rounded = rounded
        num_changed = 0
        for weight in self.graph.weights:
            method = qconfig.methods.get(weight.name)
            if method == self._current[weight.name]:
                continue
            self._set(weight, method)
            self._current[weight.name] = method
            num_changed += 1
        return num_changed

    def restore(self) -> int:
        """Set everything to full precision, and return how many weights changed."""
        return self.to(QuantConfig(self.graph.denoiser, {}))

    def _set(self, weight: Weight, method: QuantMethod | None) -> None:
        first, *ties = (
            sliced(self._parameters[name], weight) for name in (weight.parameter, *weight.ties)
        )
        if method is None:
            for name in (weight.parameter, *weight.ties):
                sliced(self._parameters[name], weight).copy_(sliced(self._originals[name], weight))
            return
        self.dequantize(weight.name, method, first)
        for tie in ties:
            tie.copy_(first)


@contextmanager
def quantized(
    module: nn.Module, graph: Graph, qconfig: QuantConfig, dequantize: Dequantize
) -> Iterator[Switch]:
    """Quantize a module within a block; at its end, errors included, full precision is restored.

    Args:
        module: see `Switch`.
        graph: see `Switch`.
        qconfig: the configuration; weights that it does not name keep full precision.
        dequantize: see `Switch`.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
        ValueError: the module does not fit the graph.
    """
    switch = Switch(module, graph, dequantize)
    try:
        switch.to(qconfig)
        yield switch
    finally:
        switch.restore()


def sliced(parameter: torch.Tensor, weight: Weight) -> torch.Tensor:
    """The input channels of a parameter that make up a weight.

    Args:
        parameter: ``[out, in, *kernel]``.
        weight: one of its slices.

    Returns:
        A view.
    """
    return parameter.detach()[:, weight.start : weight.start + weight.shape[1]]


def _kept(parameter: torch.Tensor, stored: torch.Tensor | None) -> torch.Tensor:
    """The stored values if they are the parameter's, else a copy of the parameter."""
    if stored is None or stored.shape != parameter.shape:
        return parameter.clone()
    # Piece by piece: freed copies of whole parameters would leave holes of gigabytes in the heap.
    rows = max(1, PIECE * len(parameter) // max(parameter.numel(), 1))
    pairs = zip(stored.split(rows), parameter.split(rows), strict=True)
    if all(torch.equal(piece.to(own.device, own.dtype), own) for piece, own in pairs):
        return stored
    return parameter.clone()


def _check(weight: Weight, parameter: torch.Tensor) -> None:
    if tuple(sliced(parameter, weight).shape) != weight.shape:
        raise ValueError(
            f"wanted {weight.name!r} of shape {weight.shape} (got a parameter of shape "
            f"{tuple(parameter.shape)}): module and graph are of different models"
        )
