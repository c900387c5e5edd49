"""Fake quantization on the CPU, compiled by numba: the reference's arithmetic in one pass.

Comparisons that are false for NaN let it through, like torch.clamp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qsdm.quant import packing
from qsdm.quant.rows import chebyshev, exact, extent, fast, over_rows

# Fewest values of a thread, and most of 16-bit inputs at a time, which stay cached as float32.
_VALUES = 1 << 16
_DECODED = 1 << 18  # values at a time that are decoded and then converted
_EXP2 = chebyshev(np.exp2, -0.5, 0.5, 0.0, 6)  # 2^f with a relative error below 1e-7
_LOG2_E = 1.4426950408889634


def affine(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
    out: torch.Tensor,
) -> None:
    """Fill ``out`` with `qsdm.quant.kernels.reference.affine`.

    Args:
        x: see `qsdm.quant.kernels.affine`.
        scale: see `qsdm.quant.kernels.affine`.
        zero_point: see `qsdm.quant.kernels.affine`.
        bits: of a code, 2 to 8.
        group: values of a row that share a scale.
        out: the shape and type of ``x``; it may be ``x``.
    """
    s, z = scale.detach().numpy(), zero_point.detach().numpy()
    _by_rows(_affine, (x,), out, s, z, np.float32(2**bits - 1), group)


def affine_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
    out: torch.Tensor,
) -> None:
    """Fill ``out`` with `qsdm.quant.kernels.reference.affine_backward`.

    Args:
        gradient: of the output, [rows, n].
        x: see `qsdm.quant.kernels.affine`.
        scale: see `qsdm.quant.kernels.affine`.
        zero_point: see `qsdm.quant.kernels.affine`.
        bits: of a code, 2 to 8.
        group: values of a row that share a scale.
        out: the shape and type of ``x``.
    """
    s, z = scale.detach().numpy(), zero_point.detach().numpy()
    _by_rows(_affine_backward, (gradient, x), out, s, z, np.float32(2**bits - 1), group)


def lookup(
    codes: torch.Tensor, table: torch.Tensor, bits: int, group: int, out: torch.Tensor
) -> None:
    """Fill ``out`` with `qsdm.quant.kernels.reference.lookup`.

    Values of another type, layout or device than contiguous float32 on the CPU are decoded some
    rows at a time, which stay cached.

    Args:
        codes: see `qsdm.quant.kernels.lookup`.
        table: see `qsdm.quant.kernels.lookup`.
        bits: of a code, 1 to 8.
        group: values of a row that share a row of the table.
        out: [rows, channels, *kernel] of any floating type, in any layout, on any device.
    """
    out = out.detach()
    num_rows, n = out.shape[0], math.prod(out.shape[1:])
    packed, lines = codes.numpy(), table.detach().numpy()
    if out.dtype == torch.float32 and out.is_contiguous() and out.device.type == "cpu":
        packing.decode(packed, bits, lines, (num_rows, n), group, out.view(num_rows, n).numpy())
        return
    groups = len(lines) // num_rows  # 0: one line for all
    block = -(-max(1, _DECODED // max(1, n)) // 8) * 8  # eight rows of codes fill whole bytes

    def fill(first: int, last: int) -> None:
        wide = torch.empty((min(block, num_rows), *out.shape[1:]))
        for a in range(first * block, min(last * block, num_rows), block):
            b = min(a + block, num_rows)
            packing.decode(
                packed[a * n * bits // 8 : packing.num_bytes(b * n, bits)],
                bits,
                lines[a * groups : b * groups] if groups else lines,
                (b - a, n),
                group,
                wide[: b - a].view(b - a, n).numpy(),
            )
            out[a:b].copy_(wide[: b - a])

    over_rows(fill, -(-num_rows // block))


def tokens(x: torch.Tensor, bits: int, from_zero: bool, out: torch.Tensor) -> None:
    """Fill ``out`` with `qsdm.quant.kernels.reference.tokens`.

    Args:
        x: [rows, n] of float32, float16 or bfloat16.
        bits: of a code, 2 to 8.
        from_zero: whether ranges begin at 0.
        out: the shape and type of ``x``.
    """
    levels = np.float32(2**bits - 1)
    if x.dtype == torch.bfloat16:
        _by_rows_of_words(_tokens_of_words, x, out, levels, from_zero)
    else:
        _by_rows(_tokens, (x,), out, levels, from_zero)


def softmax(x: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Fill ``out`` with probabilities, rounded from zero.

    The largest exponential of a row is 1, so that the codes of e / sum(e) are those of e.

    Args:
        x: [rows, n] of float32, float16 or bfloat16.
        bits: of a code, 2 to 8.
        out: the shape and type of ``x``.
    """
    levels = np.float32(2**bits - 1)
    if x.dtype == torch.bfloat16:
        _by_rows_of_words(_softmax_of_words, x, out, levels)
    else:
        _by_rows(_softmax, (x,), out, levels)


def _by_rows(
    kernel: Callable[..., None], inputs: tuple[torch.Tensor, ...], out: torch.Tensor, *args: Any
) -> None:
    """Call ``kernel(first, last, offset, *inputs, out, *args)``.

    Rows of 16-bit inputs are widened, a block at a time; ``offset`` is the block's first row.
    """
    inputs, out = tuple(x.detach() for x in inputs), out.detach()
    num_rows, n = out.shape
    block = max(1, _VALUES // max(1, n))
    if out.dtype == torch.float32:
        over_rows(
            kernel, num_rows, 0, *(x.numpy() for x in inputs), out.numpy(), *args, min_rows=block
        )
        return

    def widen(first: int, last: int) -> None:
        for a in range(first, last, block):
            b = min(a + block, last)
            wide = [x[a:b].float() for x in inputs]
            kernel(0, b - a, a, *(x.numpy() for x in wide), wide[0].numpy(), *args)
            out[a:b] = wide[0]

    over_rows(widen, num_rows, min_rows=block)


def _by_rows_of_words(
    kernel: Callable[..., None], x: torch.Tensor, out: torch.Tensor, *args: Any
) -> None:
    """Call ``kernel(first, last, x, out, *args)`` with bfloat16 as int16, row by row widened."""
    num_rows, n = out.shape
    words = (one.detach().view(torch.int16).numpy() for one in (x, out))
    over_rows(kernel, num_rows, *words, *args, min_rows=max(1, _VALUES // max(1, n)))


@exact
def _affine(
    first: int,
    last: int,
    offset: int,
    x: np.ndarray,
    out: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    levels: np.float32,
    group: int,
) -> None:
    for r in range(first, last):
        for g in range(scale.shape[1]):
            s, z = scale[offset + r, g], zero[offset + r, g]
            values, results = x[r, g * group : (g + 1) * group], out[r, g * group : (g + 1) * group]
            _affine_run(values, results, s, z, levels)


@exact
def _affine_run(
    x: np.ndarray, out: np.ndarray, s: np.float32, z: np.float32, levels: np.float32
) -> None:
    for i in range(x.shape[0]):
        q = np.rint(x[i] / s) + z
        q = np.float32(0.0) if q < 0 else (levels if q > levels else q)
        out[i] = (q - z) * s


@exact
def _affine_backward(
    first: int,
    last: int,
    offset: int,
    gradient: np.ndarray,
    x: np.ndarray,
    out: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    levels: np.float32,
    group: int,
) -> None:
    for r in range(first, last):
        for g in range(scale.shape[1]):
            s, z = scale[offset + r, g], zero[offset + r, g]
            values, results = x[r, g * group : (g + 1) * group], out[r, g * group : (g + 1) * group]
            upstream = gradient[r, g * group : (g + 1) * group]
            for i in range(values.shape[0]):
                q = np.rint(values[i] / s) + z
                results[i] = upstream[i] if q >= 0 and q <= levels else np.float32(0.0)


@exact
def _tokens(
    first: int,
    last: int,
    _offset: int,
    x: np.ndarray,
    out: np.ndarray,
    levels: np.float32,
    from_zero: bool,
) -> None:
    for r in range(first, last):
        _tokens_row(x[r], out[r], levels, from_zero)


@exact
def _tokens_of_words(
    first: int, last: int, x: np.ndarray, out: np.ndarray, levels: np.float32, from_zero: bool
) -> None:
    n = x.shape[1]
    row, result = np.empty(n, np.float32), np.empty(n, np.float32)  # one alone is not vectorized
    for r in range(first, last):
        _widen(x[r], row)
        _tokens_row(row, result, levels, from_zero)
        _narrow(result, out[r])


@exact
def _tokens_row(x: np.ndarray, out: np.ndarray, levels: np.float32, from_zero: bool) -> None:
    low, high = extent(x)
    if from_zero:
        low = np.float32(0.0) if low == low else low
    s = (high - low) / levels
    s = np.float32(1e-8) if s < np.float32(1e-8) else s
    _affine_run(x, out, s, np.rint(-low / s), levels)


@exact
def _softmax(
    first: int, last: int, _offset: int, x: np.ndarray, out: np.ndarray, levels: np.float32
) -> None:
    for r in range(first, last):
        _softmax_row(x[r], out[r], levels)


@exact
def _softmax_of_words(
    first: int, last: int, x: np.ndarray, out: np.ndarray, levels: np.float32
) -> None:
    n = x.shape[1]
    row, result = np.empty(n, np.float32), np.empty(n, np.float32)  # one alone is not vectorized
    for r in range(first, last):
        _widen(x[r], row)
        _softmax_row(row, result, levels)
        _narrow(result, out[r])


@exact
def _softmax_row(x: np.ndarray, out: np.ndarray, levels: np.float32) -> None:
    low, high = extent(x)
    if low == low and -np.inf < high and high < np.inf:
        _softmax_run(x, out, high, levels)
    else:
        out[:] = np.nan


@fast
def _softmax_run(x: np.ndarray, out: np.ndarray, high: np.float32, levels: np.float32) -> None:
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        y = max((x[i] - high) * np.float32(_LOG2_E), np.float32(-126.0))
        whole = np.rint(y)
        f = y - whole
        p = np.float32(_EXP2[6])
        for k in range(5, -1, -1):
            p = p * f + np.float32(_EXP2[k])
        e = p * np.int32((np.int32(whole) + 127) << 23).view(np.float32)
        out[i] = e
        total += e
    s = max(np.float32(1.0) / (levels * total), np.float32(1e-8))
    codes = np.float32(1.0) / (total * s)  # levels, unless a row has very many values
    for i in range(out.shape[0]):
        out[i] = np.rint(out[i] * codes) * s


@exact
def _widen(words: np.ndarray, wide: np.ndarray) -> None:
    """Convert bfloat16 as int16, the upper half of a float32."""
    for i in range(wide.shape[0]):
        wide[i] = np.int32(np.int32(words[i]) << 16).view(np.float32)


@exact
def _narrow(wide: np.ndarray, words: np.ndarray) -> None:
    """Round to the nearest bfloat16, ties to even, as torch does."""
    values = wide.view(np.int32)
    for i in range(wide.shape[0]):
        value = values[i]
        rounded = (value + 0x7FFF + ((value >> 16) & 1)) >> 16
        words[i] = np.int16(0x7FC0 if (value & 0x7FFFFFFF) > 0x7F800000 else rounded)
