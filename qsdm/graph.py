"""A denoiser as plain data: nodes with op and role, edges, and the weights that get a method.

Nodes are calls, weights are decisions. A parameter that two calls use is one `Weight` on two nodes.
A parameter whose input channels are a concatenation (a U-Net's skip connection) is one `Weight` per
input, named ``conv1#0`` and ``conv1#1``.
"""

from __future__ import annotations

import dataclasses
import graphlib
import hashlib
import heapq
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx

SCHEMA = "qsdm/graph/1"


class Op(StrEnum):
    """What a node computes; one vocabulary for all denoisers."""

    INPUT = "input"
    OUTPUT = "output"
    LINEAR = "linear"
    CONV = "conv"
    EMBEDDING = "embedding"
    PARAM_MATMUL = "param_matmul"
    SDPA = "sdpa"
    MHA = "mha"
    MATMUL = "matmul"
    ADD = "add"
    ADD_COND = "add_cond"
    MUL = "mul"
    GATE = "gate"
    MODULATE = "modulate"
    CONCAT = "concat"
    NORM = "norm"
    SELECT = "select"
    MIX = "mix"


class Role(StrEnum):
    """What a weight is for, derived from where its data goes."""

    NONE = ""
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_QK = "attn_qk"
    ATTN_KV = "attn_kv"
    ATTN_QKV = "attn_qkv"
    ATTN_MM = "attn_mm"
    ATTN_OUT = "attn_out"
    ATTN_FF_OUT = "attn_ff_out"
    FF_IN = "ff_in"
    FF_OUT = "ff_out"
    ADALN = "adaln"
    COND_PROJ = "cond_proj"
    COND_IN = "cond_in"
    COND_MLP = "cond_mlp"
    EMBED_IN = "embed_in"
    CONV_IN = "conv_in"
    CONV = "conv"
    CONV_OUT = "conv_out"
    PROJ_OUT = "proj_out"
    SKIP_PROJ = "skip_proj"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Weight:
    """What gets a quantization method: the weight of a Linear or Conv, or a slice of its inputs.

    Attributes:
        name: module path, with ``#k`` for the k-th input slice.
        parameter: name in the denoiser's state dict.
        shape: of the slice, ``[out, in, *kernel]``.
        start: first input channel of the slice.
        ties: other parameters that hold the same values and follow the same decision.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    start: int = 0
    ties: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1 or self.start < 0:
            raise ValueError(
                f"a weight needs a shape [out, in, ...] of positive sizes, and a start that is not "
                f"negative (got {self.shape} and {self.start} for {self.name!r})"
            )

    @property
    def numel(self) -> int:
        """Number of stored values, including those of tied parameters."""
        return math.prod(self.shape) * (1 + len(self.ties))

    @property
    def fan_in(self) -> int:
        """Number of values per output channel."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class Node:
    """One op of the compact graph.

    Attributes:
        name: unique; of a node with a weight, the weight's name, with ``@k`` for the k-th repeated
            call.
        op: what it computes.
        role: what its weight is for.
        stage: outermost part of the denoiser that contains the op.
        block: innermost repeated part of the denoiser that contains the op.
        weight: the weight that it uses, if it is quantizable.
        activation: shape of the output at batch size 1.
        macs: multiply-accumulates at batch size 1.
        depth: longest path from an input, relative to the longest of all, in [0, 1].
        dead: no path leads to an output.
    """

    name: str
    op: Op
    role: Role = Role.NONE
    stage: str = ""
    block: str = ""
    weight: Weight | None = None
    activation: tuple[int, ...] = ()
    macs: int = 0
    depth: float = 0.0
    dead: bool = False

    def __post_init__(self) -> None:
        if self.macs < 0 or min(self.activation, default=0) < 0 or not 0 <= self.depth <= 1:
            raise ValueError(
                f"a node needs sizes that are not negative, and a depth from 0 to 1 (got macs "
                f"{self.macs}, activation {self.activation}, depth {self.depth} for {self.name!r})"
            )


@dataclass(frozen=True, slots=True)
class Graph:
    """A denoiser's computational graph, topologically sorted.

    Attributes:
        denoiser: its name.
        nodes: in topological order.
        edges: (source, target) as indices into ``nodes``.
        weights: the distinct weights of the nodes, in order of first use.
        num_values: number of quantizable values, including those of tied parameters.
        digest: sha256 of the canonical JSON.

    Raises:
        ValueError: a name occurs twice, or an edge does not lead to a later node.

    Example:
        >>> from qsdm.graph import Graph, Node, Op, Role, Weight
        >>> proj = Node("proj", Op.LINEAR, Role.FF_IN, weight=Weight("proj", "proj.weight", (8, 4)))
        >>> graph = Graph("tiny", (Node("x", Op.INPUT), proj), ((0, 1),))
        >>> graph.num_values, graph.node_of("proj").role
        (32, <Role.FF_IN: 'ff_in'>)
    """

    denoiser: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    weights: tuple[Weight, ...] = field(init=False, compare=False, repr=False)
    num_values: int = field(init=False, compare=False, repr=False)
    digest: str = field(init=False, compare=False, repr=False)
    _first: dict[str, Node] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"node names must be unique (got {twice!r} twice)")
        for source, target in self.edges:
            if not 0 <= source < target < len(names):
                raise ValueError(
                    f"nodes must be topologically sorted "
                    f"(got the edge {source} -> {target} of {len(names)} nodes)"
                )
        weights: dict[str, Weight] = {}
        first: dict[str, Node] = {}
        for node in self.nodes:
            weight = node.weight
            if weight is None:
                continue
            if weights.setdefault(weight.name, weight) != weight:
                raise ValueError(f"two weights are called {weight.name!r}")
            first.setdefault(weight.name, node)
        object.__setattr__(self, "weights", tuple(weights.values()))
        object.__setattr__(self, "num_values", sum(weight.numel for weight in self.weights))
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "digest", hashlib.sha256(canonical(self.to_json())).hexdigest())

    def node_of(self, name: str) -> Node:
        """Look up the first node that uses a weight.

        Args:
            name: of the weight.

        Returns:
            The node.

        Raises:
            KeyError: the graph has no such weight.
        """
        if name not in self._first:
            raise KeyError(f"no weight {name!r} in the graph of {self.denoiser!r}")
        return self._first[name]

    def to_json(self) -> dict[str, Any]:
        """The contents of graph.json."""
        return {
            "schema": SCHEMA,
            "denoiser": self.denoiser,
            "nodes": [dataclasses.asdict(node) for node in self.nodes],
            "edges": [list(edge) for edge in self.edges],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Graph:
        """The inverse of `to_json`.

        Args:
            data: contents of a graph.json.

        Returns:
            The graph.

        Raises:
            ValueError: ``data`` is not a graph of this schema.
        """
        from qsdm.store.files import decode

        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            schema = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"wanted a graph of schema {SCHEMA!r}, got {schema!r}")
        stored = decode(data, _GraphFile)
        return Graph(stored.denoiser, stored.nodes, stored.edges)

    def to_networkx(self) -> networkx.DiGraph:
        """Convert to networkx.

        Returns:
            Nodes by name, with the fields of `Node` as attributes (``weight`` is its name).
        """
        import networkx

        graph = networkx.DiGraph(denoiser=self.denoiser)
        for node in self.nodes:
            fields = {
                f.name: getattr(node, f.name)
                for f in dataclasses.fields(node)
                if f.name != "weight"
            }
            fields |= {
                "op": str(node.op),
                "role": str(node.role),
                "weight": node.weight.name if node.weight else "",
            }
            graph.add_node(node.name, **fields)
        graph.add_edges_from((self.nodes[a].name, self.nodes[b].name) for a, b in self.edges)
        return graph

    def to_graphml(self) -> str:
        """Convert to GraphML, for Gephi, yEd or Cytoscape.

        Returns:
            XML of `to_networkx`; shapes are strings such as ``320x4x3x3``.
        """
        import networkx

        graph = self.to_networkx()
        for node in self.nodes:
            shape = node.weight.shape if node.weight else ()
            graph.add_node(node.name, activation=_times(node.activation), shape=_times(shape))
        return "\n".join(networkx.generate_graphml(graph)) + "\n"


@dataclass(frozen=True, slots=True)
class _GraphFile:
    """Contents of graph.json, without the name of its schema."""

    denoiser: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def canonical(data: Any) -> bytes:
    """Serialize data to canonical JSON: sorted keys, no spaces, no NaN.

    Args:
        data: any value that JSON can hold.

    Returns:
        UTF-8.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def merge_splits(graph: Graph, keep: str) -> Graph:
    """Merge the input slices of weights.

    Args:
        graph: as it was traced.
        keep: regular expression; weights of modules whose paths match it stay split.

    Returns:
        The graph in which the slices of any other weight are one weight again, on the node of the
        first slice.
    """
    pattern = re.compile(keep)
    slices: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if (
            node.weight is not None
            and "#" in node.weight.name
            and not pattern.search(node.weight.name.partition("#")[0])
        ):
            slices.setdefault(
                node.name.replace(node.weight.name, node.weight.name.partition("#")[0]), []
            ).append(node)
    merged_into: dict[str, Node] = {}  # name of a slice's node => node of the whole
    for name, parts in slices.items():
        weights = [part.weight for part in parts if part.weight is not None]
        first = weights[0]
        channels = sum(weight.shape[1] for weight in weights)
        whole = dataclasses.replace(
            first,
            name=first.name.partition("#")[0],
            shape=(first.shape[0], channels, *first.shape[2:]),
            start=0,
        )
        node = dataclasses.replace(
            parts[0], name=name, weight=whole, macs=sum(part.macs for part in parts)
        )
        merged_into |= {part.name: node for part in parts}
    nodes: list[Node] = []
    index: dict[str, int] = {}
    for old in graph.nodes:
        new = merged_into.get(old.name, old)
        if new.name not in index:
            index[new.name] = len(nodes)
            nodes.append(new)
    renamed = [index[merged_into.get(node.name, node).name] for node in graph.nodes]
    edges = dict.fromkeys(
        (renamed[a], renamed[b]) for a, b in graph.edges if renamed[a] != renamed[b]
    )
    return sorted_graph(graph.denoiser, nodes, list(edges))


def union(denoiser: str, graphs: Mapping[str, Graph], feeds: Iterable[tuple[str, str]]) -> Graph:
    """Put the graphs of several parts of a pipeline into one.

    Names of nodes, weights, parameters, stages and blocks begin with the part's, as ``vae.``;
    everything else is as in the part's own graph, relative depths among it. So `subgraph` gives
    that back.

    Args:
        denoiser: name of the whole.
        graphs: by name of the part, in the order of the nodes.
        feeds: names of two parts, the earlier one first: an edge leads from each output of the one
            to what the other takes beside its first input, the noisy picture; to its only input if
            it has one.

    Returns:
        The graph.
    """
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    ends: dict[str, tuple[list[int], list[int]]] = {}
    for name, graph in graphs.items():
        start = len(nodes)
        nodes += [_renamed(node, f"{name}.", "") for node in graph.nodes]
        edges += [(start + a, start + b) for a, b in graph.edges]
        numbered = list(enumerate(graph.nodes, start))
        inputs = [i for i, node in numbered if node.op == Op.INPUT]
        # A time step is a number, or one for each picture.
        others = [i for i in inputs[1:] if len(nodes[i].activation) > 1]
        outputs = [i for i, node in numbered if node.op == Op.OUTPUT]
        ends[name] = (others if len(inputs) > 1 else inputs, outputs)
    for source, target in feeds:
        edges += [(a, b) for a in ends[source][1] for b in ends[target][0]]
    return Graph(denoiser, tuple(nodes), tuple(sorted(edges)))


def parts_of(graph: Graph) -> tuple[str, ...]:
    """Name the parts that `union` put into a graph.

    Args:
        graph: of one part of a pipeline or of several.

    Returns:
        The names; none if it is of one.
    """
    ends = (node.name.rpartition(".")[0] for node in graph.nodes if node.op == Op.OUTPUT)
    return tuple(dict.fromkeys(filter(None, ends)))


def subgraph(graph: Graph, name: str, denoiser: str) -> Graph:
    """Take the graph of one part out of a graph of several.

    Args:
        graph: that `union` made, or one of its spaces.
        name: of the part.
        denoiser: name of the result.

    Returns:
        The part's own graph.
    """
    chosen = [i for i, node in enumerate(graph.nodes) if node.name.startswith(f"{name}.")]
    position = {old: new for new, old in enumerate(chosen)}
    edges = [(position[a], position[b]) for a, b in graph.edges if {a, b} <= position.keys()]
    nodes = tuple(_renamed(graph.nodes[i], "", f"{name}.") for i in chosen)
    return Graph(denoiser, nodes, tuple(edges))


def _renamed(node: Node, prefix: str, without: str) -> Node:
    """A node with other beginnings of all names in it."""

    def name(text: str) -> str:
        return f"{prefix}{text.removeprefix(without)}"

    def place(text: str) -> str:  # empty at the top of a part's module tree
        return name(f"{text}.").rstrip(".")

    weight = node.weight
    if weight is not None:
        ties = tuple(map(name, weight.ties))
        weight = dataclasses.replace(
            weight, name=name(weight.name), parameter=name(weight.parameter), ties=ties
        )
    return dataclasses.replace(
        node,
        name=name(node.name),
        stage=place(node.stage),
        block=place(node.block),
        weight=weight,
    )


def topological_order(
    sources: Mapping[int, Iterable[int]], key: Callable[[int], tuple[int, ...]]
) -> list[int]:
    """Sort nodes so that each follows its sources; where there is a choice, by a key.

    Args:
        sources: of every node.
        key: of nodes that could stand at the same place; equal ones follow their numbers.

    Returns:
        All nodes.

    Raises:
        graphlib.CycleError: there is a cycle.
    """
    sorter = graphlib.TopologicalSorter(sources)
    sorter.prepare()
    ready: list[tuple[tuple[int, ...], int]] = []
    order = []
    while sorter.is_active():
        for node in sorter.get_ready():
            heapq.heappush(ready, (key(node), node))
        order.append(node := heapq.heappop(ready)[1])
        sorter.done(node)
    return order


def sorted_graph(denoiser: str, nodes: list[Node], edges: list[tuple[int, int]]) -> Graph:
    """Build a graph from nodes in any order.

    Args:
        denoiser: its name.
        nodes: in any order, which is kept as far as the topological order allows.
        edges: (source, target) as indices into ``nodes``.

    Returns:
        The graph, topologically sorted.

    Raises:
        ValueError: there is a cycle.
    """
    sources: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    for a, b in edges:
        sources[b].append(a)
    try:
        order = topological_order(sources, key=lambda i: (i,))
    except graphlib.CycleError as error:
        raise ValueError(f"the graph of {denoiser!r} has a cycle") from error
    position = {old: new for new, old in enumerate(order)}
    return Graph(
        denoiser,
        tuple(nodes[i] for i in order),
        tuple(sorted((position[a], position[b]) for a, b in edges)),
    )
