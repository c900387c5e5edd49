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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import Quantized, blockwise, kmeans, packing, rows, uaq

Part = tuple[torch.dtype, tuple[int, ...]]  # type and shape of something stored

VERSION = "3"  # of the fits: another one means other codes for the same weight

_SEARCH = {"uaq_refined": uaq.REFINED, "uaq_asym": uaq.ASYMMETRIC}
_TABLE = 1 << 22  # numbers of a decoding table that are held at once
_PIECE = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A quantized weight and how far it is off.

    Attributes:
        rel_error: ``||W - W^||^2 / ||W||^2``; 0 where both are zero.
        norm_error: ``sum |W - W^|^2.4 / sum |W|^2.4``, by which UAQ searches its range (Nahshan et al., 2019).
        paper_error: the same sum as the paper's release reduces it, which differs between methods: means over the rows,
            added up; for K-Means-A sums over the inputs, averaged. For comparison with the release alone.
    """

    quantized: Quantized
    rel_error: float
    norm_error: float
    paper_error: float


def fit(weight: torch.Tensor, method: QuantMethod) -> Quantized:
    """Quantizes one weight.

    Args:
        weight: [out, in, *kernel] of any floating type, on any device; it is computed on the CPU.

    Returns:
        Codes and tensors, on the CPU.

    Raises:
        ValueError: the weight holds NaN or infinities, or has fewer than two axes.
    """
    weight, x = _rows(weight)
    _, codes, tensors = next(_fits(weight, x, (method,)))
    return _packed(method, weight.shape, codes, tensors)


def fit_all(weight: torch.Tensor, methods: Sequence[QuantMethod]) -> dict[QuantMethod, Fitted]:
    """`fit` with every method, and the errors; what bit widths of a method share is computed once.

    Raises:
        ValueError: as `fit`.
    """
    shape = tuple(weight.shape)
    weight, x = _rows(weight)
    norms = rows.power_sums(x, np.zeros((1, x.shape[1]), np.float32))
    found = {}
    for method, codes, tensors in _fits(weight, x, methods):
        quantized = _packed(method, shape, codes, tensors)
        if method.name == "fp":
            errors = rows.power_sums(x, dequantize(quantized).view(x.shape).numpy())
        else:
            group = method.group_size or x.shape[1]
            errors = np.zeros(2)
            for first, last, lines in _lines(quantized):
                errors += rows.coded_power_sums(x[first:last], codes[first:last], lines, group)
        averaged = math.prod(shape) / shape[1] if method.name == "kmeans_a" else x.shape[1]
        relative, norm = (_ratio(error, norm) for error, norm in zip(errors, norms, strict=True))
        found[method] = Fitted(quantized, relative, norm, float(errors[1] / averaged))
    return {method: found[method] for method in methods}


def _rows(weight: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """The weight on the CPU and its values, float32 [rows, n]."""
    shape = tuple(weight.shape)
    if len(shape) < 2 or 0 in shape or not weight.is_floating_point():
        raise ValueError(
            f"wanted a floating-point weight [out, in, ...] with values in it (got {weight.dtype} of shape {shape})"
        )
    weight = weight.detach().cpu().contiguous()
    wide = weight
    if weight.dtype != torch.float32:
        wide = torch.empty(shape)
        # In pieces that torch does not spread over threads: these would spin afterwards, in the way of the kernels'.
        for out, piece in zip(
            wide.view(-1).split(_PIECE), weight.view(-1).split(_PIECE), strict=True
        ):
            out.copy_(piece)
    x = wide.view(shape[0], -1).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(x.sum()) and not np.isfinite(x).all():
            raise ValueError("the weight holds NaN or infinities: repair or replace the checkpoint")
    return weight, x


def _fits(
    weight: torch.Tensor, x: np.ndarray, methods: Sequence[QuantMethod]
) -> Iterator[tuple[QuantMethod, np.ndarray, dict[str, np.ndarray]]]:
    """Method, codes uint8 [rows, n] and tensors, one by one; for ``fp`` the bytes of the values."""
    for name in dict.fromkeys(method.name for method in methods):
        same = sorted({method for method in methods if method.name == name})
        widths = [method.bits for method in same]
        fits: Iterable[kmeans.Fit]
        match name:
            case "fp":
                fits = ((_halves_or_singles(weight, bits), {}) for bits in widths)
            case "kmeans_a":
                fits = kmeans.fit_tensor(x, widths, weight)
            case "kmeans_c":
                fits = kmeans.fit_channels(x, widths)
            case "nf4_g64":
                fits = [blockwise.fit_nf4(x, 64)]
            case "fp8_e4m3":
                fits = [blockwise.fit_fp8(x)]
            case _:
                group, search = same[0].group_size, _SEARCH.get(name, uaq.GRID)
                fits = (uaq.fit(x, bits, group, search) for bits in widths)
        for method, (codes, tensors) in zip(same, fits, strict=True):
            yield method, codes, tensors


def _halves_or_singles(weight: torch.Tensor, bits: int) -> np.ndarray:
    return (
        weight.to(torch.float16 if bits == 16 else torch.float32).view(-1).view(torch.uint8).numpy()
    )


def _packed(
    method: QuantMethod,
    shape: tuple[int, ...],
    codes: np.ndarray,
    tensors: Mapping[str, np.ndarray],
) -> Quantized:
    packed = codes if method.name == "fp" else packing.pack(codes, method.bits)
    return Quantized(
        method,
        tuple(shape),
        torch.from_numpy(packed),
        {name: torch.from_numpy(t) for name, t in tensors.items()},
    )


def _ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else math.inf
    return float(error / norm)


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
        return out.copy_(
            quantized.codes.view(torch.float16 if method.bits == 16 else torch.float32).view(shape)
        )
    fan_in = math.prod(shape[1:])
    codes, values = quantized.codes.numpy(), out.view(-1, fan_in).numpy()
    for first, last, lines in _lines(quantized):
        part = codes[
            first * fan_in * method.bits // 8 : packing.num_bytes(last * fan_in, method.bits)
        ]
        group = method.group_size or fan_in
        packing.decode(part, method.bits, lines, (last - first, fan_in), group, values[first:last])
    return out


def _lines(quantized: Quantized) -> Iterator[tuple[int, int, np.ndarray]]:
    """First and last row, and the table of what lies between: blocks of rows whose tables are not too large.

    Eight rows of codes always fill whole bytes, so a block's codes begin with one.
    """
    num_rows, method = quantized.shape[0], quantized.method
    groups = (
        math.ceil(math.prod(quantized.shape[1:]) / method.group_size) if method.group_size else 1
    )
    step = (
        num_rows
        if method.name == "kmeans_a"
        else max(8, _TABLE // (groups * 2**method.bits) // 8 * 8)
    )
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        yield first, last, table(quantized, first * groups, last * groups)


def table(quantized: Quantized, first: int = 0, last: int | None = None) -> np.ndarray:
    """The value of every code in groups ``first`` to ``last``: float32 [groups, 2**bits]; one line for K-Means-A."""
    tensors: Mapping[str, np.ndarray] = {
        name: tensor.numpy() for name, tensor in quantized.tensors.items()
    }
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
    num_rows, fan_in = shape[0], math.prod(shape[1:])
    parts: dict[str, Part] = {
        "codes": (torch.uint8, (packing.num_bytes(num_rows * fan_in, method.bits),))
    }
    groups = math.ceil(fan_in / (method.group_size or fan_in))
    match method.name:
        case "fp":
            return parts
        case "kmeans_a":
            return parts | {"codebook": (torch.float16, (2**method.bits,))}
        case "kmeans_c":
            return parts | {"codebook": (torch.float16, (num_rows, 2**method.bits))}
        case "nf4_g64":
            scales = num_rows * groups
            return parts | {
                "scale": (torch.int8, (scales,)),
                "scale_scale": (torch.float32, (math.ceil(scales / 256),)),
                "scale_mean": (torch.float32, (1,)),
            }
        case "fp8_e4m3":
            return parts | {"scale": (torch.float16, (num_rows,))}
        case _:
            per = (num_rows,) if method.group_size is None else (num_rows, groups)
            return parts | {"scale": (torch.float16, per), "zero_point": (torch.float16, per)}
