"""Codebooks of 2^bits values by k-means, per output channel (K-Means-C) or weight (K-Means-A).

``kmeans_c_w`` and ``kmeans_a_w`` weight squared errors by what the layer's inputs are like.

The algorithms and their sources: `qsdm.quant.kmeans`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qsdm.quant.method import Fit

BITS = range(2, 9)


def per_channel(bits: int, rows: int, _fan_in: int) -> dict[str, Stored]:
    """A codebook for every output channel."""
    return {"codebook": ("float16", (rows, 2**bits))}


def per_tensor(bits: int, _rows: int, _fan_in: int) -> dict[str, Stored]:
    """One codebook for the whole weight."""
    return {"codebook": ("float16", (2**bits,))}


def fit_channels(
    x: np.ndarray, widths: Sequence[int], _weight: torch.Tensor, _importance: np.ndarray | None
) -> Iterable[Fit]:
    """See `qsdm.quant.kmeans.fit_channels`."""
    from qsdm.quant import kmeans

    return kmeans.fit_channels(x, widths)


def fit_weighted_channels(
    x: np.ndarray, widths: Sequence[int], _weight: torch.Tensor, importance: np.ndarray | None
) -> Iterable[Fit]:
    """See `qsdm.quant.kmeans.fit_weighted_channels`."""
    from qsdm.quant import kmeans

    return kmeans.fit_weighted_channels(x, widths, importance)


def fit_tensor(
    x: np.ndarray, widths: Sequence[int], weight: torch.Tensor, _importance: np.ndarray | None
) -> Iterable[Fit]:
    """See `qsdm.quant.kmeans.fit_tensor`."""
    from qsdm.quant import kmeans

    return kmeans.fit_tensor(x, widths, weight)


def fit_weighted_tensor(
    x: np.ndarray, widths: Sequence[int], weight: torch.Tensor, importance: np.ndarray | None
) -> Iterable[Fit]:
    """See `qsdm.quant.kmeans.fit_tensor`."""
    from qsdm.quant import kmeans

    return kmeans.fit_tensor(x, widths, weight, importance)


def table(tensors: Mapping[str, torch.Tensor], _bits: int, groups: slice) -> torch.Tensor:
    """The codebooks, float32 [groups, 2**bits]."""
    return tensors["codebook"][groups].float()


def table_of_tensor(
    tensors: Mapping[str, torch.Tensor], _bits: int, _groups: slice
) -> torch.Tensor:
    """The codebook, float32 [1, 2**bits], for all groups."""
    return tensors["codebook"].float()[None]


KMEANS_C = Method("kmeans_c", BITS, per_channel, fit_channels, table)
KMEANS_A = Method("kmeans_a", BITS, per_tensor, fit_tensor, table_of_tensor, per_tensor=True)
KMEANS_C_W = replace(KMEANS_C, name="kmeans_c_w", fit=fit_weighted_channels, is_weighted=True)
KMEANS_A_W = replace(KMEANS_A, name="kmeans_a_w", fit=fit_weighted_tensor, is_weighted=True)
