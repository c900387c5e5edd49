"""The graph neural network: attention over the denoiser's graph, one value per configuration.

The graph is the same for all configurations. So a batch, [N, B, F], shares one list of edges.

References:
    How Attentive are Graph Attention Networks? (Brody et al., 2022), Eq. 7.

    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025),
    section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import GATv2Conv

from qsdm.predictor.attention import Attention
from qsdm.predictor.encode import Encoding


class StaticGATv2Conv(GATv2Conv):
    """GATv2Conv with one head, for a batch of features on one graph.

    The constructor and the parameters are those of GATv2Conv.
    """

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layer.

        Args:
            x: float32 [N, B, F].
            edge_index: int64 [2, E], sorted by target, with a loop at every node.

        Returns:
            Float32 [N, B, F'].
        """
        matrix = torch.cat([self.lin_l.weight, self.lin_r.weight])
        both = nn.functional.linear(x, matrix, torch.cat([self.lin_l.bias, self.lin_r.bias]))
        sources, targets = (row.contiguous() for row in edge_index)
        starts = torch.searchsorted(targets, torch.arange(len(x) + 1))
        attended = Attention.apply(both, self.att.flatten(), self.negative_slope, starts, sources)
        return attended + self.bias


class Prediction(NamedTuple):
    """Results of the network.

    Attributes:
        value: [B], standardized label.
        norms: [H + 1, B], L1 norm of each hop's graph embedding.
        nodes: [H + 1, W, B], L1 norm of each weight's embedding at each hop.
    """

    value: Tensor
    norms: Tensor
    nodes: Tensor


class Gnn(nn.Module):
    """Predicts standardized labels and norms of hop embeddings for configurations of one space.

    The label is a closed model of the decisions (zero until it is fitted) plus ``share`` times what
    the network learned: the mean over weights of a contribution that is computed from the weight's
    last embedding. The closed model is a sum over decisions and, where one was fitted with pairs, a
    quadratic form of amplitudes (see `qsdm.predictor.informed`).

    Args:
        encoding: of the space.
        width: size of every embedding.
        hops: number of attention layers.
    """

    static: Tensor
    decisions: Tensor
    edges: Tensor
    node_weight: Tensor
    weight_node: Tensor
    additive: Tensor
    offset: Tensor
    amplitude: Tensor
    pairs: Tensor
    share: Tensor

    def __init__(self, encoding: Encoding, width: int = 64, hops: int = 4) -> None:
        super().__init__()
        self.width, self.hops = width, hops
        num_weights = encoding.num_weights
        first = [int((encoding.node_weight == w).argmax()) for w in range(num_weights)]
        for name, array in (
            ("static", encoding.static),
            ("decisions", encoding.decisions),
            ("edges", encoding.edges),
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.register_buffer(
            "node_weight", torch.from_numpy(encoding.node_weight), persistent=False
        )
        self.register_buffer("weight_node", torch.tensor(first), persistent=False)
        self.register_buffer("additive", torch.zeros(num_weights, encoding.decisions.shape[1]))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("amplitude", torch.zeros(num_weights, encoding.decisions.shape[1]))
        self.register_buffer("pairs", torch.zeros(num_weights, num_weights))
        self.register_buffer("share", torch.ones(()))
        self.embed_static = nn.Linear(encoding.static.shape[1], width)
        self.embed_decision = nn.Linear(encoding.decisions.shape[2], width, bias=False)
        self.convs = nn.ModuleList(
            StaticGATv2Conv(width, width, add_self_loops=False) for _ in range(hops)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(hops))
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)  # initially the additive model alone counts
        self.contribution = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)

    def embed(self, configurations: Tensor) -> Tensor:
        """Compute the first embedding of every node, before its activation.

        Args:
            configurations: float32 [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float32 [N, B, width].
        """
        table = self.embed_decision(self.decisions)  # [W, M + 1, width]
        chosen = torch.einsum("bwm,wmf->wbf", configurations, table)
        nothing = chosen.new_zeros(1, *chosen.shape[1:])  # of nodes without a weight
        chosen = torch.cat([chosen, nothing])
        return self.embed_static(self.static)[:, None] + chosen[self.node_weight]

    def forward(self, configurations: Tensor) -> Prediction:
        """Predict labels.

        Args:
            configurations: float32 [B, W, M + 1], one-hot or relaxed.

        Returns:
            Labels and norms.
        """
        h = torch.relu(self.embed(configurations))
        hops = [h]
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            new = conv(h, self.edges)
            new = torch.relu(norm(new.flatten(0, 1)).view_as(new))
            h = new + h if i > 0 else new
            hops.append(h)
        units = torch.stack([hop[self.weight_node] for hop in hops])  # [H + 1, W, B, width]
        learned = self.contribution(units[-1]).mean(dim=(0, 2)) * len(self.weight_node) ** 0.5
        amplitude = torch.einsum("bwm,wm->bw", configurations, self.amplitude)
        value = (
            torch.einsum("bwm,wm->b", configurations, self.additive)
            + (amplitude @ self.pairs * amplitude).sum(dim=1)
            + self.offset
            + self.share * learned
        )
        return Prediction(value, units.mean(dim=1).abs().sum(dim=-1), units.abs().sum(dim=-1))
