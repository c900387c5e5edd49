"""Bytes, average bits, bit operations, and the table of methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, Space
from qsdm.qconfig.cost import (
    MethodTable,
    avg_bits,
    avg_bits_of,
    peak_bytes,
    size_bytes,
    tera_bops,
    traffic_bytes,
)
from qsdm.qconfig.steps import StepBin

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


def test_average_bits_of_many_configurations() -> None:
    space = Space.of(GRAPH, ["uaq-3", "uaq-4"], full_bits=32)
    genes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    expected = [avg_bits(GRAPH, space.decode(row), 32) for row in genes]
    assert avg_bits_of(space, genes).tolist() == expected


def test_bytes_add_up_over_weights() -> None:
    one, other = size_bytes(GRAPH, both(UAQ, FULL)), size_bytes(GRAPH, both(FULL, UAQ))
    assert one + other == size_bytes(GRAPH, both(UAQ, UAQ)) + size_bytes(GRAPH, both(FULL, FULL))


def test_bit_operations_follow_macs_and_bits() -> None:
    assert tera_bops(GRAPH, both(UAQ, FULL)) == pytest.approx(
        (1e9 * 4 * 16 + 1e10 * 16 * 16) / 1e12
    )
    assert tera_bops(GRAPH, both(UAQ, UAQ), activation_bits=8) == pytest.approx(
        tera_bops(GRAPH, both(UAQ, UAQ)) / 2
    )
    rounded = QuantConfig("toy", both(UAQ, UAQ).methods, 8, {"b": 6})
    assert tera_bops(GRAPH, rounded) == pytest.approx((1e9 * 4 * 8 + 1e10 * 4 * 6) / 1e12)
    assert size_bytes(GRAPH, rounded) == size_bytes(GRAPH, both(UAQ, UAQ))


def test_bins_of_steps_average_bits_and_add_bytes() -> None:
    uaq, mixed, nothing = both(UAQ, UAQ), both(UAQ, FULL), QuantConfig("toy", {})
    half = QuantConfig("toy", uaq.methods, steps=(StepBin(0.75, 1, mixed),))
    for cost in (avg_bits, tera_bops, traffic_bytes):
        assert cost(GRAPH, half) == pytest.approx(
            0.75 * cost(GRAPH, uaq) + 0.25 * cost(GRAPH, mixed)
        )
    # Only the second weight is stored twice.
    assert size_bytes(GRAPH, half) == size_bytes(GRAPH, uaq) + 2 * 64 * 128
    assert peak_bytes(GRAPH, half) == size_bytes(GRAPH, half) + 2 * 64 * 128
    everywhere = tuple(StepBin(i / 5, (i + 1) / 5, mixed) for i in range(5))
    covered = QuantConfig("toy", uaq.methods, steps=everywhere)  # its own methods apply nowhere
    assert size_bytes(GRAPH, covered) == size_bytes(GRAPH, mixed)
    assert avg_bits(GRAPH, covered) == pytest.approx(avg_bits(GRAPH, mixed))
    within = QuantConfig("toy", {}, steps=(StepBin(0, 0.5, uaq),))
    assert avg_bits(GRAPH, within) == pytest.approx((avg_bits(GRAPH, uaq) + 16) / 2)
    assert size_bytes(GRAPH, within) == size_bytes(GRAPH, uaq) + size_bytes(GRAPH, nothing)


def test_a_small_case_by_hand() -> None:
    """`a` [64, 128] in UAQ-4: 8192 codes of 4 bits = 4096 B, 64 rows x (scale and zero point) x 2 B
    = 256 B. `b` [128, 64] in K-Means-C-3: 8192 x 3 bits = 3072 B, 128 rows x 8 centroids x 2 B =
    2048 B.
    """
    qconfig = both(UAQ, QuantMethod("kmeans_c", 3))
    assert size_bytes(GRAPH, qconfig) == 4096 + 256 + 3072 + 2048
    assert avg_bits(GRAPH, qconfig) == 8 * 9472 / 16384
    assert tera_bops(GRAPH, qconfig, activation_bits=8) == pytest.approx(
        1e9 * 4 * 8 / 1e12 + 1e10 * 3 * 8 / 1e12
    )
    assert traffic_bytes(GRAPH, qconfig) == 9472  # each is called once
    assert peak_bytes(GRAPH, qconfig) == 9472 + 16384  # and 8192 values of one, expanded to 2 B
    assert peak_bytes(GRAPH, qconfig, compute_bits=32) == 9472 + 32768
    assert peak_bytes(GRAPH, both(FULL, FULL)) == 32768  # nothing is expanded


def test_calls_copies_and_slices_by_hand() -> None:
    """A weight called twice; one stored in two tied copies, each called once; one split into two
    slices.
    """
    shared = Weight("s", "s.weight", (4, 8))  # 32 values
    tied = Weight("t", "t.weight", (4, 8), ties=("u.weight",))  # 64 stored values
    halves = [
        Weight(f"c#{k}", "c.weight", (4, 8 + 8 * k), start=8 * k) for k in (0, 1)
    ]  # 32 and 64 values
    weights = [shared, shared, tied, tied, *halves]
    graph = Graph(
        "toy",
        tuple(Node(f"n{i}", Op.LINEAR, weight=w, macs=100) for i, w in enumerate(weights)),
        (),
    )
    full, quantized = (
        QuantConfig("toy", {}),
        QuantConfig("toy", {w.name: UAQ for w in graph.weights}),
    )
    assert size_bytes(graph, full) == 2 * (32 + 64 + 32 + 64)
    assert traffic_bytes(graph, full) == 2 * (2 * 32 + 64 + 32 + 64)
    # codes of half a byte, and 4 rows x 2 x 2 B = 16 B for each tensor and slice
    stored = (16 + 16) + 2 * (16 + 16) + (16 + 16) + (32 + 16)
    assert size_bytes(graph, quantized) == stored
    assert traffic_bytes(graph, quantized) == stored + (16 + 16)
    assert peak_bytes(graph, quantized) == stored + 2 * (32 + 64)  # both slices are one layer's
    assert tera_bops(graph, quantized) == pytest.approx(6 * 100 * 4 * 16 / 1e12)


@pytest.mark.parametrize("cost", [size_bytes, traffic_bytes, peak_bytes, avg_bits])
def test_a_foreign_weight_is_named(cost: Callable) -> None:
    with pytest.raises(OutsideSpace, match="no weight 'c'"):
        cost(GRAPH, QuantConfig("toy", {"c": UAQ}))


def test_the_table_looks_up_what_was_calibrated() -> None:
    table = MethodTable(
        ("a", "b"), (UAQ, FULL), np.array([[0.1, 0], [np.nan, 0]]), np.array([[5, 9], [0, 9]])
    )
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
