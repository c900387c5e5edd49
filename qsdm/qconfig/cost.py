"""Costs of a configuration (size, average bits, bit operations, memory) and calibration's table.

All costs are those of the quantizable weights. What always stays in full precision (biases, norms,
embedding tables) adds the same to every configuration.

Of a configuration with bins of steps, bits and operations are means over the steps, each part
counting by its share of them; bytes are those of every version of a weight that some step needs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from qsdm.graph import Graph
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, Space, input_bits


def size_bytes(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> int:
    """Compute the size of the quantizable weights: codes, scales, zero points and codebooks.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight name; a weight without one has full precision.
        full_bits: bits of full precision.

    Returns:
        Bytes.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.
    """
    parts = [part for _, part in qconfig.parts]
    if len(parts) == 1:
        return sum(_bits(graph, parts[0], full_bits).values()) // 8
    _check(graph, qconfig)
    full = QuantMethod("fp", full_bits)
    return (
        sum(
            method.size_bits(weight, full_bits)
            for weight in graph.weights
            for method in {part.methods.get(weight.name, full) for part in parts}
        )
        // 8
    )


def _check(graph: Graph, qconfig: QuantConfig) -> None:
    if unknown := qconfig.weights - {weight.name for weight in graph.weights}:
        raise OutsideSpace(f"the graph of {graph.denoiser!r} has no weight {min(unknown)!r}")


def _bits(graph: Graph, qconfig: QuantConfig, full_bits: int) -> dict[str, int]:
    """Stored bits of each weight by name, tied parameters included."""
    _check(graph, qconfig)
    full = QuantMethod("fp", full_bits)
    return {
        w.name: qconfig.methods.get(w.name, full).size_bits(w, full_bits) for w in graph.weights
    }


def avg_bits(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> float:
    """Compute the average bits per quantizable value, overhead included.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight name; a weight without one has full precision.
        full_bits: bits of full precision.

    Returns:
        Bits per value.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.

    Example:
        >>> from qsdm.qconfig.cost import avg_bits
        >>> from qsdm.graph import Graph, Node, Op, Role, Weight
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> weight = Weight("proj", "proj.weight", (64, 512))
        >>> graph = Graph("tiny", (Node("proj", Op.LINEAR, Role.FF_IN, weight=weight),), ())
        >>> avg_bits(graph, QuantConfig("tiny", {"proj": QuantMethod("uaq", 4)}))
        4.0625
    """
    return sum(
        share * 8 * size_bytes(graph, part, full_bits) / graph.num_values
        for share, part in qconfig.parts
    )


def avg_bits_of(space: Space, genes: np.ndarray) -> np.ndarray:
    """Compute the average bits of many configurations of a space, as `avg_bits` does of one.

    Args:
        space: W weights and the methods on offer for each.
        genes: int64 [B, W], index into the options of each weight.

    Returns:
        Float64 [B], bits per value.
    """
    num_bits = np.zeros(len(genes), dtype=np.int64)
    for w, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
        sizes = [method.size_bits(weight, space.full_bits) for method in offered]
        num_bits += np.array(sizes, dtype=np.int64)[genes[:, w]]
    return num_bits // 8 * 8 / space.graph.num_values


def tera_bops(
    graph: Graph, qconfig: QuantConfig, full_bits: int = 16, activation_bits: int = 16
) -> float:
    """Compute the bit operations of one forward at batch size 1.

    They are the sum over nodes with a weight of MACs × weight bits × bits of the layer's input.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight name; a weight without one has full precision.
        full_bits: bits of full precision.
        activation_bits: of the inputs that the configuration does not round.

    Returns:
        10^12 bit operations.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.

    References:
        Bayesian Bits (van Baalen et al., 2020), section 2.3.
    """
    if qconfig.steps:
        return sum(
            share * tera_bops(graph, part, full_bits, activation_bits)
            for share, part in qconfig.parts
        )
    full, rounded = QuantMethod("fp", full_bits), input_bits(graph, qconfig)
    return (
        sum(
            node.macs
            * qconfig.methods.get(node.weight.name, full).bits
            * rounded.get(node.weight.parameter, activation_bits)
            for node in graph.nodes
            if node.weight is not None
        )
        / 1e12
    )


def traffic_bytes(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> int:
    """Compute how many bytes of stored weights one forward reads.

    A weight that is called twice is read twice. Divided by the memory bandwidth, this is a lower
    bound of the time of a step at batch size 1.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight name; a weight without one has full precision.
        full_bits: bits of full precision.

    Returns:
        Bytes.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.
    """
    if qconfig.steps:
        return round(sum(s * traffic_bytes(graph, p, full_bits) for s, p in qconfig.parts))
    bits = _bits(graph, qconfig, full_bits)
    weights = (node.weight for node in graph.nodes if node.weight is not None)
    return sum(bits[weight.name] // (1 + len(weight.ties)) for weight in weights) // 8


def peak_bytes(
    graph: Graph, qconfig: QuantConfig, full_bits: int = 16, compute_bits: int = 16
) -> int:
    """Compute the peak memory of weights: all as stored, plus one that is expanded for its call.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight name; a weight without one has full precision.
        full_bits: bits of full precision.
        compute_bits: bits of a value of an expanded parameter; a parameter in full precision is
            not expanded.

    Returns:
        Bytes.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.
    """
    most = 0
    for _, part in qconfig.parts:
        expanded: dict[str, int] = defaultdict(int)
        for weight in graph.weights:  # the slices of a split parameter are expanded together
            if not part.methods.get(weight.name, QuantMethod("fp", full_bits)).is_full:
                expanded[weight.parameter] += compute_bits * weight.numel // (1 + len(weight.ties))
        most = max(most, *expanded.values(), 0)
    return size_bytes(graph, qconfig, full_bits) + most // 8


class TableFile(TypedDict):
    """What a table's file holds in addition to its arrays.

    Attributes:
        schema: name of the format.
        weights: their names.
        methods: their names.
        version: of the algorithms that fitted the codes.
        graph: digest of the graph.
        error: what the error column holds.
        fitted: see `MethodTable`.
        source: see `MethodTable`.
        offered: methods of the space, if some of them have bits of inputs.
    """

    schema: str
    weights: list[str]
    methods: list[str]
    version: NotRequired[str]
    graph: NotRequired[str]
    error: NotRequired[str]
    fitted: NotRequired[str]
    source: NotRequired[str]
    offered: NotRequired[list[str]]


@dataclass(frozen=True, slots=True, eq=False)
class MethodTable:
    """Error and size of every weight under every method.

    Attributes:
        weights: names of W weights.
        methods: M methods.
        rel_error: float64 [W, M], the relative squared error ``||W - Q||^2 / ||W||^2`` of the
            quantized weight Q, by one definition for all methods; NaN where a method is not on
            offer.
        size_bytes: int64 [W, M].
        norm_error: float64 [W, M], ``sum |W - Q|^2.4 / sum |W|^2.4``; None if it was not computed.
        fitted: digest of the values that were quantized; empty in tables of qsdm 0.1.0.
        source: digest of the pipeline that they were read from.
    """

    weights: tuple[str, ...]
    methods: tuple[QuantMethod, ...]
    rel_error: np.ndarray
    size_bytes: np.ndarray
    norm_error: np.ndarray | None = None
    fitted: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        expected = (len(self.weights), len(self.methods))
        for name in ("rel_error", "size_bytes"):
            if (shape := getattr(self, name).shape) != expected:
                raise ValueError(
                    f"wanted {name} of shape {expected}, weights by methods (got {shape})"
                )

    def of(self, qconfig: QuantConfig) -> tuple[np.ndarray, np.ndarray]:
        """Look up the errors and sizes of a configuration's weights.

        Args:
            qconfig: methods by weight name.

        Returns:
            Relative squared error, float64 [W], and bytes, int64 [W]; both are 0 for a weight
            without a method.

        Raises:
            OutsideSpace: a weight was not calibrated with its method.
        """
        column = {method: i for i, method in enumerate(self.methods)}
        error, size = np.zeros(len(self.weights)), np.zeros(len(self.weights), dtype=np.int64)
        for i, name in enumerate(self.weights):
            if (method := qconfig.methods.get(name)) is not None:
                if method not in column or np.isnan(self.rel_error[i, column[method]]):
                    raise OutsideSpace(
                        f"{method} was not calibrated for {name!r}: "
                        "run calibrate with a space that offers it"
                    )
                error[i], size[i] = (
                    self.rel_error[i, column[method]],
                    self.size_bytes[i, column[method]],
                )
        return error, size
