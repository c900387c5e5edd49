"""One layer of the network on rows of embeddings, and the mean over weights, with their gradients.

A layer is GATv2 attention, batch normalization, ReLU and, after the first, a residual connection.
Each row counts as often as nodes of the batch share it (see `qsdm.predictor.rows`).

References:
    Batch Normalization (Ioffe & Szegedy, 2015), section 3.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from qsdm.predictor.attention import FLAGS, attend, attend_back
from qsdm.predictor.rows import Hop

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)


@_compiled
def _moments(
    out: np.ndarray, counts: np.ndarray, statistics: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Mean and biased variance [2, C], zeros before, of counted rows [R, C]."""
    num_rows, width = out.shape
    total = counts.sum()
    for r in range(num_rows):
        share = out.dtype.type(counts[r] / total)
        for c in range(width):
            statistics[0, c] += share * out[r, c]
    for r in range(num_rows):
        share = out.dtype.type(counts[r] / total)
        for c in range(width):
            away = out[r, c] - statistics[0, c]
            statistics[1, c] += share * away * away


@_compiled
def _finish(
    out: np.ndarray,
    numbers: np.ndarray,
    before: np.ndarray,
    own: np.ndarray,
    residual: bool,
    result: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """``relu(scale * out + shift)``, and the row before if ``residual``; numbers: scale, shift."""
    num_rows, width = out.shape
    zero = out.dtype.type(0)
    for r in range(num_rows):
        for c in range(width):
            value = numbers[0, c] * out[r, c] + numbers[1, c]
            result[r, c] = value if value > 0 else zero
        if residual:
            for c in range(width):
                result[r, c] += before[own[r], c]


@_compiled
def _finish_back(
    upstream: np.ndarray,
    out: np.ndarray,
    counts: np.ndarray,
    numbers: np.ndarray,
    training: bool,
    of_norm: np.ndarray,
    of_out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Gradients of `_finish` but for the residual.

    Args:
        upstream: [R, C], gradient of the result.
        out: [R, C], what was normalized.
        counts: int64 [R], see `Hop`.
        numbers: [4, C], scale and shift; mean and 1 / deviation of ``out``.
        training: whether mean and deviation are those of ``out``, not constants.
        of_norm: [2, C], takes the gradients of the normalization's weight and bias; zeros before.
        of_out: [R, C], takes the gradient of ``out``.
    """
    num_rows, width = out.shape
    zero = out.dtype.type(0)
    for r in range(num_rows):
        for c in range(width):
            on = numbers[0, c] * out[r, c] + numbers[1, c] > 0
            gradient = upstream[r, c] if on else zero
            of_out[r, c] = numbers[0, c] * gradient
            of_norm[0, c] += gradient * (out[r, c] - numbers[2, c]) * numbers[3, c]
            of_norm[1, c] += gradient
    if training:
        total = counts.sum()
        for r in range(num_rows):
            share = out.dtype.type(counts[r] / total)
            for c in range(width):
                normal = (out[r, c] - numbers[2, c]) * numbers[3, c]
                of_out[r, c] -= numbers[0, c] * share * (of_norm[1, c] + normal * of_norm[0, c])


@_compiled
def _add_rows(
    rows: np.ndarray, own: np.ndarray, total: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Add each row [R, C] to the row before [R', C] of the same node."""
    for r in range(len(rows)):
        for c in range(rows.shape[1]):
            total[own[r], c] += rows[r, c]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        before: Tensor,
        matrix: Tensor,
        bias: Tensor,
        attention: Tensor,
        scale: Tensor,
        shift: Tensor,
        statistics: Tensor,
        options: tuple[Hop, float, float, bool, bool],
    ) -> Tensor:
        """Apply the layer.

        Args:
            ctx: keeps what the gradient needs.
            before: [R', C], the rows before.
            matrix: [2 C, C], of each row as source and as target.
            bias: [2 C], of both.
            attention: [C], the attention vector.
            scale: [C], weight of the batch normalization.
            shift: [C], its bias.
            statistics: [2, C], mean and variance of what is normalized; if training, overwritten
                by those of the batch.
            options: how the rows follow, the negative slope of the leaky ReLU, what is added to the
                variance, whether the rows before are added, and whether the network is training.

        Returns:
            [R, C].
        """
        hop, slope, eps, residual, training = options
        both = torch.addmm(bias, before, matrix.t())
        vector = torch.cat([attention, attention.new_tensor([slope])])
        alpha = both.new_empty(len(hop.sources))
        out = both.new_empty(len(hop.own), both.shape[1] // 2)
        edges = hop.own, hop.starts, hop.sources
        attend(both.numpy(), *edges, vector.numpy(), alpha.numpy(), out.numpy())
        if training:
            _moments(out.numpy(), hop.counts, statistics.zero_().numpy())
        inverse = (statistics[1] + eps).rsqrt()
        factor = scale * inverse
        numbers = torch.stack([factor, shift - factor * statistics[0], statistics[0], inverse])
        result = torch.empty_like(out)
        rows = before.detach().numpy()
        _finish(out.numpy(), numbers.numpy(), rows, hop.own, residual, result.numpy())
        ctx.save_for_backward(before, matrix, both, vector, alpha, out, numbers)
        ctx.options = options
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients.

        Args:
            ctx: what the forward pass kept.
            upstream: gradient of the result, [R, C].

        Returns:
            Gradients of all tensors but the statistics.
        """
        before, matrix, both, vector, alpha, out, numbers = ctx.saved_tensors
        hop, _, _, residual, training = ctx.options
        rows, given = upstream[0].contiguous().numpy(), both.numpy()
        of_norm, of_out = torch.zeros_like(numbers[:2]), torch.empty_like(out)
        arrays = out.numpy(), hop.counts, numbers.numpy(), training
        _finish_back(rows, *arrays, of_norm.numpy(), of_out.numpy())
        of_both, of_attention = torch.zeros_like(both), torch.zeros_like(vector[:-1])
        edges = hop.own, hop.starts, hop.sources
        tensors = vector, alpha, of_out, of_both, of_attention
        attend_back(given, *edges, *(tensor.numpy() for tensor in tensors))
        of_before = of_both @ matrix
        if residual:
            _add_rows(rows, hop.own, of_before.numpy())
        of_weights: tuple[Tensor | None, ...] = (None,) * 5
        if any(ctx.needs_input_grad[1:6]):
            of_weights = of_both.t() @ before, of_both.sum(dim=0), of_attention, *of_norm
        return of_before, *of_weights, None, None


class Attention(nn.Module):
    """Parameters of GATv2 attention with one head, named and drawn as those of PyG's `GATv2Conv`.

    PyG itself is only imported to export graphs: importing it costs more than a search.

    Args:
        width: size of every embedding, C.

    Attributes:
        slope: of the leaky ReLU below 0.
    """

    slope = 0.2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.att = nn.Parameter(torch.empty(1, 1, width))
        self.lin_l, self.lin_r = nn.Linear(width, width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(width))
        for weight in (self.lin_l.weight, self.lin_r.weight, self.att):
            nn.init.xavier_uniform_(weight)


def layer(
    conv: Attention, norm: nn.BatchNorm1d, before: Tensor, hop: Hop, residual: bool
) -> Tensor:
    """Apply one layer of a network: attention, batch normalization, ReLU.

    Args:
        conv: the attention.
        norm: the batch normalization; if training, its running statistics are updated.
        before: [R', C], the rows before.
        hop: how the rows follow from those before.
        residual: whether the rows before are added.

    Returns:
        [R, C].
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # The convolution's bias shifts the mean alone, which the normalization removes.
    offset = conv.bias.detach()
    statistics = torch.stack([norm.running_mean - offset, norm.running_var])
    matrix = torch.cat([conv.lin_l.weight, conv.lin_r.weight])
    bias = torch.cat([conv.lin_l.bias, conv.lin_r.bias])
    options = hop, conv.slope, norm.eps, residual, norm.training
    result: Tensor = _Layer.apply(
        before, matrix, bias, conv.att.flatten(), norm.weight, norm.bias, statistics, options
    )
    if norm.training:
        num = int(hop.counts.sum())
        with torch.no_grad():
            norm.running_mean.lerp_(statistics[0] + offset, norm.momentum or 0.0)
            norm.running_var.lerp_(statistics[1] * (num / (num - 1)), norm.momentum or 0.0)
    return result


@_compiled
def add_mean(
    values: np.ndarray, rows: np.ndarray, result: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Add the mean over W of rows int64 [W, B] of values [R, C] to result [B, C]."""
    share = values.dtype.type(1 / len(rows))
    for w in range(rows.shape[0]):
        for b in range(rows.shape[1]):
            for c in range(values.shape[1]):
                result[b, c] += share * values[rows[w, b], c]


@_compiled
def _mean_back(
    upstream: np.ndarray, rows: np.ndarray, of_values: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Add the gradient of `_mean` by its values to ``of_values`` [R, C]."""
    share = upstream.dtype.type(1 / len(rows))
    for w in range(rows.shape[0]):
        for b in range(rows.shape[1]):
            for c in range(upstream.shape[1]):
                of_values[rows[w, b], c] += share * upstream[b, c]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: np.ndarray) -> Tensor:
        """Compute the mean.

        Args:
            ctx: keeps what the gradient needs.
            values: [R, C].
            rows: int64 [W, B].

        Returns:
            [B, C].
        """
        ctx.rows, ctx.num = rows, len(values)
        result = values.new_zeros(rows.shape[1], values.shape[1])
        add_mean(values.detach().numpy(), rows, result.numpy())
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient.

        Args:
            ctx: what the forward pass kept.
            upstream: gradient of the result, [B, C].

        Returns:
            Gradient of the values.
        """
        of_values = upstream[0].new_zeros(ctx.num, upstream[0].shape[1])
        _mean_back(upstream[0].contiguous().numpy(), ctx.rows, of_values.numpy())
        return of_values, None


def mean(values: Tensor, rows: np.ndarray) -> Tensor:
    """Compute the mean over weights.

    Args:
        values: [R, C].
        rows: int64 [W, B], row of each weight in each configuration.

    Returns:
        [B, C].
    """
    result: Tensor = _Mean.apply(values, rows)
    return result
