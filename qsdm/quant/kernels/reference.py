"""Fake quantization in plain torch: the kernels' reference, bit for bit, and their substitute.

All arithmetic is float32; 16-bit inputs are widened first and results rounded last.
"""

from __future__ import annotations

import torch


def affine(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """``(clamp(round(x / s) + z, 0, 2^bits - 1) - z) s`` with a scale and a zero point per group.

    Args:
        x: [rows, n] of float32, float16 or bfloat16.
        scale: float32 [rows, ceil(n / group)].
        zero_point: float32, of the shape of ``scale``.
        bits: of a code, 2 to 8.
        group: values of a row that share a scale.

    Returns:
        The shape and type of ``x``.
    """
    s, z = _spread(scale, x.shape[1], group), _spread(zero_point, x.shape[1], group)
    q = (torch.round(x.float() / s) + z).clamp(0, 2**bits - 1)
    return ((q - z) * s).to(x.dtype)


def affine_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
) -> torch.Tensor:
    """Straight-through gradient of `affine` with respect to ``x``.

    Args:
        gradient: of the output, [rows, n].
        x: see `affine`.
        scale: see `affine`.
        zero_point: see `affine`.
        bits: see `affine`.
        group: see `affine`.

    Returns:
        ``gradient`` where the value lies in the range, else 0.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013),
            section 4.
    """
    s, z = _spread(scale, x.shape[1], group), _spread(zero_point, x.shape[1], group)
    q = torch.round(x.float() / s) + z
    return torch.where((q >= 0) & (q <= 2**bits - 1), gradient, torch.zeros_like(gradient))


def lookup(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    rows: int,
    n: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The values of packed codes.

    Args:
        codes: uint8 [ceil(rows * n * bits / 8)] (see `qsdm.quant.packing`).
        table: float32 [rows * ceil(n / group), 2**bits], or [1, 2**bits] for all groups.
        bits: of a code, 1 to 8.
        rows: output channels.
        n: values of a row.
        group: values of a row that share a row of the table.
        dtype: of the values.

    Returns:
        [rows, n].
    """
    shifts = torch.arange(bits, device=codes.device)
    stream = (codes[:, None] >> torch.arange(8, device=codes.device)) & 1
    index = (stream.reshape(-1)[: rows * n * bits].view(rows, n, bits).long() << shifts).sum(-1)
    if table.shape[0] == 1:
        return table[0][index].to(dtype)
    groups = -(-n // group)
    line = (
        torch.arange(rows, device=codes.device)[:, None] * groups
        + torch.arange(n, device=codes.device) // group
    )
    return table[line, index].to(dtype)


def tokens(x: torch.Tensor, bits: int, from_zero: bool) -> torch.Tensor:
    """Quantize every row in its own range.

    Args:
        x: [rows, n] of float32, float16 or bfloat16.
        bits: of a code, 2 to 8.
        from_zero: whether ranges begin at 0 instead of the row's smallest value.

    Returns:
        The shape and type of ``x``.
    """
    wide = x.float()
    high = wide.amax(1, keepdim=True)
    low = torch.zeros_like(high) if from_zero else wide.amin(1, keepdim=True)
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp(min=1e-8)
    zero_point = torch.round(-low / scale)
    q = (torch.round(wide / scale) + zero_point).clamp(0, levels)
    return ((q - zero_point) * scale).to(x.dtype)


def _spread(per_group: torch.Tensor, n: int, group: int) -> torch.Tensor:
    """[rows, groups] => [rows, n], or [rows, 1] for a single group."""
    if per_group.shape[1] == 1:
        return per_group
    return per_group.repeat_interleave(group, 1)[:, :n]
