"""GATv2 attention over one graph for a batch of features, with its gradient, in numba.

Message passing in torch writes an array of [edges, batch, features] for every step of the formula,
and reads it again for the gradient. Here these values never leave the registers.

References:
    How Attentive are Graph Attention Networks? (Brody et al., 2022), Eq. 7.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_FLAGS = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FLAGS)
def forward_pass(
    both: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    alpha: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Compute the sum over each node's edges of alpha times the source, in place.

    Args:
        both: [N, B, 2 C], each node as source and as target.
        starts: int64 [N + 1], index in ``sources`` at which each target's edges start.
        sources: int64 [E], source of each edge, sorted by target.
        attention: [C + 1], the attention vector and the negative slope of the leaky ReLU, which is
            between 0 and 1.
        alpha: [E, B], takes the weight of each edge.
        out: [N, B, C], takes the result; zeros before.
    """
    num_nodes, num_batch, width = out.shape
    slope = attention[width]
    for n in range(num_nodes):
        first, end = starts[n], starts[n + 1]
        for b in range(num_batch):
            top = slope * 0
            for e in range(first, end):
                s = sources[e]
                score = slope * 0
                for c in range(width):
                    x = both[s, b, c] + both[n, b, width + c]
                    score += attention[c] * max(x, slope * x)
                alpha[e, b] = score
                top = score if e == first else max(top, score)
            total = slope * 0
            for e in range(first, end):
                alpha[e, b] = np.exp(alpha[e, b] - top)
                total += alpha[e, b]
            for e in range(first, end):
                s = sources[e]
                weight = alpha[e, b] / total
                alpha[e, b] = weight
                for c in range(width):
                    out[n, b, c] += weight * both[s, b, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FLAGS)
def backward_pass(
    both: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    alpha: np.ndarray,
    upstream: np.ndarray,
    grad_both: np.ndarray,
    grad_attention: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Compute the gradients of `forward_pass`, in place.

    Args:
        both: as in the forward pass.
        starts: as in the forward pass.
        sources: as in the forward pass.
        attention: as in the forward pass.
        alpha: [E, B], as the forward pass left it.
        upstream: [N, B, C], gradient of the result.
        grad_both: [N, B, 2 C], takes the gradient of ``both``; zeros before.
        grad_attention: [N, C], takes each target's part of the gradient of the attention vector;
            zeros before.
    """
    num_nodes, num_batch, width = upstream.shape
    slope = attention[width]
    of_alpha = np.empty(len(sources), both.dtype)
    for n in range(num_nodes):
        first, end = starts[n], starts[n + 1]
        for b in range(num_batch):
            mean = slope * 0
            for e in range(first, end):
                s = sources[e]
                product = slope * 0
                for c in range(width):
                    product += upstream[n, b, c] * both[s, b, c]
                of_alpha[e] = product
                mean += alpha[e, b] * product
            for e in range(first, end):
                s = sources[e]
                weight = alpha[e, b]
                of_score = weight * (of_alpha[e] - mean)
                for c in range(width):
                    x = both[s, b, c] + both[n, b, width + c]
                    grad_attention[n, c] += of_score * max(x, slope * x)
                    of_x = of_score * attention[c] * (slope * 0 + 1 if x > 0 else slope)
                    grad_both[s, b, c] += weight * upstream[n, b, c] + of_x
                    grad_both[n, b, width + c] += of_x


class Attention(torch.autograd.Function):
    """The differentiable function of both passes."""

    @staticmethod
    def forward(
        ctx: Any, both: Tensor, attention: Tensor, slope: float, starts: Tensor, sources: Tensor
    ) -> Tensor:
        """Apply the attention.

        Args:
            ctx: keeps what the gradient needs.
            both: [N, B, 2 C], each node as source and as target.
            attention: [C], the attention vector.
            slope: negative slope of the leaky ReLU, between 0 and 1.
            starts: int64 [N + 1], index in ``sources`` at which each target's edges start.
            sources: int64 [E], source of each edge, sorted by target.

        Returns:
            [N, B, C].
        """
        both = both.contiguous()
        vector = torch.cat([attention, attention.new_tensor([slope])])
        num_nodes, num_batch, width = both.shape
        alpha = both.new_empty(len(sources), num_batch)
        out = both.new_zeros(num_nodes, num_batch, width // 2)
        tensors = (both, starts, sources, vector, alpha)
        forward_pass(*(tensor.detach().numpy() for tensor in (*tensors, out)))
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients.

        Args:
            ctx: what the forward pass kept.
            upstream: gradient of the result, [N, B, C].

        Returns:
            Gradients of ``both`` and ``attention``.
        """
        tensors = ctx.saved_tensors
        both, vector = tensors[0], tensors[3]
        grad_both = torch.zeros_like(both)
        grad_attention = both.new_zeros(len(both), len(vector) - 1)
        results = (upstream[0].contiguous(), grad_both, grad_attention)
        backward_pass(*(tensor.detach().numpy() for tensor in (*tensors, *results)))
        return grad_both, grad_attention.sum(dim=0), None, None, None
