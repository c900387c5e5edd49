"""GATv2 attention on rows of embeddings, with its gradient, in numba.

Message passing in torch writes an array of [edges, features] for every step of the formula, and
reads it again for the gradient. Here these values never leave the registers.

References:
    How Attentive are Graph Attention Networks? (Brody et al., 2022), Eq. 7.
"""

from __future__ import annotations

import numba
import numpy as np

FLAGS = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def attend(
    both: np.ndarray,
    own: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    alpha: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Compute the sum over each row's edges of alpha times the source, in place.

    Args:
        both: [R', 2 C], each row before as source and as target.
        own: int64 [R], see `qsdm.predictor.rows.Hop`.
        starts: int64 [R + 1], see there.
        sources: int64 [E], see there.
        attention: [C + 1], the attention vector and the negative slope of the leaky ReLU, which is
            between 0 and 1.
        alpha: [E], takes the weight of each edge.
        out: [R, C], takes the result.
    """
    num_rows, width = out.shape
    slope, zero = attention[width], both.dtype.type(0)
    for r in range(num_rows):
        target, first, end = own[r], starts[r], starts[r + 1]
        top = zero
        for e in range(first, end):
            s = sources[e]
            score = zero
            for c in range(width):
                x = both[s, c] + both[target, width + c]
                score += attention[c] * (x if x > 0 else slope * x)
            alpha[e] = score
            top = score if e == first else max(top, score)
        total = zero
        for e in range(first, end):
            alpha[e] = np.exp(alpha[e] - top)
            total += alpha[e]
        for c in range(width):
            out[r, c] = zero
        for e in range(first, end):
            s = sources[e]
            weight = alpha[e] / total
            alpha[e] = weight
            for c in range(width):
                out[r, c] += weight * both[s, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def attend_back(
    both: np.ndarray,
    own: np.ndarray,
    starts: np.ndarray,
    sources: np.ndarray,
    attention: np.ndarray,
    alpha: np.ndarray,
    upstream: np.ndarray,
    grad_both: np.ndarray,
    grad_attention: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """Compute the gradients of `attend`, in place.

    Args:
        both: as in `attend`.
        own: as in `attend`.
        starts: as in `attend`.
        sources: as in `attend`.
        attention: as in `attend`.
        alpha: [E], as `attend` left it.
        upstream: [R, C], gradient of the result.
        grad_both: [R', 2 C], takes the gradient of ``both``; zeros before.
        grad_attention: [C], takes the gradient of the attention vector; zeros before.
    """
    num_rows, width = upstream.shape
    slope, zero, one = attention[width], both.dtype.type(0), both.dtype.type(1)
    of_target, of_alpha = np.empty(width, both.dtype), np.empty(len(sources), both.dtype)
    for r in range(num_rows):
        target, first, end = own[r], starts[r], starts[r + 1]
        mean = zero
        for e in range(first, end):
            s = sources[e]
            product = zero
            for c in range(width):
                product += upstream[r, c] * both[s, c]
            of_alpha[e] = product
            mean += alpha[e] * product
        for c in range(width):
            of_target[c] = zero
        for e in range(first, end):
            s = sources[e]
            weight = alpha[e]
            of_score = weight * (of_alpha[e] - mean)
            for c in range(width):
                x = both[s, c] + both[target, width + c]
                slope_here = one if x > 0 else slope
                grad_attention[c] += of_score * slope_here * x
                of_x = of_score * attention[c] * slope_here
                grad_both[s, c] += weight * upstream[r, c] + of_x
                of_target[c] += of_x
        for c in range(width):
            grad_both[target, width + c] += of_target[c]
