"""Labels alone, without gradients, in memory that is used again.

For 2,500 configurations of SDXL the embeddings of all hops take 1 GB, and asking the system for
fresh memory takes longer than computing them. Here those of a hop overwrite those before the last,
and those of the last hop live in blocks that fit into a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numba
import numpy as np
import torch
from torch import Tensor, nn

from qsdm.predictor.attention import FLAGS
from qsdm.predictor.layer import add_mean

if TYPE_CHECKING:
    from qsdm.predictor.gnn import Gnn
    from qsdm.predictor.layer import Attention
    from qsdm.predictor.rows import Hop, Rows

BLOCK = 4096
"""Rows of the last hop at a time."""


class Inference:
    """Computes labels as `qsdm.predictor.gnn.Gnn.at` does, for one thread at a time."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def _matrix(self, name: str, num: int, width: int) -> Tensor:
        """A matrix in memory that the next one of this name overwrites."""
        memory = self._memory.get(name)
        if memory is None or memory.numel() < num * width:
            memory = self._memory[name] = torch.empty(num * width)
        return memory[: num * width].view(num, width)

    @torch.inference_mode()
    def of(self, gnn: Gnn, columns: Tensor, rows: Rows) -> Tensor:
        """Compute labels of one-hot configurations.

        Args:
            gnn: the network, in evaluation mode and in float32.
            columns: int64 [B, W], column of each decision's method.
            rows: of these configurations, see `qsdm.predictor.rows.Wiring.shared`.

        Returns:
            Float32 [B], standardized.
        """
        before = torch.relu(gnn.first(columns, rows))
        last = len(rows.hops) - 1
        for i, hop in enumerate(rows.hops[:-1]):
            after = self._matrix(f"rows {i % 2}", len(hop.own), gnn.width)
            step = _Step(self, gnn, i, before, hop)
            step.write(0, len(hop.own), after)
            before = after
        hop = rows.hops[-1]
        step = _Step(self, gnn, last, before, hop)
        contributions = torch.empty(len(hop.own), 1)
        block = self._matrix("block", BLOCK, gnn.width)
        for start in range(0, len(hop.own), BLOCK):
            stop = min(start + BLOCK, len(hop.own))
            step.write(start, stop, block)
            contributions[start:stop] = gnn.contribution(block[: stop - start])
        learned = torch.zeros(rows.units[-1].shape[1], 1)
        add_mean(contributions.numpy(), rows.units[-1], learned.numpy())
        return gnn.closed(columns) + gnn.share * learned[:, 0] * len(rows.units[-1]) ** 0.5


class _Step:
    """One hop's rows from those before, in any order of blocks."""

    def __init__(self, inference: Inference, gnn: Gnn, i: int, before: Tensor, hop: Hop) -> None:
        conv, norm = cast("Attention", gnn.convs[i]), cast(nn.BatchNorm1d, gnn.norms[i])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert not norm.training
        matrix = torch.cat([conv.lin_l.weight, conv.lin_r.weight])
        bias = torch.cat([conv.lin_l.bias, conv.lin_r.bias])
        both = inference._matrix("both", len(before), 2 * gnn.width)
        torch.addmm(bias, before, matrix.t(), out=both)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias + scale * (conv.bias - norm.running_mean)
        vector = torch.cat([conv.att.flatten(), conv.att.new_tensor([conv.slope])])
        self.arrays = both.numpy(), before.numpy(), hop.own, hop.starts, hop.sources
        self.numbers = vector.numpy(), torch.stack([scale, shift]).numpy(), i > 0

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Write the rows from ``start`` to ``stop`` into ``result``, from its first row on."""
        _write(*self.arrays, *self.numbers, start, stop, result.numpy())


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _write(
    both: np.ndarray,
    before: np.ndarray,
    own: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    numbers: np.ndarray,
    residual: bool,
    start: int,
    stop: int,
    result: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """`qsdm.predictor.attention.attend` and the normalization of some rows, in one pass.

    Args:
        both: [R', 2 C], see `attend`.
        before: [R', C].
        own: see `attend`.
        starts: see `attend`.
        sources: see `attend`.
        attention: see `attend`.
        numbers: [2, C], scale and shift of what is normalized.
        residual: whether the rows before are added.
        start: number of the first row.
        stop: one after the last.
        result: takes the rows.
    """
    width = before.shape[1]
    slope, zero = attention[width], both.dtype.type(0)
    most = 1
    for r in range(start, stop):
        most = max(most, starts[r + 1] - starts[r])
    alpha = np.empty(most, both.dtype)
    for r in range(start, stop):
        target, first, num, to = own[r], starts[r], starts[r + 1] - starts[r], r - start
        top = zero
        for e in range(num):
            s = sources[first + e]
            score = zero
            for c in range(width):
                x = both[s, c] + both[target, width + c]
                score += attention[c] * (x if x > 0 else slope * x)
            alpha[e] = score
            top = score if e == 0 else max(top, score)
        total = zero
        for e in range(num):
            alpha[e] = np.exp(alpha[e] - top)
            total += alpha[e]
        for c in range(width):
            result[to, c] = zero
        for e in range(num):
            s, weight = sources[first + e], alpha[e] / total
            for c in range(width):
                result[to, c] += weight * both[s, c]
        for c in range(width):
            value = numbers[0, c] * result[to, c] + numbers[1, c]
            result[to, c] = value if value > 0 else zero
        if residual:
            for c in range(width):
                result[to, c] += before[target, c]
