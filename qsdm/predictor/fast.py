"""The trained network's answer, three times as fast as by message passing: same parameters, no gradients.

What does not depend on the configuration is folded beforehand: every node's first embedding under every method, batch
normalisation into a scale and a shift. Then a layer is one matrix product and one pass over the edges, in numba.
"""

from __future__ import annotations

from typing import cast

import numba
import numpy as np
import torch
from torch import Tensor, nn

from qsdm.predictor.gnn import Gnn, StaticGATv2Conv

CHUNK = 8  # configurations at a time: their embeddings stay in the second-level cache


@numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"}
)
def attend(
    both, starts, sources, attention, slope, scale, shift, residual, h
):  # pragma: no cover (compiled)
    """One layer after its matrix product, in place: h = relu(scale (sum over edges of alpha x source) + shift) (+ h).

    Args:
        both: float32 [B, N, 2 C], each node as source and as target.
        starts: int64 [N + 1], of each target's edges in ``sources``.
        h: float32 [B, N, C].
    """
    num_batch, num_nodes, width = h.shape
    for b in range(num_batch):
        for n in range(num_nodes):
            first, end = starts[n], starts[n + 1]
            total = np.float32(0)
            top = np.float32(-np.inf)
            new = np.zeros(width, np.float32)
            for e in range(first, end):
                s = sources[e]
                score = np.float32(0)
                for c in range(width):
                    x = both[b, s, c] + both[b, n, width + c]
                    score += attention[c] * max(x, slope * x)
                if (
                    score > top
                ):  # softmax in one pass: what was summed is scaled down when a greater score comes
                    shrink = np.exp(top - score)
                    total *= shrink
                    for c in range(width):
                        new[c] *= shrink
                    top = score
                weight = np.exp(score - top)
                total += weight
                for c in range(width):
                    new[c] += weight * both[b, s, c]
            for c in range(width):
                value = max(scale[c] * new[c] / total + shift[c], np.float32(0))
                h[b, n, c] = value + h[b, n, c] if residual else value


class Fast:
    """A trained `Gnn` for configurations that are one-hot."""

    def __init__(self, gnn: Gnn) -> None:
        with torch.no_grad():
            num_columns = gnn.decisions.shape[1]
            nothing = gnn.decisions.new_zeros(1, num_columns, gnn.width)
            decided = torch.cat([gnn.embed_decision(gnn.decisions), nothing])[
                gnn.node_weight
            ]  # [N, M + 1, C]
            self.first = (
                torch.relu(gnn.embed_static(gnn.static)[:, None] + decided)
                .flatten(0, 1)
                .contiguous()
            )
            self.num_columns, self.width = num_columns, gnn.width
            self.node_weight = gnn.node_weight.numpy()
            self.weight_node = gnn.weight_node
            targets = gnn.edges[1].numpy()
            self.starts = np.searchsorted(targets, np.arange(len(gnn.static) + 1))
            self.sources = gnn.edges[0].numpy()
            self.layers = []
            for conv, norm in zip(gnn.convs, gnn.norms, strict=True):
                matrix, bias, numbers = _folded(
                    cast(StaticGATv2Conv, conv), cast(nn.BatchNorm1d, norm)
                )
                self.layers.append((matrix, bias, numbers))
            matrix, bias, _ = self.layers[0]
            self.first_both = torch.addmm(
                bias, self.first, matrix
            )  # of the first layer, under every method
            self.contribution, self.share = gnn.contribution, gnn.share
            self.additive, self.offset = gnn.additive, gnn.offset

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Columns of the decisions, int64 [B, W] => standardised labels, float64 [B]."""
        with torch.inference_mode():
            parts = [self._values(columns[i : i + CHUNK]) for i in range(0, len(columns), CHUNK)]
            return torch.cat(parts).double().numpy() if parts else np.zeros(0)

    def _values(self, columns: np.ndarray) -> Tensor:
        num_batch, num_weights = columns.shape
        num_nodes = len(self.node_weight)
        padded = np.concatenate([columns, np.zeros((num_batch, 1), dtype=np.int64)], axis=1)
        rows = torch.from_numpy(
            np.arange(num_nodes) * self.num_columns + padded[:, self.node_weight]
        )
        h = self.first[rows]  # [B, N, C]
        for i, (matrix, bias, numbers) in enumerate(self.layers):
            both = self.first_both[rows] if i == 0 else torch.addmm(bias, h.flatten(0, 1), matrix)
            shape = (num_batch, num_nodes, 2 * self.width)
            attend(both.view(shape).numpy(), self.starts, self.sources, *numbers, i > 0, h.numpy())  # type: ignore[call-arg]
        learned = self.contribution(h[:, self.weight_node]).mean(dim=(1, 2)) * num_weights**0.5
        chosen = self.additive[torch.arange(num_weights), torch.from_numpy(columns)].sum(dim=1)
        return chosen + self.offset + self.share * learned


def _folded(conv: StaticGATv2Conv, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor, tuple]:
    """A layer's matrix [C, 2 C] (as source, as target), its bias, and the numbers of `attend`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    matrix = torch.cat([conv.lin_l.weight, conv.lin_r.weight]).t().contiguous()
    bias = torch.cat([conv.lin_l.bias, conv.lin_r.bias])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias + scale * (conv.bias - norm.running_mean)
    return (
        matrix,
        bias,
        (conv.att.flatten().numpy(), np.float32(conv.negative_slope), scale.numpy(), shift.numpy()),
    )
