"""Predictions by a trained network, without gradients, three times as fast as by message passing.

What does not depend on the configuration is computed in advance: the first embedding of every node
under every method, and batch normalization as a scale and a shift. A layer is then one matrix
product and one pass over the edges, in numba.
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
    both: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    slope: float,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: bool,
    h: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Compute one layer after its matrix product, in place.

    ``h = relu(scale * (sum over edges of alpha * source) + shift)``, plus ``h`` if ``residual``.

    Args:
        both: float32 [B, N, 2 C], each node as source and as target.
        starts: int64 [N + 1], index in ``sources`` at which each target's edges start.
        sources: int64 [E], source of each edge, sorted by target.
        attention: float32 [C], the attention vector.
        slope: float32, negative slope of the leaky ReLU.
        scale: float32 [C], of the folded batch normalization.
        shift: float32 [C], of the folded batch normalization.
        residual: bool, whether the layer's input is added to its result.
        h: float32 [B, N, C], the layer's input, overwritten by its result.
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
                # Softmax in one pass: the sums are scaled down when a greater score appears.
                if score > top:
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
    """A trained `Gnn` for one-hot configurations.

    Args:
        gnn: the network, in evaluation mode.
    """

    def __init__(self, gnn: Gnn) -> None:
        with torch.no_grad():
            num_columns = gnn.decisions.shape[1]
            nothing = gnn.decisions.new_zeros(1, num_columns, gnn.width)
            per_weight = torch.cat([gnn.embed_decision(gnn.decisions), nothing])
            per_node = per_weight[gnn.node_weight]  # [N, M + 1, C]
            self.first = (
                torch.relu(gnn.embed_static(gnn.static)[:, None] + per_node)
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
            # Of the first layer, under every method
            self.first_both = torch.addmm(bias, self.first, matrix)
            self.contribution, self.share = gnn.contribution, gnn.share
            self.additive, self.offset = gnn.additive, gnn.offset
            self.amplitude, self.pairs = gnn.amplitude, gnn.pairs

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Predict standardized labels.

        Args:
            columns: int64 [B, W], column of each decision's method.

        Returns:
            Float64 [B].
        """
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
            attend(  # type: ignore[call-arg]
                both.view(shape).numpy(), self.starts, self.sources, *numbers, i > 0, h.numpy()
            )
        learned = self.contribution(h[:, self.weight_node]).mean(dim=(1, 2)) * num_weights**0.5
        decisions = torch.arange(num_weights), torch.from_numpy(columns)
        amplitude = self.amplitude[decisions]
        closed = self.additive[decisions].sum(dim=1) + self.offset
        closed = closed + (amplitude @ self.pairs * amplitude).sum(dim=1)
        return closed + self.share * learned


def _folded(conv: StaticGATv2Conv, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor, tuple]:
    """A layer's matrix [C, 2 C] (as source, as target), its bias, and arguments of `attend`."""
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
