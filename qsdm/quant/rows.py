"""What the numba kernels share: compiler options, rows spread over threads, rounding to fp16.

A compiled kernel in the cache does not notice that a function of another file changed, so kernels call nothing but
`half` across files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch

# Sums may be reordered and fused, which lets LLVM use vector instructions; NaN and infinity keep their meaning.
fast = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
# Every operation rounds once, as written: for all that is stored or must agree with torch.
exact = numba.njit(cache=True, nogil=True, error_model="numpy")


def over_rows(function: Callable[..., None], num_rows: int, *args: Any, min_rows: int = 1) -> None:
    """Calls ``function(first, last, *args)`` for ranges that cover ``num_rows``, one per thread of torch's pool size.

    The functions release the GIL. Numba's own parallel loops would triple the time of the first compilation.
    """
    num_threads = max(1, min(torch.get_num_threads(), num_rows // max(1, min_rows)))
    if num_threads == 1:
        function(0, num_rows, *args)
        return
    edges = np.linspace(0, num_rows, num_threads + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(function, a, b, *args) for a, b in itertools.pairwise(edges)]:
            future.result()


@exact
def half(x):
    """float32 ``x`` rounded to fp16 (nearest even), as float32; beyond fp16's range its largest number."""
    x = np.float32(x)
    if abs(x) >= np.float32(65504.0):
        return np.float32(65504.0) if x > 0 else np.float32(-65504.0)
    if abs(x) < np.float32(2.0**-14):  # subnormal: multiples of 2^-24
        return np.rint(x * np.float32(2.0**24)) * np.float32(2.0**-24)
    # On the bits: arithmetic that cancels would be simplified away in a caller that may reorder sums.
    bits = np.float32(x).view(np.int32)
    return np.int32((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)


@fast
def _squares(first, last, x, y, out):
    for r in range(first, last):
        error, norm = 0.0, 0.0
        for i in range(x.shape[1]):
            d = np.float64(x[r, i]) - np.float64(y[r, i])
            error += d * d
            norm += np.float64(x[r, i]) * np.float64(x[r, i])
        out[r, 0], out[r, 1] = error, norm


def rel_error(x: np.ndarray, y: np.ndarray) -> float:
    """``||x - y||^2 / ||x||^2``, of float32 [rows, n]; 0 where both are zero."""
    out = np.empty((x.shape[0], 2))
    over_rows(_squares, x.shape[0], x, y, out, min_rows=16)
    error, norm = out.sum(0).tolist()
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return error / norm


def norm_error(x: np.ndarray, y: np.ndarray, p: float = 2.4) -> float:
    """``sum |x - y|^p / sum |x|^p`` of float32 [rows, n]; 0 where both are zero. UAQ searches its range by it.

    References: Loss Aware Post-training Quantization (Nahshan et al., arXiv 1911.07190).
    """
    full = torch.from_numpy(x)
    error = (full - torch.from_numpy(y)).abs_().pow_(p).sum(dtype=torch.float64).item()
    norm = full.abs().pow_(p).sum(dtype=torch.float64).item()
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return error / norm
