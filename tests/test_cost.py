"""Bytes, average bits, bit operations, and the table of methods."""

from __future__ import annotations

import numpy as np
import pytest

from qsdm.cost import MethodTable, avg_bits, size_bytes, tera_bops
from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod

NODES = (
    Node("a", Op.LINEAR, weight=Weight("a", "a.weight", (64, 128)), macs=10**9),
    Node("b", Op.LINEAR, weight=Weight("b", "b.weight", (128, 64)), macs=10**10),
)
GRAPH = Graph("toy", NODES, ((0, 1),))
UAQ, FULL = QuantMethod("uaq", 4), QuantMethod("fp", 16)


def both(a: QuantMethod, b: QuantMethod) -> QuantConfig:
    return QuantConfig("toy", {"a": a, "b": b})


def test_full_precision_costs_its_bits() -> None:
    nothing = QuantConfig("toy", {})
    assert size_bytes(GRAPH, nothing) == 2 * GRAPH.num_values
    assert avg_bits(GRAPH, nothing) == 16
    assert avg_bits(GRAPH, nothing, full_bits=32) == 32
    assert size_bytes(GRAPH, both(FULL, FULL)) == size_bytes(GRAPH, nothing)


def test_overhead_counts() -> None:
    """4 bits, and 2 values of 16 bits per row of 128 and of 64."""
    assert avg_bits(GRAPH, both(UAQ, UAQ)) == 4 + (32 / 128 + 32 / 64) / 2


def test_bytes_add_up_over_weights() -> None:
    one, other = size_bytes(GRAPH, both(UAQ, FULL)), size_bytes(GRAPH, both(FULL, UAQ))
    assert one + other == size_bytes(GRAPH, both(UAQ, UAQ)) + size_bytes(GRAPH, both(FULL, FULL))


def test_bit_operations_follow_macs_and_bits() -> None:
    assert tera_bops(GRAPH, both(UAQ, FULL)) == pytest.approx((1e9 * 4 * 16 + 1e10 * 16 * 16) / 1e12)
    assert tera_bops(GRAPH, both(UAQ, UAQ), activation_bits=8) == pytest.approx(tera_bops(GRAPH, both(UAQ, UAQ)) / 2)


def test_a_foreign_weight_is_named() -> None:
    with pytest.raises(OutsideSpace, match="no weight 'c'"):
        size_bytes(GRAPH, QuantConfig("toy", {"c": UAQ}))


def test_the_table_looks_up_what_was_calibrated() -> None:
    table = MethodTable(("a", "b"), (UAQ, FULL), np.array([[0.1, 0], [np.nan, 0]]), np.array([[5, 9], [0, 9]]))
    error, size = table.of(QuantConfig("toy", {"a": UAQ}))
    assert error.tolist() == [0.1, 0]
    assert size.tolist() == [5, 0]
    with pytest.raises(OutsideSpace, match="was not calibrated for 'b'"):
        table.of(both(UAQ, UAQ))
    with pytest.raises(OutsideSpace, match="run calibrate"):
        table.of(QuantConfig("toy", {"a": QuantMethod("uaq", 3)}))


def test_the_table_checks_shapes() -> None:
    with pytest.raises(ValueError, match="weights by methods"):
        MethodTable(("a",), (UAQ, FULL), np.zeros((1, 1)), np.zeros((1, 2), dtype=np.int64))
