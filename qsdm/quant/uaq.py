"""Uniform affine quantization: a scale and a zero point per output channel or group of inputs.

    w^ = (q - z) s,    q = clamp(round(w / s) + z, 0, 2^b - 1)
    s = (high - low) / (2^b - 1),    z = round(-low / s)

The range [low, high] is [min, max], shrunk by the factor with the least mean |w - w^|^2.4:

    uaq          10 factors 1.0, 0.9 ... 0.1 for both ends
    uaq_refined  the same, then steps of 0.05, 0.025, 0.0125 around the best
    uaq_asym     the same, then min and max shrunk separately by steps of 0.1, 0.05, 0.025, 0.0125
    uaq_w        10 factors, the one with the least sum of h_i (w_i - w_i^)^2, where h_i is the mean
                 square of the input that w_i multiplies: the expected squared error of the layer's
                 output if its inputs are uncorrelated

References:
    Qua²SeDiMo (Mills et al., 2025), section 3: per channel, 10 factors.
    LAPQ: Loss Aware Post-training Quantization (Nahshan et al., 2019), section 3.2:
        the exponent p = 2.4.
    Optimal Brain Surgeon and general network pruning (Hassibi et al., 1993), section 3: the
        Hessian of a layer's squared error is the second moment of its inputs; uaq_w takes its
        diagonal.
"""

from __future__ import annotations

import math

import numpy as np

from qsdm.quant.rows import exact, extent, fast, half, over_rows, pow24

GRID, REFINED, ASYMMETRIC = 0, 1, 2
_BLOCK = 256  # values between two checks of whether a candidate has already lost
_LARGEST_ZERO = 2048.0  # integers up to this one are exact in fp16


def fit(
    x: np.ndarray, bits: int, group: int | None = None, search: int = GRID
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Quantize values.

    Args:
        x: float32 [rows, n], finite.
        bits: of a code, 2 to 8.
        group: values that share a scale; the last group of a row may be smaller. None: whole rows.
        search: GRID, REFINED or ASYMMETRIC.

    Returns:
        Codes uint8 [rows, n]; scale and zero_point, fp16 [rows] or [rows, ceil(n / group)].
    """
    rows, n = x.shape
    groups = 1 if group is None else math.ceil(n / group)
    scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    codes = np.empty(x.shape, np.uint8)
    over_rows(_fit, rows, x, group or n, np.float32(2**bits - 1), search, scale, zero, min_rows=8)
    over_rows(
        _encode, rows, x, group or n, np.float32(2**bits - 1), scale, zero, codes, min_rows=64
    )
    if group is None:
        scale, zero = scale[:, 0], zero[:, 0]
    return codes, {"scale": scale.astype(np.float16), "zero_point": zero.astype(np.float16)}


def fit_weighted(
    x: np.ndarray, bits: int, importance: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Quantize values whose errors do not count alike.

    Args:
        x: float32 [rows, n], finite.
        bits: of a code, 2 to 8.
        importance: of each value of a row, positive float32 [n]; None: all are alike.

    Returns:
        As `fit`, for whole rows.
    """
    rows, n = x.shape
    if importance is None:
        importance = np.ones(n, np.float32)
    scale, zero = np.empty((rows, 1), np.float32), np.empty((rows, 1), np.float32)
    codes, levels = np.empty(x.shape, np.uint8), np.float32(2**bits - 1)
    over_rows(_fit_weighted, rows, x, levels, importance, scale[:, 0], zero[:, 0], min_rows=8)
    over_rows(_encode, rows, x, n, levels, scale, zero, codes, min_rows=64)
    parts = {"scale": scale[:, 0], "zero_point": zero[:, 0]}
    return codes, {name: values.astype(np.float16) for name, values in parts.items()}


@exact
def affine(low: np.float32, high: np.float32, levels: np.float32) -> tuple[np.float32, np.float32]:
    """The scale and zero point of a range, rounded to fp16.

    A range far from zero is widened to reach it, because fp16 could not represent its zero point. A
    single value is represented exactly.

    Args:
        low: smallest value.
        high: largest value.
        levels: 2^bits - 1.

    Returns:
        Scale and zero point.
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
def _loss(
    x: np.ndarray, scale: np.float32, zero: np.float32, levels: np.float32, limit: float
) -> float:
    """Sum of |x - x^|^2.4; stops early, above ``limit``, once it is exceeded."""
    inverse, low, high = np.float32(1.0) / scale, -zero, levels - zero
    unit = np.float64(pow24(scale))
    limit /= unit
    total = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        part = np.float32(0.0)
        for i in range(block.shape[0]):
            t = block[i] * inverse
            part += pow24(abs(t - min(max(np.rint(t), low), high)))
        total += np.float64(part)
        if total > limit:
            break
    return total * unit


@fast
def _fit(
    first: int,
    last: int,
    x: np.ndarray,
    group: int,
    levels: np.float32,
    search: int,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    start = 0  # the last group's best factor: it and its neighbors rule out the rest early
    for r in range(first, last):
        for g in range(scales.shape[1]):
            values = x[r, g * group : (g + 1) * group]
            low, high = extent(values)
            scales[r, g], zeros[r, g] = affine(low, high, levels)
            if low == high:
                continue
            best, scale, zero = np.inf, np.float32(1.0), np.float32(0.0)
            a, b = np.float32(1.0), np.float32(1.0)  # factors of min and max
            best_k = start
            for step in range(20):  # start, start + 1, start - 1, start + 2, ...
                k = start + (step + 1) // 2 * (1 if step % 2 else -1)
                if 0 <= k < 10:
                    f = np.float32(1.0) - np.float32(0.1) * np.float32(k)
                    s, z = affine(low * f, high * f, levels)
                    loss = _loss(values, s, z, levels, best)
                    if loss < best:
                        best, scale, zero, a, b, best_k = loss, s, z, f, f, k
            start = best_k
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


@fast
def _fit_weighted(
    first: int,
    last: int,
    x: np.ndarray,
    levels: np.float32,
    importance: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    for r in range(first, last):
        values = x[r]
        low, high = extent(values)
        scales[r], zeros[r] = affine(low, high, levels)
        if low == high:
            continue
        best = np.inf
        for k in range(10):
            f = np.float32(1.0) - np.float32(0.1) * np.float32(k)
            s, z = affine(low * f, high * f, levels)
            inverse, least, most = np.float32(1.0) / s, -z, levels - z
            unit, loss = np.float64(s) * np.float64(s), 0.0
            for start in range(0, values.shape[0], _BLOCK):
                block = values[start : start + _BLOCK]
                weights = importance[start : start + _BLOCK]
                part = np.float32(0.0)
                for i in range(block.shape[0]):
                    t = block[i] * inverse
                    off = t - min(max(np.rint(t), least), most)
                    part += weights[i] * off * off
                loss += np.float64(part)
                if loss * unit > best:
                    break
            if loss * unit < best:
                best, scales[r], zeros[r] = loss * unit, s, z


@exact
def _encode(
    first: int,
    last: int,
    x: np.ndarray,
    group: int,
    levels: np.float32,
    scales: np.ndarray,
    zeros: np.ndarray,
    codes: np.ndarray,
) -> None:
    for r in range(first, last):
        for g in range(scales.shape[1]):
            scale, zero = scales[r, g], zeros[r, g]
            values, out = x[r, g * group : (g + 1) * group], codes[r, g * group : (g + 1) * group]
            for i in range(values.shape[0]):
                out[i] = np.uint8(
                    min(max(np.rint(values[i] / scale) + zero, np.float32(0.0)), levels)
                )
