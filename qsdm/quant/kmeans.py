"""Codebooks of 2^b values of least squared error: one per output channel (K-Means-C) or one per tensor (K-Means-A).

Optimal scalar quantization is one-dimensional k-means, which dynamic programming solves exactly: with P0, P1 the
prefix sums of counts and values of the sorted points, the best k clusters of the first i points reach the gain

    G_k(i) = max_j  G_{k-1}(j) + (P1(i) - P1(j))^2 / (P0(i) - P0(j))

and the best j grows with i, so divide and conquer needs O(K m log m) steps for m points.

    K-Means-A  16-bit weights have fewer than 65,536 distinct values: counting them gives all points, and the result is
               optimal. float32 weights are counted by their 11 leading bits, each count at the mean of its values.
    K-Means-C  rows of at most 256 values are solved exactly. Longer ones are counted into 2,048 bins of
               x / (|x| + 18 d), d = (mean of sqrt|x|)^2, fine in the middle and never too coarse for an outlier; the
               programme runs over some of the bins' edges, and Lloyd's iteration over all of them follows.

References:
    Qua²SeDiMo (Mills et al., 2025), section 3: K-Means-C and K-Means-A.
    Ckmeans.1d.dp: Optimal k-means clustering in one dimension by dynamic programming (Wang & Song, 2011).
    Fast exact k-means, k-medians and Bregman divergence clustering in 1D (Grønlund et al., 2017), sec. 2.2.
"""

from __future__ import annotations

import numpy as np
import torch

from qsdm.quant.rows import exact, fast, half, over_rows

NUM_BINS = 2048
_EXACT = 256  # longest row that is solved without bins
_COMPAND = np.float32(18.0)  # deviations (0.68 sigma of normal values) at which a bin is four times as wide


def fit_channels(x: np.ndarray, bits: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes uint8 [rows, n] and codebook fp16 [rows, 2**bits] of float32 ``x`` [rows, n]."""
    codebook = np.empty((x.shape[0], 2**bits), np.float32)
    over_rows(_fit_rows, x.shape[0], x, codebook, min_rows=4)
    return encode(x, codebook), {"codebook": codebook.astype(np.float16)}


def fit_tensor(x: np.ndarray, bits: int, weight: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes uint8 [rows, n] and codebook fp16 [2**bits].

    Args:
        x: float32 [rows, n].
        weight: the same values in their own type, by which they are counted.
    """
    values, counts = distinct(x, weight)
    codebook = np.empty((1, 2**bits), np.float32)
    _fit_weighted(values, counts, codebook[0])
    return encode(x, codebook), {"codebook": codebook[0].astype(np.float16)}


def distinct(x: np.ndarray, weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values float64 [m] and how often they occur, float64 [m]; m <= 65,536."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        keys = weight.reshape(-1).view(torch.int16).numpy().view(np.uint16)
        patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(weight.dtype)
        values = patterns.double().numpy()
        counts = np.zeros(65536, np.int64)
        _count(keys, counts)
        used = np.flatnonzero(counts)
        values, numbers = values[used], counts[used].astype(np.float64)
    else:
        largest = float(np.abs(x).max()) or 1.0
        keys = (x.reshape(-1) * np.float32(32768 / largest)).astype(np.float16).view(np.uint16)
        numbers = np.bincount(keys, minlength=65536).astype(np.float64)
        sums = np.bincount(keys, weights=x.reshape(-1), minlength=65536)
        used = np.flatnonzero(numbers)
        values, numbers = sums[used] / numbers[used], numbers[used]
    order = np.argsort(values, kind="stable")
    return values[order], numbers[order]


def encode(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index of the nearest entry, uint8 [rows, n].

    Args:
        codebook: float32 [rows or 1, K], ascending, K a power of two.
    """
    codes = np.empty(x.shape, np.uint8)
    over_rows(_encode, x.shape[0], x, codebook, codes, min_rows=64)
    return codes


@exact
def _encode(first, last, x, codebook, codes):
    K = codebook.shape[1]
    middle = np.empty(K, np.float32)
    for r in range(first, last):
        row = codebook[r if codebook.shape[0] > 1 else 0]
        for k in range(K - 1):
            middle[k] = np.float32(0.5) * (row[k] + row[k + 1])
        if K <= 16:  # comparisons with every middle use vector instructions, a search does not
            for i in range(x.shape[1]):
                code = np.uint8(0)
                for k in range(K - 1):
                    code += np.uint8(x[r, i] > middle[k])
                codes[r, i] = code
        else:
            for i in range(x.shape[1]):
                code, step = 0, K // 2
                while step > 0:
                    if x[r, i] > middle[code + step - 1]:
                        code += step
                    step //= 2
                codes[r, i] = code


@exact
def _count(keys, counts):
    for i in range(keys.shape[0]):
        counts[keys[i]] += 1


@fast
def optimal(p0, p1, m, K, split):
    """The programme over prefix sums p0, p1 [m + 1]: ``split[k, i]``, int32, starts the last of k + 1 clusters."""
    gain, new = np.empty(m + 1), np.empty(m + 1)
    for i in range(m + 1):
        gain[i] = p1[i] * p1[i] / p0[i] if p0[i] > 0 else 0.0
        split[0, i] = 0
    stack = np.empty((64, 4), np.int32)
    for k in range(1, K):
        depth = 1
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, m, 0, m
        while depth > 0:
            depth -= 1
            low, high, left, right = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            i = (low + high) // 2
            best, at = -1.0, left
            for j in range(left, min(i, right) + 1):
                n = p0[i] - p0[j]
                s = p1[i] - p1[j]
                g = gain[j] + (s * s / n if n > 0 else 0.0)
                if g > best:
                    best, at = g, j
            new[i], split[k, i] = best, at
            if low < i:
                stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = low, i - 1, left, at
                depth += 1
            if i < high:
                stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = i + 1, high, at, right
                depth += 1
        gain, new = new, gain


@fast
def _means(p0, p1, m, K, split, shift, out):
    """Follow the splits back: means of the K clusters + ``shift``. An empty cluster takes the value of a neighbour."""
    i = m
    filled = False
    for k in range(K - 1, -1, -1):
        j = split[k, i]
        if p0[i] - p0[j] > 0:
            out[k] = (p1[i] - p1[j]) / (p0[i] - p0[j]) + shift
            if not filled:
                for q in range(k + 1, K):
                    out[q] = out[k]
            filled = True
        elif filled:
            out[k] = out[k + 1]
        i = j


@exact
def _finish(codebook):
    """Ascending and rounded to fp16, in place."""
    codebook.sort()
    for k in range(codebook.shape[0]):
        codebook[k] = half(codebook[k])


@fast
def _fit_weighted(values, counts, out):
    m, K = values.shape[0], out.shape[0]
    p0, p1 = np.zeros(m + 1), np.zeros(m + 1)
    shift = 0.0
    for i in range(m):  # about the mean, the gains differ in their leading digits
        p0[i + 1] = p0[i] + counts[i]
        shift += counts[i] * values[i]
    shift /= p0[m]
    for i in range(m):
        p1[i + 1] = p1[i] + counts[i] * (values[i] - shift)
    split = np.empty((K, m + 1), np.int32)
    optimal(p0, p1, m, K, split)
    _means(p0, p1, m, K, split, shift, out)
    _finish(out)


@fast
def _fit_rows(first, last, x, out):
    n, K = x.shape[1], out.shape[1]
    num_nodes = max(128, 3 * K)
    bins = np.empty((NUM_BINS, 2), np.float32)
    s0, s1 = np.empty(NUM_BINS + 2, np.float32), np.empty(NUM_BINS + 2, np.float32)
    p0, p1 = np.empty(num_nodes + 1), np.empty(num_nodes + 1)
    split = np.empty((K, num_nodes + 1), np.int32)
    parts = np.empty(9, np.float32)
    below0, below1 = np.zeros(K + 1, np.float32), np.zeros(K + 1, np.float32)
    for r in range(first, last):
        row = x[r]
        if n <= _EXACT:
            _fit_weighted(np.sort(row).astype(np.float64), np.ones(n), out[r])
            continue
        low, high = row[0], row[0]
        for i in range(n):
            low, high = min(low, row[i]), max(high, row[i])
        if low == high:
            out[r, :] = low
            _finish(out[r])
            continue
        for k in range(parts.shape[0]):  # a few outliers move neither the median of means nor the mean root
            parts[k] = np.mean(row[k * n // parts.shape[0] : (k + 1) * n // parts.shape[0]])
        mean, root = np.float32(np.sort(parts)[parts.shape[0] // 2]), np.float32(0.0)
        for i in range(n):
            root += np.sqrt(abs(row[i] - mean))
        deviation = (root / np.float32(n)) ** 2
        c = max(_COMPAND * deviation, np.float32(1e-6) * (high - low))
        start = (low - mean) / (abs(low - mean) + c)
        density = np.float32(NUM_BINS - 0.01) / ((high - mean) / (abs(high - mean) + c) - start)
        bins[:] = 0
        for i in range(n):
            y = row[i] - mean
            b = min(max(np.int32((y / (abs(y) + c) - start) * density), 0), NUM_BINS - 1)
            bins[b, 0] += np.float32(1.0)
            bins[b, 1] += y
        s0[0], s1[0] = 0, 0
        for b in range(NUM_BINS):
            s0[b + 1], s1[b + 1] = s0[b] + bins[b, 0], s1[b] + bins[b, 1]
        s0[NUM_BINS + 1], s1[NUM_BINS + 1] = s0[NUM_BINS], s1[NUM_BINS]
        m = _nodes(s0, s1, num_nodes, p0, p1)
        optimal(p0, p1, m, K, split)
        _means(p0, p1, m, K, split, 0.0, out[r])
        below0[K], below1[K] = s0[NUM_BINS], s1[NUM_BINS]
        for _ in range(60):  # Lloyd; within a bin, values are taken as evenly spread
            for k in range(1, K):
                y = np.float32(0.5) * (out[r, k - 1] + out[r, k])
                at = min(max((y / (abs(y) + c) - start) * density, np.float32(0.0)), np.float32(NUM_BINS))
                b = np.int32(at)
                part = at - np.float32(b)
                below0[k] = s0[b] + part * (s0[b + 1] - s0[b])
                below1[k] = s1[b] + part * (s1[b + 1] - s1[b])
            change = np.float32(0.0)
            for k in range(K):
                count = below0[k + 1] - below0[k]
                if count > np.float32(1e-3):
                    value = (below1[k + 1] - below1[k]) / count
                    change = max(change, abs(value - out[r, k]))
                    out[r, k] = value
            if change < np.float32(2e-4) * deviation:
                break
        for k in range(K):
            out[r, k] += mean
        _finish(out[r])


@fast
def _nodes(s0, s1, num_nodes, p0, p1):
    """Edges of bins where clusters may end, evenly spread in the integral of density^0.2: prefix sums; how many - 1.

    The optimal quantizer's density grows with the cube root of the values' density (Panter & Dite, 1951); a smaller
    exponent spares nodes for the tails.
    """
    coarse, width = 256, NUM_BINS // 256
    cumulative = np.zeros(coarse + 1, np.float32)
    for g in range(coarse):
        here = s0[(g + 1) * width] - s0[g * width]
        left = s0[g * width] - s0[(g - 1) * width] if g > 0 else np.float32(0.0)
        right = s0[(g + 2) * width] - s0[(g + 1) * width] if g < coarse - 1 else np.float32(0.0)
        cumulative[g + 1] = cumulative[g] + (np.float32(0.5) * here + np.float32(0.25) * (left + right)) ** np.float32(
            0.2
        )
    m, g, last = 0, 0, 0
    p0[0], p1[0] = 0.0, 0.0
    for i in range(1, num_nodes + 1):
        target = cumulative[coarse] * np.float32(i) / np.float32(num_nodes)
        while g < coarse - 1 and cumulative[g + 1] < target:
            g += 1
        step = cumulative[g + 1] - cumulative[g]
        part = min((target - cumulative[g]) / step, np.float32(1.0)) if step > 0 else np.float32(0.0)
        b = NUM_BINS if i == num_nodes else np.int32((np.float32(g) + part) * np.float32(width) + np.float32(0.5))
        if b > last and s0[b] > s0[last]:
            m, last = m + 1, b
            p0[m], p1[m] = s0[b], s1[b]
    if s0[last] < s0[NUM_BINS]:
        p0[m], p1[m] = s0[NUM_BINS], s1[NUM_BINS]
    return m
