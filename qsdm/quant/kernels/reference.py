"""Fake quantization in plain torch: what the kernels must give bit for bit, and what runs where there is no kernel.

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
        zero_point: float32, as ``scale``.
        group: values of a row that share a scale.
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
    """Straight-through gradient of `affine` for ``x``: what arrives, where the value lies in the range; else 0.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013), section 4.
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
    """Packed codes => values [rows, n].

    Args:
        codes: uint8 [ceil(rows * n * bits / 8)] (see `qsdm.quant.packing`).
        table: float32 [rows * ceil(n / group), 2**bits], or [1, 2**bits] for all.
    """
    places = torch.arange(bits, device=codes.device)
    stream = (codes[:, None] >> torch.arange(8, device=codes.device)) & 1
    index = (stream.reshape(-1)[: rows * n * bits].view(rows, n, bits).long() << places).sum(-1)
    if table.shape[0] == 1:
        return table[0][index].to(dtype)
    groups = -(-n // group)
    line = (
        torch.arange(rows, device=codes.device)[:, None] * groups
        + torch.arange(n, device=codes.device) // group
    )
    return table[line, index].to(dtype)


def tokens(x: torch.Tensor, bits: int, from_zero: bool) -> torch.Tensor:
    """Every row quantized in its own range: from its smallest to its largest value, or from 0 to the largest.

    Args:
        x: [rows, n].
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
