"""A graph as torch-geometric data, and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qsdm.graph import Graph, Node, Op, Role, Weight
from qsdm.predictor.pyg import FEATURES, read_pyg, to_pyg, write_pyg
from qsdm.store import StoreError
from qsdm.store.tensors import write_tensors

SHARED = Weight("a", "a.weight", (3, 7))
GRAPH = Graph(
    "toy",
    (
        Node("input", Op.INPUT, activation=(1, 7)),
        Node("a", Op.LINEAR, Role.FF_IN, weight=SHARED, activation=(1, 3), macs=21, depth=0.5),
        Node("c", Op.CONV, Role.CONV, weight=Weight("c", "c.weight", (3, 1, 3, 3)), dead=True),
        Node("a@1", Op.LINEAR, weight=SHARED, depth=1.0),
    ),
    ((0, 1), (1, 2), (1, 3)),
)


def test_every_node_edge_and_weight_is_there() -> None:
    data = to_pyg(GRAPH)
    assert data.validate(raise_on_error=True)
    assert list(map(tuple, data.edge_index.T.tolist())) == list(GRAPH.edges)
    assert data.name == ["input", "a", "c", "a@1"]
    assert data.weight_index.tolist() == [-1, 0, 1, 0]  # a call is a node, a weight is a decision
    assert data.weight == ["a", "c"]
    assert data.x.shape == (4, len(FEATURES)) == (4, len(data.feature))


def test_features_can_be_read_back() -> None:
    rows = [dict(zip(FEATURES, row, strict=True)) for row in to_pyg(GRAPH).x.double().tolist()]
    for node, row in zip(GRAPH.nodes, rows, strict=True):
        assert 2 ** row["log2_macs"] - 1 == pytest.approx(node.macs, rel=1e-5)
        assert [key for key in row if key.startswith("op=") and row[key]] == [f"op={node.op}"]
        assert [key for key in row if key.startswith("role=") and row[key]] == [f"role={node.role}"]
        assert (row["depth"], row["dead"]) == (node.depth, node.dead)
    sizes = [2 ** rows[2][f"log2_{name}"] - 1 for name in ("out_channels", "in_channels", "kernel")]
    assert sizes == pytest.approx([3, 1, 9])
    assert rows[0]["log2_in_channels"] == 0


def test_round_trip_on_disk(tmp_path: Path) -> None:
    data = to_pyg(GRAPH)
    write_pyg(tmp_path / "graph.safetensors", data)
    again = read_pyg(tmp_path / "graph.safetensors")
    assert set(again.keys()) == set(data.keys())
    for key, value in data.to_dict().items():
        assert (
            torch.equal(again[key], value)
            if isinstance(value, torch.Tensor)
            else again[key] == value
        )
    write_tensors(tmp_path / "other.safetensors", {"x": np.zeros(1)}, {})
    with pytest.raises(
        StoreError, match=r"damaged or was not written by qsdm .*missing required field"
    ):
        read_pyg(tmp_path / "other.safetensors")


def test_a_graph_without_edges_or_nodes_has_empty_arrays() -> None:
    assert to_pyg(Graph("toy", GRAPH.nodes[:1], ())).edge_index.shape == (2, 0)
    assert to_pyg(Graph("toy", (), ())).x.shape == (0, len(FEATURES))
