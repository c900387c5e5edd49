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
from qsdm.quant.rows import exact, extent, over_rows

# Fewest values of a thread, and most of 16-bit inputs at a time, which stay cached as float32.
_VALUES = 1 << 16
_DECODED = 1 << 18  # values at a time that are decoded and then converted


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
    _by_rows(_tokens, (x,), out, np.float32(2**bits - 1), from_zero)


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
        low, high = extent(x[r])
        if from_zero:
            low = np.float32(0.0) if low == low else low
        s = (high - low) / levels
        s = np.float32(1e-8) if s < np.float32(1e-8) else s
        _affine_run(x[r], out[r], s, np.rint(-low / s), levels)
