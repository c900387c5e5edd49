"""Encode a space and its table of errors as the arrays that the predictor reads.

Features of nodes are those that mean the same in any denoiser: op, role, relative depth, sizes,
connectivity, and the profile of the weight's errors over methods. Features of a decision (a weight
under a method) are the step 2^-bits, log(1 + error / e0), the relative error and the overhead, and
the step of the layer's input in a space that rounds inputs. They are zero for full precision, which
makes it the origin rather than an outlier.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from qsdm.graph import Graph, Node, Op, Role, canonical
from qsdm.qconfig import QuantMethod, Space
from qsdm.qconfig.activations import FULL
from qsdm.qconfig.cost import MethodTable

VERSION = "1"
MAIN_INPUTS = ("sample", "hidden_states", "x")  # diffusers' names for the noisy picture


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """What the predictor knows of a space.

    Attributes:
        space: the space whose configurations are predicted.
        methods: M methods, the columns of a one-hot configuration; column M is full precision.
        static: float32 [N, F], features of the nodes that no decision changes.
        decisions: float32 [W, M + 1, F'], features of a weight under a method; zeros for full
            precision.
        allowed: bool [W, M + 1], which methods are on offer; full precision always is.
        node_weight: int64 [N], index of the node's weight; W for a node without one.
        edges: int64 [2, E], source and target, with a loop at every node, sorted by target.
        columns: int64 [W, options], the method's column by gene; -1 beyond the weight's options.
        digest: sha256 of everything that the arrays depend on.
    """

    space: Space
    methods: tuple[QuantMethod, ...]
    static: np.ndarray
    decisions: np.ndarray
    allowed: np.ndarray
    node_weight: np.ndarray
    edges: np.ndarray
    columns: np.ndarray
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        about = [
            VERSION,
            self.space.graph.digest,
            [[str(m) for m in offered] for offered in self.space.options],
        ]
        digest = hashlib.sha256(canonical(about) + self.decisions.tobytes() + self.static.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def num_weights(self) -> int:
        """W, the number of weights."""
        return len(self.columns)

    def columns_of(self, genes: np.ndarray) -> np.ndarray:
        """Look up the column of each decision's method.

        Args:
            genes: int64 [B, W], index into the options of each weight.

        Returns:
            Int64 [B, W], from 0 to M.

        Raises:
            ValueError: a gene is not the index of an option of its weight.
        """
        genes = np.asarray(genes)
        if genes.ndim != 2 or genes.shape[1] != self.num_weights:
            raise ValueError(
                f"wanted genes of shape [configurations, {self.num_weights}] "
                f"(got {list(genes.shape)})"
            )
        counts = np.array([len(offered) for offered in self.space.options])
        if genes.size and (genes.min() < 0 or (genes >= counts).any()):
            raise ValueError(
                f"genes are indices into each weight's options, from 0 to at most "
                f"{counts.max() - 1} (got {genes.min()} to {genes.max()})"
            )
        return self.columns[np.arange(self.num_weights), genes]

    def one_hot(self, genes: np.ndarray) -> np.ndarray:
        """Encode configurations as one-hot.

        Args:
            genes: int64 [B, W], index into the options of each weight.

        Returns:
            Float32 [B, W, M + 1].

        Raises:
            ValueError: a gene is not the index of an option of its weight.
        """
        return self.hot(self.columns_of(genes))

    def hot(self, columns: np.ndarray) -> np.ndarray:
        """Encode columns of methods as one-hot.

        Args:
            columns: int64 [B, W], column of each decision's method, from 0 to M.

        Returns:
            Float32 [B, W, M + 1].
        """
        return np.eye(len(self.methods) + 1, dtype=np.float32)[columns]

    def full_precision(self) -> np.ndarray:
        """The configuration in which nothing is quantized, one-hot, float32 [1, W, M + 1]."""
        hot = np.zeros((1, self.num_weights, len(self.methods) + 1), dtype=np.float32)
        hot[..., -1] = 1
        return hot


def encode(space: Space, table: MethodTable) -> Encoding:
    """Encode a space.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.

    Returns:
        The arrays.

    Raises:
        ValueError: the table lacks a weight or a method that the space offers.
    """
    methods = space.methods
    error = errors(space, table)
    columns = np.full((len(space.options), max(map(len, space.options))), -1, dtype=np.int64)
    allowed = np.zeros((len(space.options), len(methods) + 1), dtype=bool)
    allowed[:, -1] = True
    for i, offered in enumerate(space.options):
        columns[i, : len(offered)] = [methods.index(method) for method in offered]
        allowed[i, columns[i, : len(offered)]] = True
    names = {weight.name: i for i, weight in enumerate(space.graph.weights)}
    node_weight = np.array(
        [names[node.weight.name] if node.weight else len(names) for node in space.graph.nodes]
    )
    loops = [(i, i) for i in range(len(space.graph.nodes))]
    edges = np.array(
        sorted([*space.graph.edges, *loops], key=lambda edge: (edge[1], edge[0])), dtype=np.int64
    ).T
    static = _static(space.graph, node_weight, error)
    return Encoding(
        space,
        methods,
        static,
        _decisions(space, methods, error),
        allowed,
        node_weight,
        edges,
        columns,
    )


def errors(space: Space, table: MethodTable) -> np.ndarray:
    """Look up errors in the order of a space's weights and methods.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.

    Returns:
        Relative squared error, float64 [W, M]; NaN where a method is not on offer.

    Raises:
        ValueError: the table lacks a weight or a method that the space offers.
    """
    rows = {name: i for i, name in enumerate(table.weights)}
    error = np.full((len(space.options), len(space.methods)), np.nan)
    for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
        for method in offered:
            value, own = 0.0, method.of_weight  # rounding an input changes no weight
            if not own.is_full:
                in_table = weight.name in rows and own in table.methods
                value = (
                    table.rel_error[rows[weight.name], table.methods.index(own)]
                    if in_table
                    else math.nan
                )
            if math.isnan(value):
                raise ValueError(
                    f"the table has no error of {weight.name!r} under {own}: "
                    "run calibrate with this space"
                )
            error[i, space.methods.index(method)] = value
    return error


def _decisions(space: Space, methods: tuple[QuantMethod, ...], error: np.ndarray) -> np.ndarray:
    families = sorted({method.name for method in methods if not method.is_full})
    scale = np.nanquantile(error[error > 0], 0.05) if (error > 0).any() else 1.0
    typical = np.nanmedian(error[error > 0]) if (error > 0).any() else 1.0
    share = np.sqrt([weight.numel / space.graph.num_values for weight in space.graph.weights])
    num = len(families) + 4 + space.rounds_inputs
    features = np.zeros((len(space.options), len(methods) + 1, num), dtype=np.float32)
    for i, weight in enumerate(space.graph.weights):
        for method in space.options[i]:
            if method.is_full:
                continue
            j = methods.index(method)
            overhead = method.size_bits(weight, space.full_bits) / weight.numel - method.bits
            numbers = (
                8 * 2.0**-method.bits,
                math.log1p(error[i, j] / scale),
                error[i, j] / typical,
                overhead * share[i],
            )
            features[i, j, :4] = numbers
            features[i, j, 4 + families.index(method.name)] = 1
            if method.inputs != FULL:
                features[i, j, -1] = 8 * 2.0**-method.inputs
    return features


def _static(graph: Graph, node_weight: np.ndarray, error: np.ndarray) -> np.ndarray:
    num_nodes = len(graph.nodes)
    parents: list[list[int]] = [[] for _ in range(num_nodes)]
    children: list[list[int]] = [[] for _ in range(num_nodes)]
    for a, b in graph.edges:
        parents[b].append(a)
        children[a].append(b)
    from_input, to_output = np.zeros(num_nodes), np.zeros(num_nodes)
    main = _main_input(graph)
    picture = np.zeros(num_nodes, dtype=bool)  # whether the noisy picture reaches the node
    for i in range(num_nodes):
        from_input[i] = min((from_input[p] + 1 for p in parents[i]), default=0)
        picture[i] = i == main or any(picture[p] for p in parents[i])
    for i in reversed(range(num_nodes)):
        to_output[i] = min((to_output[c] + 1 for c in children[i]), default=0)
    profile = np.log(np.maximum(error, 1e-12))
    means = np.nanmean(profile, axis=1, keepdims=True)
    profile = np.concatenate([means, np.where(np.isnan(profile), 0, profile - means)], axis=1)
    # Nodes without a weight get the mean.
    profile = np.concatenate([profile, profile.mean(axis=0, keepdims=True)])
    numbers = [
        [*_sizes(node, graph), node.depth, math.log1p(from_input[i]), math.log1p(to_output[i]),
         len(parents[i]), len(children[i]), float(picture[i]), *profile[node_weight[i]]]
        for i, node in enumerate(graph.nodes)
    ]  # fmt: skip
    kinds = [
        [node.op == op for op in Op] + [node.role == role for role in Role] for node in graph.nodes
    ]
    scaled = np.array(numbers, dtype=np.float64)
    scaled = (scaled - scaled.mean(axis=0)) / (scaled.std(axis=0) + 1e-6)
    return np.concatenate([scaled, np.array(kinds, dtype=np.float64)], axis=1).astype(np.float32)


def _sizes(node: Node, graph: Graph) -> tuple[float, ...]:
    activation = math.log1p(math.prod(node.activation)) if node.activation else 0.0
    if node.weight is None:
        return (math.log1p(node.macs), activation, 0.0, 0.0, 0.0, 0.0)
    shape = node.weight.shape
    share = math.log(node.weight.numel / graph.num_values)
    return (
        math.log1p(node.macs),
        activation,
        math.log(shape[0]),
        math.log(shape[1]),
        float(len(shape) > 2 and max(shape[2:]) > 1),
        share,
    )


def _main_input(graph: Graph) -> int:
    inputs = [i for i, node in enumerate(graph.nodes) if node.op == Op.INPUT]
    named = [
        i for i in inputs if graph.nodes[i].name.rpartition(".")[2].partition("@")[0] in MAIN_INPUTS
    ]
    return next(iter(named or inputs), -1)
