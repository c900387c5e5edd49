"""What a configuration costs: bytes, average bits, bit operations, memory traffic and peak; and the table of errors and
sizes that calibration fills.

All figures are of the quantizable weights: what stays in full precision for any configuration (biases, norms, tables)
adds the same to each.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from qsdm.graph import Graph
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod


def size_bytes(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> int:
    """Bytes of the quantizable weights: codes, scales, zero points, codebooks; full precision where no method is named.

    Raises:
        OutsideSpace: the configuration names a weight that the graph does not have.
    """
    return sum(_bits(graph, qconfig, full_bits).values()) // 8


def _bits(graph: Graph, qconfig: QuantConfig, full_bits: int) -> dict[str, int]:
    """Stored bits by weight name, of all its copies."""
    if odd := set(qconfig.methods) - {weight.name for weight in graph.weights}:
        raise OutsideSpace(f"the graph of {graph.denoiser!r} has no weight {min(odd)!r}")
    full = QuantMethod("fp", full_bits)
    return {
        w.name: qconfig.methods.get(w.name, full).size_bits(w, full_bits) for w in graph.weights
    }


def avg_bits(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> float:
    """Bits per quantizable weight, overhead included."""
    return 8 * size_bytes(graph, qconfig, full_bits) / graph.num_values


def tera_bops(
    graph: Graph, qconfig: QuantConfig, full_bits: int = 16, activation_bits: int = 16
) -> float:
    """10^12 bit operations of the weights' multiply-accumulates at batch 1: MACs x weight bits x activation bits.

    References: Bayesian Bits (van Baalen et al., 2020), section 2.3.
    """
    full = QuantMethod("fp", full_bits)
    return (
        sum(
            node.macs * qconfig.methods.get(node.weight.name, full).bits * activation_bits
            for node in graph.nodes
            if node.weight is not None
        )
        / 1e12
    )


def traffic_bytes(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> int:
    """Bytes of weights that one forward reads, as stored: a weight that is called twice is read twice.

    This bounds the time of a step at batch 1 from below: bytes over memory bandwidth.
    """
    bits = _bits(graph, qconfig, full_bits)
    weights = (node.weight for node in graph.nodes if node.weight is not None)
    return sum(bits[weight.name] // (1 + len(weight.ties)) for weight in weights) // 8


def peak_bytes(
    graph: Graph, qconfig: QuantConfig, full_bits: int = 16, compute_bits: int = 16
) -> int:
    """The most bytes that weights take at once: all of them as stored, and one parameter expanded for its call.

    Args:
        compute_bits: precision in which a quantized parameter is expanded; one in full precision is used as it is.
    """
    expanded: dict[str, int] = defaultdict(int)
    for weight in graph.weights:  # the slices of a split parameter are expanded together
        if not qconfig.methods.get(weight.name, QuantMethod("fp", full_bits)).is_full:
            expanded[weight.parameter] += compute_bits * weight.numel // (1 + len(weight.ties))
    return size_bytes(graph, qconfig, full_bits) + max(expanded.values(), default=0) // 8


class TableFile(TypedDict):
    """What a table's file says beside its arrays.

    Attributes:
        version: of the algorithms that fitted; graph: its digest; error: what the column of errors holds.
    """

    schema: str
    weights: list[str]
    methods: list[str]
    version: NotRequired[str]
    graph: NotRequired[str]
    error: NotRequired[str]


@dataclass(frozen=True, slots=True, eq=False)
class MethodTable:
    """Error and size of every weight under every method.

    Attributes:
        weights: names, W of them.
        methods: M of them.
        rel_error: float64 [W, M], ||W - W^||^2 / ||W||^2, one definition for every method; NaN where a method is not on
            offer.
        size_bytes: int64 [W, M].
        norm_error: float64 [W, M], sum |W - W^|^2.4 / sum |W|^2.4, or None where it was not computed.
    """

    weights: tuple[str, ...]
    methods: tuple[QuantMethod, ...]
    rel_error: np.ndarray
    size_bytes: np.ndarray
    norm_error: np.ndarray | None = None

    def __post_init__(self) -> None:
        wanted = (len(self.weights), len(self.methods))
        for name in ("rel_error", "size_bytes"):
            if getattr(self, name).shape != wanted:
                raise ValueError(
                    f"wanted {name} of shape {wanted}, weights by methods (got {getattr(self, name).shape})"
                )

    def of(self, qconfig: QuantConfig) -> tuple[np.ndarray, np.ndarray]:
        """Error and bytes of the configuration's weights, each [W]; full precision where no method is named has error 0
        and 0 bytes."""
        column = {method: i for i, method in enumerate(self.methods)}
        error, size = np.zeros(len(self.weights)), np.zeros(len(self.weights), dtype=np.int64)
        for i, name in enumerate(self.weights):
            if (method := qconfig.methods.get(name)) is not None:
                if method not in column or np.isnan(self.rel_error[i, column[method]]):
                    raise OutsideSpace(
                        f"{method} was not calibrated for {name!r}: run calibrate with a space that offers it"
                    )
                error[i], size[i] = (
                    self.rel_error[i, column[method]],
                    self.size_bytes[i, column[method]],
                )
        return error, size
