"""What the numba kernels share: compiler options, rows spread over threads, rounding to fp16, powers, errors.

A compiled kernel in the cache does not notice that a function of another file changed, so kernels call nothing of other
files but `half`, `pow24` and `extent`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import local
from typing import Any

import numba
import numpy as np
import torch

# Sums may be reordered and fused, which lets LLVM use vector instructions. Weights hold no NaN; infinity keeps its
# meaning.
fast = numba.njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"nnan", "reassoc", "contract", "arcp", "nsz"},
)
# Every operation rounds once, as written: for all that is stored or must agree with torch.
exact = numba.njit(cache=True, nogil=True, error_model="numpy")

_SHARING = local()  # how many threads of Python share torch's
_BLOCK = 128  # values whose errors are added in float32, before float64


@contextmanager
def sharing(num: int) -> Iterator[None]:
    """Within the block, this thread's kernels take one of ``num`` shares of the threads of torch's pool."""
    _SHARING.num = num
    try:
        yield
    finally:
        _SHARING.num = 1


def over_rows(function: Callable[..., None], num_rows: int, *args: Any, min_rows: int = 1) -> None:
    """Calls ``function(first, last, *args)`` for ranges that cover ``num_rows``, one for each of torch's threads.

    The functions release the GIL. Numba's own parallel loops would triple the time of the first compilation.
    """
    available = torch.get_num_threads() // getattr(_SHARING, "num", 1)
    num_threads = max(1, min(available, num_rows // max(1, min_rows)))
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
def pow24(t):
    """t^2.4 for float32 t >= 0 as 2^(2.4 log2 t), by polynomials, relative error below 2e-5; t < 1e-15 count as 1e-15.

    log2 on [1, 2) by degree 6, 2^f on [-1/2, 1/2] by degree 4, through Chebyshev nodes.
    """
    t = max(t, np.float32(1e-15))  # below, the power is no normal fp32 number
    i = np.float32(t).view(np.int32)
    e = np.float32((i >> 23) - 127)
    z = np.int32((i & 0x007FFFFF) | 0x3F800000).view(np.float32) - np.float32(1.5)
    p = np.float32(LOG2[6])
    for k in range(5, -1, -1):
        p = p * z + np.float32(LOG2[k])
    y = (p + e) * np.float32(2.4)
    r = np.rint(y)
    f = y - r
    q = np.float32(EXP2[4])
    for k in range(3, -1, -1):
        q = q * f + np.float32(EXP2[k])
    return q * np.int32((np.int32(r) + 127) << 23).view(np.float32)


@exact
def extent(x):
    """Smallest and largest of float32 ``x`` [n]. Unlike that of floats, LLVM makes vectors of integers' comparison."""
    keys = x.view(np.int32)
    low = high = keys[0] ^ ((keys[0] >> 31) & 0x7FFFFFFF)  # ordered as the floats are
    for i in range(keys.shape[0]):
        key = keys[i] ^ ((keys[i] >> 31) & 0x7FFFFFFF)
        low, high = min(low, key), max(high, key)
    low, high = low ^ ((low >> 31) & 0x7FFFFFFF), high ^ ((high >> 31) & 0x7FFFFFFF)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


def _chebyshev(
    function: Callable[[np.ndarray], np.ndarray],
    low: float,
    high: float,
    center: float,
    degree: int,
) -> tuple[float, ...]:
    """Coefficients of the polynomial in x - center through Chebyshev nodes of [low, high], lowest degree first."""
    from numpy.polynomial import Chebyshev, Polynomial

    series = Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(series.convert(kind=Polynomial)(Polynomial([center, 1.0])).coef.tolist())


LOG2 = _chebyshev(np.log2, 1.0, 2.0, 1.5, 6)
EXP2 = _chebyshev(np.exp2, -0.5, 0.5, 0.0, 4)


def power_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of ``|x - y|^2`` and of ``|x - y|^2.4``: float64 [2], of float32 ``x`` [rows, n], ``y`` [rows or 1, n]."""
    sums = np.zeros((x.shape[0], 2))
    over_rows(_power_sums, x.shape[0], x, y, sums, min_rows=16)
    return sums.sum(0)


def coded_power_sums(x: np.ndarray, codes: np.ndarray, table: np.ndarray, group: int) -> np.ndarray:
    """`power_sums` of float32 ``x`` [rows, n] and what its codes stand for.

    Args:
        codes: uint8 [rows, n].
        table: float32 [rows * ceil(n / group), K], the value of each code; or [1, K] for all.
    """
    sums = np.zeros((x.shape[0], 2))
    over_rows(_coded_power_sums, x.shape[0], x, codes, table, group, sums, min_rows=16)
    return sums.sum(0)


@fast
def _add(x, y, sums):
    for start in range(0, x.shape[0], _BLOCK):
        a, b = x[start : start + _BLOCK], y[start : start + _BLOCK]
        squares, powers = np.float32(0.0), np.float32(0.0)
        for i in range(
            a.shape[0]
        ):  # from 0: where an index might be negative, numba makes gathers of loads
            d = abs(a[i] - b[i])
            squares += d * d
            powers += pow24(d) if d > 0 else np.float32(0.0)
        sums[0] += squares
        sums[1] += powers


@fast
def _power_sums(first, last, x, y, sums):
    for r in range(first, last):
        _add(x[r], y[r if y.shape[0] > 1 else 0], sums[r])


@fast
def _coded_power_sums(first, last, x, codes, table, group, sums):
    n = x.shape[1]
    groups = (n + group - 1) // group
    values = np.empty(n, np.float32)
    for r in range(first, last):
        for g in range(groups):
            line = table[r * groups + g if table.shape[0] > 1 else 0]
            out, part = values[g * group : (g + 1) * group], codes[r, g * group : (g + 1) * group]
            for i in range(out.shape[0]):
                out[i] = line[part[i]]
        _add(x[r], values, sums[r])
