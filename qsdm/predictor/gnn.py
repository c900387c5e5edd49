"""The graph neural network: attention over the denoiser's graph, one value per configuration.

The graph is the same for all configurations. What they share is computed once (see
`qsdm.predictor.rows`).

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025),
    section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from qsdm.predictor.encode import Encoding
from qsdm.predictor.layer import Attention, layer, mean
from qsdm.predictor.rows import Rows, Wiring


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Results of the network.

    Attributes:
        value: [B], standardized label.
        hops: [R, width] of each of H + 1 hops, the embeddings.
        units: int64 [W, B] of each hop, row of each weight's embedding.
    """

    value: Tensor
    hops: Sequence[Tensor]
    units: Sequence[np.ndarray]

    @property
    def norms(self) -> Tensor:
        """L1 norm of each hop's graph embedding, the mean over weights, [H + 1, B]."""
        means = [mean(hop, rows) for hop, rows in zip(self.hops, self.units, strict=True)]
        return torch.stack(means).abs().sum(dim=-1)

    @property
    def nodes(self) -> Tensor:
        """L1 norm of each weight's embedding at each hop, [H + 1, W, B]."""
        norms = [hop.abs().sum(dim=1) for hop in self.hops]
        rows = map(torch.from_numpy, self.units)
        return torch.stack([norm[row] for norm, row in zip(norms, rows, strict=True)])


class Gnn(nn.Module):
    """Predicts standardized labels and norms of hop embeddings for configurations of one space.

    The label is a closed model of the decisions (zero until it is fitted) plus ``share`` times what
    the network learned: the mean over weights of a contribution that is computed from the weight's
    last embedding. The closed model is a sum over decisions and, where one was fitted with pairs,
    quadratic forms of amplitudes (see `qsdm.predictor.informed` and `qsdm.predictor.mean`).

    Args:
        encoding: of the space.
        width: size of every embedding.
        hops: number of attention layers.
        forms: number of quadratic forms, each of amplitudes of its own.
    """

    static: Tensor
    decisions: Tensor
    additive: Tensor
    offset: Tensor
    amplitude: Tensor
    pairs: Tensor
    share: Tensor

    def __init__(self, encoding: Encoding, width: int = 32, hops: int = 4, forms: int = 1) -> None:
        super().__init__()
        self.width, self.hops, self.forms = width, hops, forms
        self.wiring = Wiring(encoding, hops)
        num_weights, num_columns = encoding.decisions.shape[:2]
        for name in ("static", "decisions"):
            array = torch.from_numpy(getattr(encoding, name))
            self.register_buffer(name, array, persistent=False)
        self.register_buffer("additive", torch.zeros(num_weights, num_columns))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("amplitude", torch.zeros(forms, num_weights, num_columns))
        self.register_buffer("pairs", torch.zeros(forms, num_weights, num_weights))
        self.register_buffer("share", torch.ones(()))
        self.embed_static = nn.Linear(encoding.static.shape[1], width)
        self.embed_decision = nn.Linear(encoding.decisions.shape[2], width, bias=False)
        self.convs = nn.ModuleList(Attention(width) for _ in range(hops))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(hops))
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)  # initially the closed model alone counts
        self.contribution = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, configurations: Tensor, rows: Rows | None = None) -> Prediction:
        """Predict labels, differentiably.

        Args:
            configurations: float32 [B, W, M + 1], one-hot or relaxed.
            rows: of B configurations, see `Wiring.separate`; None to list them.

        Returns:
            Labels and embeddings.
        """
        rows = rows or self.wiring.separate(len(configurations))
        table = self.embed_decision(self.decisions)  # [W, M + 1, width]
        chosen = torch.einsum("bwm,wmf->wbf", configurations, table)
        nothing = chosen.new_zeros(1, *chosen.shape[1:])  # of nodes without a weight
        chosen = torch.cat([chosen, nothing])[torch.from_numpy(self.wiring.node_weight)]
        first = self.embed_static(self.static)[:, None] + chosen
        additive = torch.einsum("bwm,wm->b", configurations, self.additive)
        closed = self._closed(
            additive, lambda: torch.einsum("bwm,jwm->jbw", configurations, self.amplitude)
        )
        return self._predict(first.flatten(0, 1), rows, closed)

    def at(self, columns: Tensor, rows: Rows) -> Prediction:
        """Predict labels of one-hot configurations.

        Args:
            columns: int64 [B, W], column of each decision's method.
            rows: of these configurations, see `Wiring.shared`.

        Returns:
            Labels and embeddings.
        """
        return self._predict(self.first(columns, rows), rows, self.closed(columns))

    def first(self, columns: Tensor, rows: Rows) -> Tensor:
        """Compute first embeddings of one-hot configurations, before their activation.

        Args:
            columns: int64 [B, W], column of each decision's method.
            rows: of these configurations.

        Returns:
            [R, width].
        """
        num_weights, num_columns = self.decisions.shape[:2]
        node, configuration = rows.first
        weight = self.wiring.node_weight[node]
        chosen = columns.numpy()[configuration, np.minimum(weight, num_weights - 1)]
        decision = np.minimum(weight * num_columns + chosen, num_weights * num_columns)
        table = self.embed_decision(self.decisions).flatten(0, 1)
        table = torch.cat([table, table.new_zeros(1, self.width)])  # of nodes without a weight
        first = nn.functional.embedding(torch.from_numpy(node), self.embed_static(self.static))
        return first + nn.functional.embedding(torch.from_numpy(decision), table)

    def closed(self, columns: Tensor) -> Tensor:
        """Evaluate the closed model for one-hot configurations.

        Args:
            columns: int64 [B, W], column of each decision's method.

        Returns:
            [B], standardized.
        """
        weights = torch.arange(len(self.decisions))
        additive = self.additive[weights, columns].sum(dim=1)
        return self._closed(additive, lambda: self.amplitude[:, weights, columns])

    def _closed(self, additive: Tensor, amplitude: Callable[[], Tensor]) -> Tensor:
        """The closed model from its sum over decisions, [B], and amplitudes, [forms, B, W]."""
        closed = additive + self.offset
        if not self.pairs.any():  # most often; the products would take as long as a hop
            return closed
        chosen = amplitude()
        return closed + (chosen @ self.pairs * chosen).sum(dim=(0, 2))

    def _predict(self, first: Tensor, rows: Rows, closed: Tensor) -> Prediction:
        """Labels from first embeddings, before their activation, and the closed model's, [B]."""
        hops = [torch.relu(first)]
        for i, hop in enumerate(rows.hops):
            conv, norm = cast(Attention, self.convs[i]), cast(nn.BatchNorm1d, self.norms[i])
            hops.append(layer(conv, norm, hops[-1], hop, residual=i > 0))
        last = nn.functional.embedding(torch.from_numpy(rows.last), hops[-1])
        learned = mean(self.contribution(last), rows.contributions).flatten()
        value = closed + self.share * learned * len(rows.contributions) ** 0.5
        return Prediction(value, hops, rows.units)
