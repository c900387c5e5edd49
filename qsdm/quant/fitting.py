"""Any method: a weight becomes codes and tensors, and these become values again.

References:
    Loss Aware Post-training Quantization (Nahshan et al., 2019): the norm of errors with p = 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import packing, rows
from qsdm.quant.full import dtype_of
from qsdm.quant.methods import METHODS
from qsdm.quant.quantized import Quantized

Part = tuple[torch.dtype, tuple[int, ...]]  # type and shape of something stored

VERSION = "3"  # of the fits: another one means other codes for the same weight

_TABLE = (
    1 << 15
)  # numbers of a decoding table at once: torch spreads no more over threads, which would spin
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
        weight: ``[out, in, *kernel]`` of any floating type, on any device; it is computed on the CPU.

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
        if method.is_full:
            errors = rows.power_sums(x, dequantize(quantized).view(x.shape).numpy())
        else:
            group = method.group_size or x.shape[1]
            errors = np.zeros(2)
            for first, last, lines in _lines(quantized):
                errors += rows.coded_power_sums(x[first:last], codes[first:last], lines, group)
        kind = METHODS[method.name]
        averaged = math.prod(shape) / shape[1] if kind.per_tensor else x.shape[1]
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
        fits = METHODS[name].fit(x, [method.bits for method in same], weight)
        for method, (codes, tensors) in zip(same, fits, strict=True):
            yield method, codes, tensors


def _packed(
    method: QuantMethod,
    shape: tuple[int, ...],
    codes: np.ndarray,
    tensors: Mapping[str, np.ndarray],
) -> Quantized:
    packed = codes if method.is_full else packing.pack(codes, method.bits)
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
        float32 ``[out, in, *kernel]`` on the CPU.
    """
    shape, method = quantized.shape, quantized.method
    if out is None:
        out = torch.empty(shape)
    elif tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"wanted a contiguous float32 output of shape {shape} (got {out.dtype} of shape {tuple(out.shape)})"
        )
    if method.is_full:
        return out.copy_(quantized.codes.view(dtype_of(method.bits)).view(shape))
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
    num_rows, bits = quantized.shape[0], quantized.method.bits
    method = METHODS[quantized.method.name]
    groups = method.num_groups(math.prod(quantized.shape[1:]))
    step = num_rows if method.per_tensor else max(8, _TABLE // (groups * 2**bits) // 8 * 8)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        yield first, last, table(quantized, slice(first * groups, last * groups)).numpy()


def table(quantized: Quantized, groups: slice = slice(None)) -> torch.Tensor:
    """The value of every code: float32 [groups, 2**bits] on the device of the codes; one line for K-Means-A.

    Args:
        quantized: by any method but full precision.
        groups: which lines; all of them by default.
    """
    values = METHODS[quantized.method.name].table
    assert values is not None, "full precision has no table"
    return values(quantized.tensors, quantized.method.bits, groups)


def layout(method: QuantMethod, shape: tuple[int, ...]) -> dict[str, Part]:
    """Type and shape of everything that is stored for a weight: ``codes`` and the tensors by name."""
    rows, fan_in = shape[0], math.prod(shape[1:])
    stored = METHODS[method.name].stored(method.bits, rows, fan_in)
    codes = {"codes": (torch.uint8, (packing.num_bytes(rows * fan_in, method.bits),))}
    return codes | {name: (getattr(torch, dtype), size) for name, (dtype, size) in stored.items()}
