"""Uniform affine quantization: a scale and a zero point for every output channel, or for every group of its inputs.

    w^ = (q - z) s,   q = clamp(round(w / s) + z, 0, 2^b - 1),   s = (high - low) / (2^b - 1),   z = round(-low / s)

The range [low, high] is [min, max] shrunk by the factor that leaves the least mean |w - w^|^2.4:

    uaq          10 factors 1.0, 0.9 ... 0.1 for both ends
    uaq_refined  the same, then steps of 0.05, 0.025, 0.0125 around the best
    uaq_asym     the same, then min and max shrunk separately by steps of 0.1, 0.05, 0.025, 0.0125

References:
    Qua²SeDiMo (Mills et al., 2025), section 3: per channel, 10 factors.
    LAPQ: Loss Aware Post-training Quantization (Nahshan et al., 2019), section 3.2: the exponent p = 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qsdm.quant.rows import exact, fast, half, over_rows

GRID, REFINED, ASYMMETRIC = 0, 1, 2
_BLOCK = 512  # values between two looks at whether a candidate has already lost
_LARGEST_ZERO = 2048.0  # integers up to here are exact in fp16


def fit(
    x: np.ndarray, bits: int, group: int | None = None, search: int = GRID
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes uint8 [rows, n]; scale and zero_point fp16 [rows] or, by groups, [rows, ceil(n / group)].

    Args:
        x: float32 [rows, n], finite.
        group: values that share a scale; the last group of a row may be smaller. None for whole rows.
        search: GRID, REFINED or ASYMMETRIC.
    """
    rows, n = x.shape
    groups = 1 if group is None else math.ceil(n / group)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    codes = np.empty(x.shape, np.uint8)
    over_rows(_fit, rows, x, group or n, np.float32(2**bits - 1), search, scale, zero, min_rows=8)
    over_rows(_encode, rows, x, group or n, np.float32(2**bits - 1), scale, zero, codes, min_rows=64)
    if group is None:
        scale, zero = scale[:, 0], zero[:, 0]
    return codes, {"scale": scale.astype(np.float16), "zero_point": zero.astype(np.float16)}


def table(scale: np.ndarray, zero_point: np.ndarray, bits: int) -> np.ndarray:
    """The value of every code: float32 [groups, 2**bits]."""
    codes = np.arange(2**bits, dtype=np.float32)
    return (codes - zero_point.reshape(-1, 1).astype(np.float32)) * scale.reshape(-1, 1).astype(np.float32)


@exact
def affine(low, high, levels):
    """float32 scale and zero point of the range, as fp16 holds them.

    A range far from zero is widened to reach it, because fp16 does not hold its zero point. A single value c is exact.
    """
    if low == high:
        if low == 0:
            return np.float32(1.0), np.float32(0.0)
        return half(abs(low)), np.float32(0.0) if low > 0 else np.float32(1.0)
    scale = max(half((high - low) / levels), np.float32(2.0**-24))
    zero = np.rint(-low / scale) + np.float32(0.0)  # no negative zero
    if abs(zero) > _LARGEST_ZERO:
        low, high = min(low, np.float32(0.0)), max(high, np.float32(0.0))
        scale = max(half((high - low) / levels), np.float32(2.0**-24))
        zero = np.rint(-low / scale) + np.float32(0.0)  # no negative zero
    return scale, np.float32(zero)


@fast
def pow24(t: np.float32) -> np.float32:
    """t^2.4 for t >= 0 as 2^(2.4 log2 t), by polynomials, relative error below 2e-5; smaller t count as 1e-15.

    log2 on [1, 2) by degree 7, 2^f on [-1/2, 1/2] by degree 5, least squares at Chebyshev nodes.
    """
    t = max(t, np.float32(1e-15))  # below, the power is no normal fp32 number
    i = np.float32(t).view(np.int32)
    e = np.float32((i >> 23) - 127)
    z = np.int32((i & 0x007FFFFF) | 0x3F800000).view(np.float32) - np.float32(1.5)
    p = np.float32(LOG2[7])
    for k in range(6, -1, -1):
        p = p * z + np.float32(LOG2[k])
    y = (p + e) * np.float32(2.4)
    r = np.rint(y)
    f = y - r
    q = np.float32(EXP2[5])
    for k in range(4, -1, -1):
        q = q * f + np.float32(EXP2[k])
    return q * np.int32((np.int32(r) + 127) << 23).view(np.float32)


def _chebyshev(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, center: float, degree: int
) -> tuple[float, ...]:
    """Coefficients of the polynomial in x - center through Chebyshev nodes of [low, high], lowest degree first."""
    from numpy.polynomial import Chebyshev, Polynomial

    series = Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(series.convert(kind=Polynomial)(Polynomial([center, 1.0])).coef.tolist())


LOG2 = _chebyshev(np.log2, 1.0, 2.0, 1.5, 7)
EXP2 = _chebyshev(np.exp2, -0.5, 0.5, 0.0, 5)


@fast
def _loss(x, scale, zero, levels, limit):
    """Sum of |x - x^|^2.4; stops early, above ``limit``, once it is exceeded."""
    inverse, low, high = np.float32(1.0) / scale, -zero, levels - zero
    unit = np.float64(pow24(scale))
    total = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        part = np.float32(0.0)
        for i in range(start, min(start + _BLOCK, x.shape[0])):
            t = x[i] * inverse
            part += pow24(abs(t - min(max(np.rint(t), low), high)))
        total += np.float64(part) * unit
        if total > limit:
            break
    return total


@fast
def _fit(first, last, x, group, levels, search, scales, zeros):
    near = 0  # where the last group's best factor was: the neighbours rule out the rest early
    for r in range(first, last):
        for g in range(scales.shape[1]):
            values = x[r, g * group : min((g + 1) * group, x.shape[1])]
            low, high = values[0], values[0]
            for i in range(values.shape[0]):
                low, high = min(low, values[i]), max(high, values[i])
            scales[r, g], zeros[r, g] = affine(low, high, levels)
            if low == high:
                continue
            best, scale, zero = np.inf, np.float32(1.0), np.float32(0.0)
            a, b = np.float32(1.0), np.float32(1.0)  # factors of min and max
            found = near
            for step in range(20):
                k = near + (step + 1) // 2 * (1 if step % 2 else -1)  # near, near + 1, near - 1, near + 2, ...
                if 0 <= k < 10:
                    f = np.float32(1.0) - np.float32(0.1) * np.float32(k)
                    s, z = affine(low * f, high * f, levels)
                    loss = _loss(values, s, z, levels, best)
                    if loss < best:
                        best, scale, zero, a, b, found = loss, s, z, f, f, k
            near = found
            if search > 0:
                step_size = np.float32(0.05) if search == 1 else np.float32(0.1)
                while step_size > np.float32(0.01):
                    for end in range(1 if search == 1 else 2):
                        a0, b0 = a, b
                        for sign in (np.float32(-1.0), np.float32(1.0)):
                            fa = a0 + sign * step_size if search == 1 or end == 0 else a0
                            fb = b0 + sign * step_size if search == 1 or end == 1 else b0
                            if fa > 0 and fb > 0:
                                s, z = affine(low * fa, high * fb, levels)
                                loss = _loss(values, s, z, levels, best)
                                if loss < best:
                                    best, scale, zero, a, b = loss, s, z, fa, fb
                    step_size *= np.float32(0.5)
            scales[r, g], zeros[r, g] = scale, zero


@exact
def _encode(first, last, x, group, levels, scales, zeros, codes):
    for r in range(first, last):
        for g in range(scales.shape[1]):
            scale, zero = scales[r, g], zeros[r, g]
            for i in range(g * group, min((g + 1) * group, x.shape[1])):
                codes[r, i] = np.uint8(min(max(np.rint(x[r, i] / scale) + zero, np.float32(0.0)), levels))
