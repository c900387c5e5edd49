"""The registry of quantization methods: what a text form such as ``uaq_g64-4`` does to a weight, and what is stored.

Their names lie in artifacts, so this list, unlike what is chosen on the command line, must resolve years later.

=============  ============================================================================================
uaq            uniform affine, per output channel, 10 factors (the paper's)
uaq_refined    the same with a finer search
uaq_asym       the same with both ends of the range searched apart
uaq_g32/64/128 uniform affine, a scale for every 32, 64 or 128 inputs of a channel
kmeans_c       a codebook per output channel
kmeans_a       a codebook per tensor
nf4_g64        the normal distribution's quantiles, groups of 64, double-quantized scales
fp8_e4m3       8-bit floats, a scale per output channel
fp             16 or 32 bits, as they are
=============  ============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import Quantized, blockwise, kmeans, packing, uaq

Part = tuple[torch.dtype, tuple[int, ...]]  # type and shape of something stored

VERSION = "1"  # of the fits: another one means other codes for the same weight

_SEARCH = {"uaq_refined": uaq.REFINED, "uaq_asym": uaq.ASYMMETRIC}
_TABLE = 1 << 22  # numbers of a decoding table that are held at once


def fit(weight: torch.Tensor, method: QuantMethod) -> Quantized:
    """Quantizes one weight.

    Args:
        weight: [out, in, *kernel] of any floating type, on any device.

    Returns:
        Codes and tensors, on the CPU.

    Raises:
        ValueError: the weight holds NaN or infinities, or has fewer than two axes.
    """
    shape = tuple(weight.shape)
    if len(shape) < 2 or 0 in shape or not weight.is_floating_point():
        raise ValueError(
            f"wanted a floating-point weight [out, in, ...] with values in it (got {weight.dtype} of shape {shape})"
        )
    weight = weight.detach().cpu().reshape(shape[0], -1).contiguous()
    x = weight.float().numpy()
    if not np.isfinite(x.sum(dtype=np.float64)) and not np.isfinite(x).all():
        raise ValueError("the weight holds NaN or infinities: repair or replace the checkpoint")
    if method.name == "fp":
        raw = weight.to(torch.float16 if method.bits == 16 else torch.float32).view(torch.uint8).reshape(-1)
        return Quantized(method, shape, raw, {})
    codes, tensors = _fit(weight, x, method)
    return Quantized(
        method,
        shape,
        torch.from_numpy(packing.pack(codes, method.bits)),
        {name: torch.from_numpy(t) for name, t in tensors.items()},
    )


def _fit(weight: torch.Tensor, x: np.ndarray, method: QuantMethod) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    match method.name:
        case "kmeans_a":
            return kmeans.fit_tensor(x, method.bits, weight)
        case "kmeans_c":
            return kmeans.fit_channels(x, method.bits)
        case "nf4_g64":
            return blockwise.fit_nf4(x, 64)
        case "fp8_e4m3":
            return blockwise.fit_fp8(x)
        case name:
            return uaq.fit(x, method.bits, method.group_size, _SEARCH.get(name, uaq.GRID))


def dequantize(quantized: Quantized, out: torch.Tensor | None = None) -> torch.Tensor:
    """The values of a quantized weight.

    Args:
        out: float32 of the weight's shape, contiguous, on the CPU; filled and returned.

    Returns:
        float32 [out, in, *kernel] on the CPU.
    """
    shape, method = quantized.shape, quantized.method
    if out is None:
        out = torch.empty(shape)
    elif tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"wanted a contiguous float32 output of shape {shape} (got {out.dtype} of shape {tuple(out.shape)})"
        )
    if method.name == "fp":
        return out.copy_(quantized.codes.view(torch.float16 if method.bits == 16 else torch.float32).view(shape))
    rows, fan_in = shape[0], math.prod(shape[1:])
    codes, values = quantized.codes.numpy(), out.view(rows, fan_in).numpy()
    group = method.group_size or fan_in
    groups = math.ceil(fan_in / group)
    # Eight rows of codes always fill whole bytes, so a run of them can be decoded alone.
    step = rows if method.name == "kmeans_a" else max(8, _TABLE // (groups * 2**method.bits) // 8 * 8)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = codes[first * fan_in * method.bits // 8 : packing.num_bytes(last * fan_in, method.bits)]
        lines = table(quantized, first * groups, last * groups)
        packing.decode(part, method.bits, lines, (last - first, fan_in), group, values[first:last])
    return out


def table(quantized: Quantized, first: int = 0, last: int | None = None) -> np.ndarray:
    """The value of every code in groups ``first`` to ``last``: float32 [groups, 2**bits]; one line for K-Means-A."""
    tensors: Mapping[str, np.ndarray] = {name: tensor.numpy() for name, tensor in quantized.tensors.items()}
    match quantized.method.name:
        case "kmeans_a":
            return tensors["codebook"].astype(np.float32)[None]
        case "kmeans_c":
            return tensors["codebook"][first:last].astype(np.float32)
        case "nf4_g64":
            return blockwise.table_nf4(**tensors)[first:last]
        case "fp8_e4m3":
            return blockwise.table_fp8(tensors["scale"][first:last])
        case _:
            scale, zero_point = tensors["scale"].reshape(-1), tensors["zero_point"].reshape(-1)
            return uaq.table(scale[first:last], zero_point[first:last], quantized.method.bits)


def layout(method: QuantMethod, shape: tuple[int, ...]) -> dict[str, Part]:
    """Type and shape of everything that is stored for a weight: ``codes`` and the tensors by name."""
    rows, fan_in = shape[0], math.prod(shape[1:])
    parts: dict[str, Part] = {"codes": (torch.uint8, (packing.num_bytes(rows * fan_in, method.bits),))}
    groups = math.ceil(fan_in / (method.group_size or fan_in))
    match method.name:
        case "fp":
            return parts
        case "kmeans_a":
            return parts | {"codebook": (torch.float16, (2**method.bits,))}
        case "kmeans_c":
            return parts | {"codebook": (torch.float16, (rows, 2**method.bits))}
        case "nf4_g64":
            scales = rows * groups
            return parts | {
                "scale": (torch.int8, (scales,)),
                "scale_scale": (torch.float32, (math.ceil(scales / 256),)),
                "scale_mean": (torch.float32, (1,)),
            }
        case "fp8_e4m3":
            return parts | {"scale": (torch.float16, (rows,))}
        case _:
            per = (rows,) if method.group_size is None else (rows, groups)
            return parts | {"scale": (torch.float16, per), "zero_point": (torch.float16, per)}
