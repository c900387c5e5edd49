"""Quantize a weight by any method, and dequantize it again.

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

Part = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a stored part."""

VERSION = "3"  # of the fits; a new version means other codes for the same weight

# Larger tensors torch would spread over threads of its own, which then spin beside the kernels'.
_TABLE = 1 << 15  # entries of a decoding table at a time
_PIECE = 1 << 14  # values that are converted at a time


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A quantized weight and its errors; W are the values before and W^ those after.

    Attributes:
        quantized: the weight as it is stored.
        rel_error: ``||W - W^||^2 / ||W||^2``; 0 where both are zero.
        norm_error: ``sum |W - W^|^2.4 / sum |W|^2.4``, by which UAQ searches its range (Nahshan et
            al., 2019).
        paper_error: ``sum |W - W^|^2.4``, reduced as in the paper's release, which differs between
            methods: the sum over rows of the mean over their values; for K-Means-A the mean over
            rows and kernel positions of the sum over inputs. Only for comparison with the release.
    """

    quantized: Quantized
    rel_error: float
    norm_error: float
    paper_error: float


def fit(weight: torch.Tensor, method: QuantMethod) -> Quantized:
    """Quantize a weight.

    Args:
        weight: ``[out, in, *kernel]`` of any floating type, on any device.
        method: any method.

    Returns:
        Codes and tensors, on the CPU, where they are computed.

    Raises:
        ValueError: the weight contains NaN or infinities, is empty, or has fewer than two axes.
    """
    weight, x = _rows(weight)
    _, codes, tensors = next(_fits(weight, x, (method,)))
    return _packed(method, weight.shape, codes, tensors)


def fit_all(weight: torch.Tensor, methods: Sequence[QuantMethod]) -> dict[QuantMethod, Fitted]:
    """Quantize a weight by several methods, and compute the errors.

    What the bit widths of a method share is computed once.

    Args:
        weight: see `fit`.
        methods: any methods.

    Returns:
        By method, in the order of ``methods``.

    Raises:
        ValueError: see `fit`.
    """
    shape = tuple(weight.shape)
    weight, x = _rows(weight)
    norms = rows.power_sums(x, np.zeros((1, x.shape[1]), np.float32))
    fits = {}
    for method, codes, tensors in _fits(weight, x, methods):
        quantized = _packed(method, shape, codes, tensors)
        if method.is_full:
            errors = rows.power_sums(x, dequantize(quantized).view(x.shape).numpy())
        else:
            group = method.group_size or x.shape[1]
            errors = np.zeros(2)
            for first, last, values in _tables(quantized):
                errors += rows.coded_power_sums(x[first:last], codes[first:last], values, group)
        kind = METHODS[method.name]
        divisor = math.prod(shape) / shape[1] if kind.per_tensor else x.shape[1]
        relative, norm = (_ratio(error, norm) for error, norm in zip(errors, norms, strict=True))
        fits[method] = Fitted(quantized, relative, norm, float(errors[1] / divisor))
    return {method: fits[method] for method in methods}


def _rows(weight: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """The weight on the CPU and its values, float32 [rows, n]."""
    shape = tuple(weight.shape)
    if len(shape) < 2 or 0 in shape or not weight.is_floating_point():
        raise ValueError(
            "wanted a floating-point weight [out, in, ...] that is not empty "
            f"(got {weight.dtype} of shape {shape})"
        )
    weight = weight.detach().cpu().contiguous()
    wide = weight
    if weight.dtype != torch.float32:
        wide = torch.empty(shape)
        for out, piece in zip(
            wide.view(-1).split(_PIECE), weight.view(-1).split(_PIECE), strict=True
        ):
            out.copy_(piece)
    x = wide.view(shape[0], -1).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(x.sum()) and not np.isfinite(x).all():
            raise ValueError(
                "the weight contains NaN or infinities: repair or replace the checkpoint"
            )
    return weight, x


def _fits(
    weight: torch.Tensor, x: np.ndarray, methods: Sequence[QuantMethod]
) -> Iterator[tuple[QuantMethod, np.ndarray, dict[str, np.ndarray]]]:
    """Each method with its codes uint8 [rows, n] and tensors; ``fp`` has bytes instead of codes."""
    for name in dict.fromkeys(method.name for method in methods):
        variants = sorted({method for method in methods if method.name == name})
        fits = METHODS[name].fit(x, [method.bits for method in variants], weight)
        for method, (codes, tensors) in zip(variants, fits, strict=True):
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
        quantized: on the CPU.
        out: float32 of the weight's shape, contiguous, on the CPU, to be filled and returned; None:
            a new tensor.

    Returns:
        float32 ``[out, in, *kernel]`` on the CPU.

    Raises:
        ValueError: ``out`` has another shape or type, or is not contiguous.
    """
    shape, method = quantized.shape, quantized.method
    if out is None:
        out = torch.empty(shape)
    elif tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"wanted a contiguous float32 output of shape {shape} "
            f"(got {out.dtype} of shape {tuple(out.shape)})"
        )
    if method.is_full:
        return out.copy_(quantized.codes.view(dtype_of(method.bits)).view(shape))
    fan_in = math.prod(shape[1:])
    codes, values = quantized.codes.numpy(), out.view(-1, fan_in).numpy()
    for first, last, table_values in _tables(quantized):
        part = codes[
            first * fan_in * method.bits // 8 : packing.num_bytes(last * fan_in, method.bits)
        ]
        group = method.group_size or fan_in
        packing.decode(
            part, method.bits, table_values, (last - first, fan_in), group, values[first:last]
        )
    return out


def _tables(quantized: Quantized) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of rows whose tables are not too large: first row, one after the last, table.

    Eight rows of codes fill whole bytes, so the codes of every block begin with a byte.
    """
    num_rows, bits = quantized.shape[0], quantized.method.bits
    method = METHODS[quantized.method.name]
    groups = method.num_groups(math.prod(quantized.shape[1:]))
    step = num_rows if method.per_tensor else max(8, _TABLE // (groups * 2**bits) // 8 * 8)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        yield first, last, table(quantized, slice(first * groups, last * groups)).numpy()


def table(quantized: Quantized, groups: slice = slice(None)) -> torch.Tensor:
    """The value of every code.

    Args:
        quantized: by any method except full precision.
        groups: which groups; all by default.

    Returns:
        float32 [groups, 2**bits] on the device of the codes; [1, 2**bits] for K-Means-A.
    """
    values = METHODS[quantized.method.name].table
    assert values is not None, "full precision has no table"
    return values(quantized.tensors, quantized.method.bits, groups)


def layout(method: QuantMethod, shape: tuple[int, ...]) -> dict[str, Part]:
    """What is stored of a weight.

    Args:
        method: any method.
        shape: of the weight, ``[out, in, *kernel]``.

    Returns:
        Type and shape of ``codes`` and of the method's tensors, by name.
    """
    rows, fan_in = shape[0], math.prod(shape[1:])
    stored = METHODS[method.name].stored(method.bits, rows, fan_in)
    codes = {"codes": (torch.uint8, (packing.num_bytes(rows * fan_in, method.bits),))}
    return codes | {name: (getattr(torch, dtype), size) for name, (dtype, size) in stored.items()}
