"""Graphs as plain data: order, JSON, splits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsdm.graph import (
    Graph,
    Node,
    Op,
    Role,
    Weight,
    canonical,
    merge_splits,
    sorted_graph,
    topological_order,
)


def weight(name: str, out: int, channels: int, start: int = 0) -> Weight:
    return Weight(name, f"{name.partition('#')[0]}.weight", (out, channels, 3, 3), start)


def skip_graph() -> Graph:
    """input => down => skip; input + skip => conv1, split in two; both halves added => output."""
    nodes = (
        Node("input", Op.INPUT),
        Node("down", Op.CONV, Role.CONV_IN, weight=weight("down", 8, 4), macs=10),
        Node("up.conv1#0", Op.CONV, Role.CONV, weight=weight("up.conv1#0", 8, 4), macs=20),
        Node("up.conv1#1", Op.CONV, Role.CONV, weight=weight("up.conv1#1", 8, 8, 4), macs=40),
        Node("up.conv1+", Op.ADD),
        Node("output", Op.OUTPUT),
    )
    return Graph("toy", nodes, ((0, 1), (0, 2), (1, 3), (2, 4), (3, 4), (4, 5)))


def test_json_round_trip() -> None:
    graph = skip_graph()
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again == graph
    assert again.digest == graph.digest


def test_the_digest_follows_the_content() -> None:
    graph = skip_graph()
    assert Graph("other", graph.nodes, graph.edges).digest != graph.digest
    assert Graph("toy", graph.nodes, graph.edges[:-1]).digest != graph.digest


@pytest.mark.parametrize(
    "data", [None, [], {}, {"schema": "qsdm/graph/0"}, {"schema": "qsdm/graph/1"}]
)
def test_foreign_json_is_refused(data: object) -> None:
    with pytest.raises(
        ValueError, match=r"wanted a graph of schema|missing required field `denoiser`"
    ):
        Graph.from_json(data)  # type: ignore[arg-type]


def test_an_edge_must_go_forward() -> None:
    with pytest.raises(ValueError, match="topologically sorted"):
        Graph("toy", (Node("a", Op.INPUT), Node("b", Op.OUTPUT)), ((1, 0),))


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="'a' twice"):
        Graph("toy", (Node("a", Op.INPUT), Node("a", Op.OUTPUT)), ())


def test_a_weight_needs_a_shape() -> None:
    with pytest.raises(ValueError, match="positive sizes"):
        Weight("a", "a.weight", (4, 0))


def test_two_calls_of_one_weight_are_one_decision() -> None:
    shared = Weight("embed", "embed.weight", (4, 4))
    nodes = (Node("embed", Op.LINEAR, weight=shared), Node("embed@1", Op.LINEAR, weight=shared))
    graph = Graph("toy", nodes, ((0, 1),))
    assert graph.weights == (shared,)
    assert graph.num_values == 16


def test_tied_parameters_are_stored_values() -> None:
    tied = Weight("a", "a.weight", (4, 4), ties=("b.weight", "c.weight"))
    assert tied.numel == 3 * 16


def test_graphml_round_trip() -> None:
    """What another program reads is what `to_networkx` holds; shapes are texts."""
    import networkx

    graph = skip_graph()
    text = graph.to_graphml()
    assert 'attr.name="macs" attr.type="long"' in text  # a large layer has more than 2^31
    again = networkx.parse_graphml(text)
    there = graph.to_networkx()
    assert again.graph["denoiser"] == "toy"
    assert list(again.nodes) == [node.name for node in graph.nodes]
    assert set(again.edges) == set(there.edges)
    assert again.nodes["up.conv1#1"]["shape"] == "8x8x3x3"
    for name, fields in again.nodes.items():
        expected = dict(there.nodes[name])
        expected["activation"] = "x".join(map(str, expected["activation"]))
        assert {key: value for key, value in fields.items() if key != "shape"} == expected


def test_merging_all_splits_restores_the_layer() -> None:
    graph = skip_graph()
    merged = merge_splits(graph, r"\Z.")  # matches nothing
    assert [w.name for w in merged.weights] == ["down", "up.conv1"]
    assert merged.weights[1].shape == (8, 12, 3, 3)
    assert merged.num_values == graph.num_values
    assert sum(node.macs for node in merged.nodes) == sum(node.macs for node in graph.nodes)
    assert merged.node_of("up.conv1").role == Role.CONV


def test_merging_none_changes_nothing() -> None:
    assert merge_splits(skip_graph(), ".*") == skip_graph()


def test_a_whole_reads_what_its_slices_read() -> None:
    merged = merge_splits(skip_graph(), "other").to_networkx()
    assert set(merged.predecessors("up.conv1")) == {"input", "down"}


def test_an_unknown_weight_is_named() -> None:
    with pytest.raises(KeyError, match="no weight 'nothing'"):
        skip_graph().node_of("nothing")


@given(st.permutations(range(6)))
def test_sorting_any_order_gives_the_same_relations(order: list[int]) -> None:
    graph = skip_graph()
    position = {old: new for new, old in enumerate(order)}
    nodes = [graph.nodes[i] for i in order]
    again = sorted_graph("toy", nodes, [(position[a], position[b]) for a, b in graph.edges])
    assert set(again.to_networkx().edges) == set(graph.to_networkx().edges)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        sorted_graph("toy", [Node("a", Op.ADD), Node("b", Op.ADD)], [(0, 1), (1, 0)])


def test_canonical_json_ignores_the_order_of_keys() -> None:
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2], "a": 1}) == b'{"a":1,"b":[2]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


@pytest.mark.parametrize("seed", range(5))
def test_topological_order_is_networkxs(seed: int) -> None:
    import networkx

    rng = np.random.default_rng(seed)
    edges = [(a, b) for a in range(40) for b in range(a + 1, 40) if rng.random() < 0.05]
    names = rng.permutation(40).tolist()  # so that numbers say nothing about the order
    sources: dict[int, list[int]] = {name: [] for name in sorted(names)}
    for a, b in edges:
        sources[names[b]].append(names[a])
    key = {name: (int(rng.integers(10)),) for name in names}
    graph = networkx.DiGraph()
    graph.add_nodes_from(sorted(names))
    graph.add_edges_from((source, name) for name, before in sources.items() for source in before)
    expected = networkx.lexicographical_topological_sort(graph, key=lambda n: (key[n], n))
    assert topological_order(sources, key.__getitem__) == list(expected)
