"""Quantize a weight by any method, and compute the errors.

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
from qsdm.quant.decoding import dequantize, tables
from qsdm.quant.methods import METHODS
from qsdm.quant.quantized import Quantized

VERSION = "3"  # of the fits; a new version means other codes for the same weight

_LEAST_IMPORTANCE = 1e-3  # of an input channel, in units of the mean: it may have been still

# Values that are converted at a time; larger tensors torch would spread over threads of its own,
# which then spin beside the kernels'.
_PIECE = 1 << 14


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
        weighted_error: ``sum h |W - W^|^2 / sum h |W|^2`` with the importance h of each input; as
            ``rel_error`` if all are alike.
    """

    quantized: Quantized
    rel_error: float
    norm_error: float
    paper_error: float
    weighted_error: float


def fit(
    weight: torch.Tensor, method: QuantMethod, importance: np.ndarray | None = None
) -> Quantized:
    """Quantize a weight.

    Args:
        weight: ``[out, in, *kernel]`` of any floating type, on any device.
        method: any method.
        importance: see `fit_all`.

    Returns:
        Codes and tensors, on the CPU, where they are computed.

    Raises:
        ValueError: the weight contains NaN or infinities, is empty, or has fewer than two axes.
    """
    weight, x = _rows(weight)
    _, codes, tensors = next(_fits(weight, x, (method,), _spread(importance, weight)))
    return _packed(method, weight.shape, codes, tensors)


def fit_all(
    weight: torch.Tensor,
    methods: Sequence[QuantMethod],
    importance: np.ndarray | None = None,
) -> dict[QuantMethod, Fitted]:
    """Quantize a weight by several methods, and compute the errors.

    What the bit widths of a method share is computed once.

    Args:
        weight: see `fit`.
        methods: any methods.
        importance: mean square of each input channel, float [in]; None: all are alike.

    Returns:
        By method, in the order of ``methods``.

    Raises:
        ValueError: see `fit`.
    """
    shape = tuple(weight.shape)
    weight, x = _rows(weight)
    spread = _spread(importance, weight)
    weighted_norm = _weighted_sum(x, spread)
    norms = rows.power_sums(x, np.zeros((1, x.shape[1]), np.float32))
    fits = {}
    for method, codes, tensors in _fits(weight, x, methods, spread):
        quantized = _packed(method, shape, codes, tensors)
        if method.is_full:
            errors = rows.power_sums(x, dequantize(quantized).view(x.shape).numpy())
        else:
            group = method.group_size or x.shape[1]
            errors = np.zeros(2)
            for first, last, values in tables(quantized):
                part = x[first:last], codes[first:last]
                errors += rows.coded_power_sums(*part, values.numpy(), group)
        kind = METHODS[method.name]
        divisor = math.prod(shape) / shape[1] if kind.per_tensor else x.shape[1]
        relative, norm = (_ratio(error, norm) for error, norm in zip(errors, norms, strict=True))
        weighted = relative
        if spread is not None:
            off = x - dequantize(quantized).view(x.shape).numpy()
            weighted = _ratio(_weighted_sum(off, spread), weighted_norm)
        fits[method] = Fitted(quantized, relative, norm, float(errors[1] / divisor), weighted)
    return {method: fits[method] for method in methods}


def _spread(importance: np.ndarray | None, weight: torch.Tensor) -> np.ndarray | None:
    """The importance of every value of a row, float32 [fan_in], with a mean of 1 and none at 0."""
    if importance is None:
        return None
    if importance.shape != (weight.shape[1],):
        raise ValueError(
            f"wanted the importance of {weight.shape[1]} input channels "
            f"(got {importance.shape} for a weight of shape {tuple(weight.shape)})"
        )
    if not (np.isfinite(importance).all() and importance.min() >= 0):
        raise ValueError("the importance of an input channel is negative, NaN or infinite")
    if (mean := importance.mean()) == 0:  # the layer reads zeros: its weights do not matter
        return None
    floored = np.maximum(importance / mean, _LEAST_IMPORTANCE)
    kernel = math.prod(weight.shape[2:])
    return np.repeat(floored, kernel).astype(np.float32)


def _weighted_sum(x: np.ndarray, importance: np.ndarray | None) -> float:
    if importance is None:
        return 0.0
    return float(np.einsum("ij,ij,j->", x, x, importance, dtype=np.float64))


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
    weight: torch.Tensor,
    x: np.ndarray,
    methods: Sequence[QuantMethod],
    importance: np.ndarray | None,
) -> Iterator[tuple[QuantMethod, np.ndarray, dict[str, np.ndarray]]]:
    """Each method with its codes uint8 [rows, n] and tensors; ``fp`` has bytes instead of codes."""
    for name in dict.fromkeys(method.name for method in methods):
        variants = sorted({method for method in methods if method.name == name})
        fits = METHODS[name].fit(x, [method.bits for method in variants], weight, importance)
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
