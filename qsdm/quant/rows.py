"""Shared by the numba kernels: compiler options, rows spread over threads, fp16, powers, errors.

Numba's cache does not notice that a function of another file changed, so kernels call nothing of
other files except `half`, `pow24`, `extent` and `best_of_lanes`.
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

# Sums may be reordered and fused, which lets LLVM vectorize them. Weights have no NaN; infinity
# keeps its meaning.
fast = numba.njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"nnan", "reassoc", "contract", "arcp", "nsz"},
)
# Every operation rounds once, as written: for what is stored or must agree with torch.
exact = numba.njit(cache=True, nogil=True, error_model="numpy")

_SHARING = local()  # by how many Python threads torch's are shared
_BLOCK = 128  # errors that are summed in float32 before float64


@contextmanager
def sharing(num: int) -> Iterator[None]:
    """Within the block, let this thread's kernels use one of ``num`` shares of torch's threads.

    Args:
        num: Python threads that share torch's, 1 or more.
    """
    _SHARING.num = num
    try:
        yield
    finally:
        _SHARING.num = 1


def over_rows(function: Callable[..., None], num_rows: int, *args: Any, min_rows: int = 1) -> None:
    """Call ``function(first, last, *args)`` for ranges that cover all rows, on torch's threads.

    The functions release the GIL. Numba's own parallel loops would triple the time of the first
    compilation.

    Args:
        function: a kernel.
        num_rows: number of rows.
        *args: passed on.
        min_rows: fewest rows that are worth a thread, 1 or more.
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
def half(x: np.float32) -> np.float32:
    """Round float32 to fp16.

    Args:
        x: any value.

    Returns:
        The nearest fp16 number, ties to even, as float32; beyond fp16's range its largest number.
    """
    x = np.float32(x)
    if abs(x) >= np.float32(65504.0):
        return np.float32(65504.0) if x > 0 else np.float32(-65504.0)
    if abs(x) < np.float32(2.0**-14):  # subnormal: multiples of 2^-24
        return np.rint(x * np.float32(2.0**24)) * np.float32(2.0**-24)
    # On the bits, as a caller that may reorder sums would simplify arithmetic that cancels.
    bits = np.float32(x).view(np.int32)
    return np.int32((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)


@fast
def pow24(t: np.float32) -> np.float32:
    """t^2.4 by polynomials, as 2^(2.4 log2 t), with a relative error below 2e-5.

    The polynomials are log2 on [1, 2), of degree 6, and 2^f on [-1/2, 1/2], of degree 4, through
    Chebyshev nodes.

    Args:
        t: 0 or more; values below 1e-15 count as 1e-15.
    """
    t = max(t, np.float32(1e-15))  # below, the power is not a normal fp32 number
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
def extent(x: np.ndarray) -> tuple[np.float32, np.float32]:
    """The smallest and the largest value.

    LLVM vectorizes comparisons of integers, but not those of floats.

    Args:
        x: float32 [n], n at least 1.
    """
    keys = x.view(np.int32)
    low = high = keys[0] ^ ((keys[0] >> 31) & 0x7FFFFFFF)  # in the order of the floats
    for i in range(keys.shape[0]):
        key = keys[i] ^ ((keys[i] >> 31) & 0x7FFFFFFF)
        low, high = min(low, key), max(high, key)
    low, high = low ^ ((low >> 31) & 0x7FFFFFFF), high ^ ((high >> 31) & 0x7FFFFFFF)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


def chebyshev(
    function: Callable[[np.ndarray], np.ndarray],
    low: float,
    high: float,
    center: float,
    degree: int,
) -> tuple[float, ...]:
    """Fit a polynomial in x - center through Chebyshev nodes.

    Args:
        function: of float64 arrays.
        low: end of the interval.
        high: end of the interval.
        center: 0 of the polynomial.
        degree: of the polynomial.

    Returns:
        Its coefficients, lowest degree first.
    """
    from numpy.polynomial import Chebyshev, Polynomial

    series = Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(series.convert(kind=Polynomial)(Polynomial([center, 1.0])).coef.tolist())


LOG2 = chebyshev(np.log2, 1.0, 2.0, 1.5, 6)
EXP2 = chebyshev(np.exp2, -0.5, 0.5, 0.0, 4)


def power_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of powers of differences.

    Args:
        x: float32 [rows, n].
        y: float32 [rows, n], or [1, n] for all rows.

    Returns:
        The sums of |x - y|^2 and of |x - y|^2.4, float64 [2].
    """
    sums = np.zeros((x.shape[0], 2))
    over_rows(_power_sums, x.shape[0], x, y, sums, min_rows=16)
    return sums.sum(0)


def coded_power_sums(x: np.ndarray, codes: np.ndarray, table: np.ndarray, group: int) -> np.ndarray:
    """`power_sums` of values and what their codes stand for.

    Args:
        x: float32 [rows, n].
        codes: uint8 [rows, n].
        table: float32 [rows * ceil(n / group), K], the value of each code; or [1, K] for all.
        group: values of a row that share a row of the table.

    Returns:
        The sums of |x - y|^2 and of |x - y|^2.4, float64 [2].
    """
    sums = np.zeros((x.shape[0], 2))
    over_rows(_coded_power_sums, x.shape[0], x, codes, table, group, sums, min_rows=16)
    return sums.sum(0)


@fast
def _add(x: np.ndarray, y: np.ndarray, sums: np.ndarray) -> None:
    for start in range(0, x.shape[0], _BLOCK):
        a, b = x[start : start + _BLOCK], y[start : start + _BLOCK]
        squares, powers = np.float32(0.0), np.float32(0.0)
        # From 0: where an index might be negative, numba turns loads into gathers.
        for i in range(a.shape[0]):
            d = abs(a[i] - b[i])
            squares += d * d
            powers += pow24(d) if d > 0 else np.float32(0.0)
        sums[0] += squares
        sums[1] += powers


@fast
def _power_sums(first: int, last: int, x: np.ndarray, y: np.ndarray, sums: np.ndarray) -> None:
    for r in range(first, last):
        _add(x[r], y[r if y.shape[0] > 1 else 0], sums[r])


@fast
def _coded_power_sums(
    first: int,
    last: int,
    x: np.ndarray,
    codes: np.ndarray,
    table: np.ndarray,
    group: int,
    sums: np.ndarray,
) -> None:
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
