"""A graph as torch-geometric data, without errors and decisions, for other networks.

Example::

    data = to_pyg(graph)
    data.x, data.edge_index, data.weight_index  # [N, F], [2, E], [N]

On disk it is a safetensors file, which any program can read, instead of a pickle of `Data`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch

from qsdm.graph import Graph, Node, Op, Role
from qsdm.store import StoreError
from qsdm.store.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch_geometric.data import Data

NUMBERS = (
    "log2_macs",  # log2(1 + multiply-accumulates at batch 1)
    "log2_activation",  # log2(1 + values of the output at batch 1)
    "log2_out_channels",  # log2(1 + .) of the weight's shape [out, in, *kernel]; 0 without a weight
    "log2_in_channels",
    "log2_kernel",
    "depth",  # longest path from an input, relative to the longest of all, in [0, 1]
    "dead",  # 1 if no path leads to an output
)
FEATURES = (*NUMBERS, *(f"op={op}" for op in Op), *(f"role={role}" for role in Role))
"""Columns of ``x``: numbers, then op and role, both one-hot."""
_TENSORS = ("x", "edge_index", "weight_index")


def to_pyg(graph: Graph) -> Data:
    """Convert a graph to `torch_geometric.data.Data`.

    Args:
        graph: of a denoiser.

    Returns:
        Data with ``x`` float32 [N, F], see `FEATURES`; ``edge_index`` int64 [2, E], source and
        target; ``weight_index`` int64 [N], index of the node's weight in ``graph.weights``, -1
        without a weight; the lists ``name``, ``weight`` and ``feature``; and ``denoiser``.
    """
    from torch_geometric.data import Data

    index = {weight.name: i for i, weight in enumerate(graph.weights)}
    return Data(
        x=torch.tensor([_features(node) for node in graph.nodes], dtype=torch.float32).reshape(
            -1, len(FEATURES)
        ),
        edge_index=torch.tensor(graph.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        weight_index=torch.tensor(
            [index[node.weight.name] if node.weight else -1 for node in graph.nodes]
        ),
        num_nodes=len(graph.nodes),
        name=[node.name for node in graph.nodes],
        weight=[weight.name for weight in graph.weights],
        feature=list(FEATURES),
        denoiser=graph.denoiser,
    )


class _GraphFile(TypedDict):
    denoiser: str
    name: list[str]
    weight: list[str]
    feature: list[str]


def write_pyg(path: Path, data: Data) -> None:
    """Write data that `to_pyg` returned.

    Args:
        path: of the safetensors file.
        data: a graph.

    Raises:
        StoreError: the file cannot be written.
    """
    about = {
        "denoiser": data.denoiser,
        "name": data.name,
        "weight": data.weight,
        "feature": data.feature,
    }
    write_tensors(path, {key: np.asarray(data[key]) for key in _TENSORS}, about)


def read_pyg(path: Path) -> Data:
    """Read data that `write_pyg` wrote.

    Args:
        path: of the safetensors file.

    Returns:
        The graph.

    Raises:
        StoreError: the file is missing, damaged or does not hold a graph.
    """
    from torch_geometric.data import Data

    tensors, about = read_tensors(path, _GraphFile, "trace with export=pyg again")
    if set(tensors) != set(_TENSORS):
        raise StoreError(
            f"{path} does not hold a graph (it holds {', '.join(sorted(tensors))}): "
            "trace with export=pyg again"
        )
    return Data(
        **{key: torch.from_numpy(value) for key, value in tensors.items()},
        num_nodes=len(about["name"]),
        **about,
    )


def _features(node: Node) -> list[float]:
    shape = node.weight.shape if node.weight else ()
    sizes = (shape[0], shape[1], math.prod(shape[2:])) if shape else (0, 0, 0)
    numbers = [
        math.log2(1 + n)
        for n in (node.macs, math.prod(node.activation) if node.activation else 0, *sizes)
    ]
    kinds = [*(node.op == op for op in Op), *(node.role == role for role in Role)]
    return [*numbers, node.depth, *map(float, (node.dead, *kinds))]
