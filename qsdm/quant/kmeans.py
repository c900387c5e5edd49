"""Codebooks of 2^b values of least squared error, per output channel or per tensor.

Optimal scalar quantization is one-dimensional k-means, which dynamic programming solves exactly.
With the prefix sums P0 of counts and P1 of values of the sorted points, the best k clusters of the
first i points reach the gain

    G_k(i) = max_j  G_{k-1}(j) + (P1(i) - P1(j))^2 / (P0(i) - P0(j))

and the best j grows with i, so that divide and conquer takes O(K m log m) steps for m points.

    K-Means-A  16-bit weights have at most 65,536 distinct values. Counting them gives all points,
               and the result is optimal. float32 weights are rounded to 11 leading bits to be
               counted, and each count stands at the mean of its values.
    K-Means-C  Rows of at most 256 values are solved exactly. Longer ones are counted into 2,048
               bins of x / (|x| + 18 d), d = (mean of sqrt|x|)^2, fine in the middle and never too
               coarse for an outlier. The dynamic program runs over some 130 of the bins' edges,
               placed as those of a fine quantizer, and Lloyd's iteration over all bins follows.

Where errors do not count alike, counts become sums of importance.

References:
    Qua²SeDiMo (Mills et al., 2025), section 3: K-Means-C and K-Means-A.
    Ckmeans.1d.dp: Optimal k-means clustering in one dimension by dynamic programming (Wang & Song,
        2011).
    Fast exact k-means, k-medians and Bregman divergence clustering in 1D (Grønlund et al., 2017),
        section 2.2.
    Quantization distortion in pulse-count modulation with nonuniform spacing of levels (Panter &
        Dite, 1951): all cells of an optimal quantizer have the same error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from qsdm.quant.lanes import LANES, best_of_lanes
from qsdm.quant.rows import exact, extent, fast, half, over_rows

NUM_BINS = 2048
Fit = tuple[np.ndarray, dict[str, np.ndarray]]  # codes and tensors

Scale = tuple[np.float32, np.float32, np.float32]  # what `_bin` needs: c, start, density

_EXACT = 256  # longest row that is solved without bins
# Deviations (0.68 sigma of normal values) at which a bin is four times as wide.
_COMPAND = np.float32(18.0)
_POINTS = 1024  # of the program of a weighted row, at most
# Of the program, about: heavy-tailed rows come within 0.5 % of the optimum.
_NODES = 124
# Deviations^2: (integral of density^(1/3))^3 (Panter & Dite), normal to heavy-tailed values.
_SPREAD = 85.0


def fit_channels(x: np.ndarray, widths: Sequence[int]) -> Iterator[Fit]:
    """Fit a codebook for every row.

    One count of a row's values and one program, for 16 clusters, serve all widths up to 4 bits. The
    fit of a width does not depend on the other widths.

    Args:
        x: float32 [rows, n], finite.
        widths: of a code, 2 to 8, ascending.

    Yields:
        For each width, codes uint8 [rows, n] and the codebook fp16 [rows, 2**bits].
    """
    for _, group in itertools.groupby(widths, lambda bits: max(bits, 4)):
        sizes = np.array([2**bits for bits in group])
        codebooks = np.empty((x.shape[0], sizes.sum()), np.float32)
        over_rows(
            _fit_short if x.shape[1] <= _EXACT else _fit_long,
            x.shape[0],
            x,
            sizes,
            codebooks,
            min_rows=4,
        )
        for codebook in np.split(codebooks, np.cumsum(sizes)[:-1], axis=1):
            yield (
                encode(x, np.ascontiguousarray(codebook)),
                {"codebook": codebook.astype(np.float16)},
            )


def fit_weighted_channels(
    x: np.ndarray, widths: Sequence[int], importance: np.ndarray | None
) -> Iterator[Fit]:
    """Fit a codebook for every row by squared errors that do not count alike.

    Args:
        x: float32 [rows, n], finite.
        widths: of a code, 2 to 8, ascending.
        importance: of each value of a row, positive float32 [n]; None: all are alike.

    Yields:
        As `fit_channels`.
    """
    if importance is None:
        importance = np.ones(x.shape[1], np.float32)
    for bits in widths:
        codebook = np.empty((x.shape[0], 2**bits), np.float32)
        over_rows(_fit_weighted, x.shape[0], x, importance, codebook, min_rows=4)
        yield encode(x, codebook), {"codebook": codebook.astype(np.float16)}


def fit_tensor(
    x: np.ndarray,
    widths: Sequence[int],
    weight: torch.Tensor,
    importance: np.ndarray | None = None,
) -> Iterator[Fit]:
    """Fit one codebook for all rows.

    Args:
        x: float32 [rows, n], finite.
        widths: of a code, 2 to 8.
        weight: the same values in their own type, by which they are counted.
        importance: of each value of a row, positive float32 [n]; None: all are alike.

    Yields:
        For each width, codes uint8 [rows, n] and the codebook fp16 [2**bits].
    """
    values, counts = distinct(x, weight, importance)
    p0, p1 = np.empty(values.size + 1), np.empty(values.size + 1)
    mean = _prefix(values, counts, p0, p1)
    split = np.empty((2 ** max(widths), p0.size), np.uint32)
    optimal(p0, p1, split)
    for bits in widths:
        codebook = np.empty((1, 2**bits), np.float32)
        _means(p0, p1, values.size, split, codebook[0])
        _finish(codebook[0], mean)
        yield encode(x, codebook), {"codebook": codebook[0].astype(np.float16)}


def distinct(
    x: np.ndarray, weight: torch.Tensor, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a weight, and how often they occur or how much they count.

    Args:
        x: float32 [rows, n].
        weight: the same values in their own type; float32 values are rounded to be counted.
        importance: of each value of a row, positive float32 [n]; None: all are alike.

    Returns:
        Values float64 [m], ascending, and their numbers or sums of importance float64 [m], m at
        most 65,536.
    """
    share = None
    if importance is not None:
        share = np.broadcast_to(importance.astype(np.float64), x.shape).reshape(-1)
    if weight.dtype in (torch.float16, torch.bfloat16):
        keys = weight.reshape(-1).view(torch.int16).numpy().view(np.uint16)
        patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(weight.dtype)
        values = patterns.double().numpy()
        if share is None:
            counts = np.zeros(65536, np.int64)
            _count(keys, counts)
        else:
            counts = np.bincount(keys, share, 65536)
        used = np.flatnonzero(counts)
        values, numbers = values[used], counts[used].astype(np.float64)
    else:
        largest = float(np.abs(x).max()) or 1.0
        keys = (x.reshape(-1) * np.float32(32768 / largest)).astype(np.float16).view(np.uint16)
        numbers = np.bincount(keys, share, 65536).astype(np.float64)
        sums = np.bincount(keys, x.reshape(-1) * (1 if share is None else share), 65536)
        used = np.flatnonzero(numbers)
        values, numbers = sums[used] / numbers[used], numbers[used]
    order = np.argsort(values, kind="stable")
    return values[order], numbers[order]


def encode(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Find the nearest entry of a codebook for every value.

    Args:
        x: float32 [rows, n].
        codebook: float32 [rows or 1, K], ascending, K a power of two.

    Returns:
        Its index, uint8 [rows, n].
    """
    codes = np.empty(x.shape, np.uint8)
    over_rows(_encode, x.shape[0], x, codebook, codes, min_rows=64)
    return codes


@exact
def _encode(first: int, last: int, x: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> None:
    K = codebook.shape[1]
    middle = np.empty(K, np.float32)
    for r in range(first, last):
        row = codebook[r if codebook.shape[0] > 1 else 0]
        for k in range(K - 1):
            middle[k] = np.float32(0.5) * (row[k] + row[k + 1])
        if K <= 16:  # comparing with every middle is vectorized, a search is not
            for i in range(x.shape[1]):
                code = np.uint8(0)
                for k in range(K - 1):
                    code += np.uint8(x[r, i] > middle[k])
                codes[r, i] = code
        else:
            for i in range(x.shape[1]):
                index, step = 0, K // 2
                while step > 0:
                    if x[r, i] > middle[index + step - 1]:
                        index += step
                    step //= 2
                codes[r, i] = index


@exact
def _count(keys: np.ndarray, counts: np.ndarray) -> None:
    for i in range(keys.shape[0]):
        counts[keys[i]] += 1


def optimal(p0: np.ndarray, p1: np.ndarray, split: np.ndarray) -> None:
    """Solve the dynamic program: the best clusters of the first i points, for all i and up to K.

    Args:
        p0: prefix sums of counts, float64 [m + 1], strictly ascending from 0.
        p1: prefix sums of values, float64 [m + 1].
        split: uint32 [K, m + 1], to be filled: ``split[k, i]`` begins the last of k + 1 clusters.
    """
    gain, new = _room(p0.size), _room(p0.size)
    sums, values = _room(p0.size), _room(p0.size)
    sums[:], values[:] = p0, p1
    _first_cluster(sums, values, gain, split)
    for k in range(1, split.shape[0]):
        over_rows(
            _next_cluster,
            p0.size,
            sums,
            values,
            gain,
            new,
            0,
            split[k - 1],
            split[k],
            min_rows=4096,
        )
        gain, new = new, gain


@fast
def _room(size: int) -> np.ndarray:
    """An empty float64 [size] that `best_of_lanes` may read, with what lies behind."""
    return np.empty(size + LANES - 1)[:size]


@fast
def _first_cluster(p0: np.ndarray, p1: np.ndarray, gain: np.ndarray, split: np.ndarray) -> None:
    gain[0], split[0, 0] = 0.0, 0
    for i in range(1, p0.shape[0]):
        gain[i], split[0, i] = p1[i] * p1[i] / p0[i], 0


@fast
def _next_cluster(
    first: int,
    last: int,
    p0: np.ndarray,
    p1: np.ndarray,
    gain: np.ndarray,
    new: np.ndarray,
    lowest: int,
    previous: np.ndarray,
    split: np.ndarray,
) -> None:
    """Add a cluster, for the first i = ``first`` ... ``last`` - 1 points.

    The middle i comes first, then the middles of the halves: the best start lies between those of
    the neighbors, and not before that of one cluster less, which is in ``previous``. The gains of
    one cluster less are known from ``lowest`` on. Indices are unsigned, because for others numba
    checks whether they count from the end.
    """
    step = 1
    while 2 * step <= last - first:
        step *= 2
    while step > 0:
        for at in range(first + step - 1, last, 2 * step):
            i = np.uint32(at)
            left, right = max(previous[i], np.uint32(lowest)), i
            if at - step >= first:
                left = max(left, split[np.uint32(at - step)])
            if at + step < last:
                right = max(left, split[np.uint32(at + step)])  # equal except for ties
            best, chosen = -1.0, left
            end = np.uint64(min(right + np.uint32(1), i))
            for j in range(np.uint64(left), end, np.uint64(LANES)):
                value, start = best_of_lanes(p0, p1, gain, j, i, end)
                if value > best:
                    best, chosen = value, np.uint32(start)
            if right == i and gain[i] > best:  # an empty cluster
                best, chosen = gain[i], i
            new[i], split[i] = best, chosen
        step //= 2


@fast
def _means(p0: np.ndarray, p1: np.ndarray, m: int, split: np.ndarray, out: np.ndarray) -> None:
    """Follow the splits back to the means of K clusters; an empty one takes a neighbor's mean."""
    K = out.shape[0]
    i = np.uint32(m)
    filled = False
    for k in range(K - 1, -1, -1):
        j = split[k, i]
        if p0[i] - p0[j] > 0:
            out[k] = (p1[i] - p1[j]) / (p0[i] - p0[j])
            if not filled:
                for q in range(k + 1, K):
                    out[q] = out[k]
            filled = True
        elif filled:
            out[k] = out[k + 1]
        i = j


@exact
def _finish(codebook: np.ndarray, mean: float | np.float32) -> None:
    """Add ``mean`` to the entries, sort them and round them to fp16, in place."""
    codebook.sort()
    for k in range(codebook.shape[0]):
        codebook[k] = half(codebook[k] + mean)


@fast
def _prefix(values: np.ndarray, counts: np.ndarray, p0: np.ndarray, p1: np.ndarray) -> float:
    """Fill in the prefix sums of counts and of values - mean, float64 [m + 1]; return the mean.

    Without the mean, gains would differ only in their last digits.
    """
    m = values.shape[0]
    mean = 0.0
    p0[0], p1[0] = 0.0, 0.0
    for i in range(m):
        p0[i + 1] = p0[i] + counts[i]
        mean += counts[i] * values[i]
    mean /= float(p0[m])
    for i in range(m):
        p1[i + 1] = p1[i] + counts[i] * (values[i] - mean)
    return mean


@fast
def _solve(
    p0: np.ndarray, p1: np.ndarray, gain: np.ndarray, new: np.ndarray, split: np.ndarray
) -> None:
    """`optimal` on one thread, valid only on the paths back from m for up to K / 2 clusters and K.

    The last c of K clusters begin no earlier than the last c of K / 2, so that these bound the
    search.
    """
    m, K = p0.shape[0] - 1, split.shape[0]
    bound = np.zeros(K + 1, np.int64)  # the first c of K clusters end no earlier
    _first_cluster(p0, p1, gain, split)
    for k in range(1, K):
        if k == K // 2:
            i = np.uint32(m)
            for c in range(k - 1, 0, -1):
                i = split[c, i]
                bound[c + K - k] = i
        first = m if k == K - 1 else bound[k + 1]
        _next_cluster(first, m + 1, p0, p1, gain, new, bound[k], split[k - 1], split[k])
        gain, new = new, gain


@fast
def _fit_short(first: int, last: int, x: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
    n = x.shape[1]
    p0, p1, gain, new = _room(n + 1), _room(n + 1), _room(n + 1), _room(n + 1)
    split = np.empty((max(16, sizes[-1]), n + 1), np.uint32)
    ones = np.ones(n, np.float32)
    for r in range(first, last):
        mean = _prefix(np.sort(x[r]), ones, p0, p1)
        _solve(p0, p1, gain, new, split)
        begin = 0
        for size in sizes:
            centers = out[r, begin : begin + size]
            _means(p0, p1, n, split, centers)
            _finish(centers, mean)
            begin += size


@fast
def _fit_weighted(
    first: int, last: int, x: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> None:
    """The program over at most `_POINTS` runs of sorted values, then Lloyd's iteration over all.

    The outer quarters of the points are single values, as cells are wide at the tails.
    """
    n, K = x.shape[1], out.shape[1]
    tail = _POINTS // 4
    run = 1 if n <= _POINTS else -(-(n - 2 * tail) // (2 * tail))
    m = n if run == 1 else 2 * tail - (-(n - 2 * tail) // run)
    q0, q1 = np.empty(n + 1), np.empty(n + 1)
    p0, p1, gain, new = _room(m + 1), _room(m + 1), _room(m + 1), _room(m + 1)
    split = np.empty((K, m + 1), np.uint32)
    for r in range(first, last):
        order = np.argsort(x[r])
        values = x[r][order]
        mean = _prefix(values, importance[order], q0, q1)
        p0[0], p1[0] = 0.0, 0.0
        end = 0
        for i in range(1, m + 1):
            is_single = run == 1 or i <= tail or i > m - tail
            end = min(end + (1 if is_single else run), n - tail if i == m - tail else n)
            p0[i], p1[i] = q0[end], q1[end]
        _solve(p0, p1, gain, new, split)
        centers = out[r]
        _means(p0, p1, m, split, centers)
        for _ in range(60):
            begin, change = 0, 0.0
            for k in range(K):
                end = n
                if k < K - 1:
                    middle = np.float64(0.5) * (centers[k] + centers[k + 1]) + mean
                    end = max(begin, np.searchsorted(values, middle))
                if q0[end] > q0[begin]:
                    center = np.float32((q1[end] - q1[begin]) / (q0[end] - q0[begin]))
                    change = max(change, abs(center - centers[k]))
                    centers[k] = center
                begin = end
            if change <= 1e-6 * abs(values[n - 1] - values[0]):
                break
        _finish(centers, mean)


@fast
def _fit_long(first: int, last: int, x: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
    n, K = x.shape[1], max(16, sizes[-1])
    num_nodes = max(_NODES, 3 * K)
    capacity = 2 * num_nodes + 1
    p0, p1, gain, new = _room(capacity), _room(capacity), _room(capacity), _room(capacity)
    split = np.empty((K, capacity), np.uint32)
    index, bins = np.empty(n, np.uint32), np.empty((NUM_BINS, 2), np.float32)
    edges = np.empty(NUM_BINS + 1, np.float32)
    s0, s1 = np.zeros(NUM_BINS + 2, np.float32), np.zeros(NUM_BINS + 2, np.float32)
    for r in range(first, last):
        low, high = extent(x[r])
        if low == high:
            out[r, :] = low
            _finish(out[r], np.float32(0.0))
            continue
        mean, scale = _count_row(x[r], low, high, index, bins, s0, s1)
        m = _place_nodes(s0, s1, scale, num_nodes, edges, p0, p1)
        _solve(p0[: m + 1], p1[: m + 1], gain, new, split)
        begin = 0
        for size in sizes:
            centers = out[r, begin : begin + size]
            _means(p0, p1, m, split, centers)
            _lloyd(centers, s0, s1, scale)
            _finish(centers, mean)
            begin += size


@fast
def _count_row(
    row: np.ndarray,
    low: np.float32,
    high: np.float32,
    index: np.ndarray,
    bins: np.ndarray,
    s0: np.ndarray,
    s1: np.ndarray,
) -> tuple[np.float32, Scale]:
    """Fill in the prefix sums, over bins, of counts and of values - mean; return mean and scale."""
    n = row.shape[0]
    mean, deviation = _middle(row)
    c = max(_COMPAND * deviation, np.float32(1e-6) * (high - low))
    start = (low - mean) / (abs(low - mean) + c)
    density = np.float32(NUM_BINS - 0.01) / ((high - mean) / (abs(high - mean) + c) - start)
    for i in range(n):
        position = np.int32(_bin(row[i] - mean, c, start, density))
        index[i] = np.uint32(min(max(position, 0), NUM_BINS - 1))  # type: ignore[arg-type]
    bins[:] = 0
    for i in range(n):
        bins[index[i], 0] += np.float32(1.0)
        bins[index[i], 1] += row[i] - mean
    count, total = np.float32(0.0), np.float32(0.0)
    for b in range(NUM_BINS):
        count, total = count + bins[b, 0], total + bins[b, 1]
        s0[b + 1], s1[b + 1] = count, total
    s0[NUM_BINS + 1], s1[NUM_BINS + 1] = count, total
    return mean, (c, start, density)


@fast
def _bin(y: np.float32, c: np.float32, start: np.float32, density: np.float32) -> np.float32:
    """The position of a value among the bins, as a real number."""
    return (y / (abs(y) + c) - start) * density


@fast
def _place_nodes(
    s0: np.ndarray,
    s1: np.ndarray,
    scale: Scale,
    num_nodes: int,
    edges: np.ndarray,
    p0: np.ndarray,
    p1: np.ndarray,
) -> int:
    """Choose about ``num_nodes`` edges of bins at which clusters may end, with their prefix sums.

    Returns:
        The number of edges - 1.
    """
    c, start, density = scale
    for b in range(NUM_BINS + 1):
        u = start + np.float32(b) / density
        edges[b] = c * u / (np.float32(1.0) - abs(u))
    deviation, target = c / _COMPAND, np.float32(num_nodes)
    tolerance = np.float32(_SPREAD) * s0[NUM_BINS] * deviation * deviation / target**3
    for _ in range(4):
        m = _nodes(s0, s1, edges, tolerance, p0, p1)
        if np.float32(0.88) * target <= m <= np.float32(1.2) * target:
            break
        tolerance *= min(np.float32(m) / target, np.float32(2.0)) ** 3
    return m


@fast
def _nodes(
    s0: np.ndarray,
    s1: np.ndarray,
    edges: np.ndarray,
    tolerance: np.float32,
    p0: np.ndarray,
    p1: np.ndarray,
) -> int:
    """As `_place_nodes`, for cells as wide as count * width^2 <= ``tolerance`` allows.

    Values that lie far apart get cells of their own. Once p0 is full, the last cell takes the rest.
    """
    m, begin = 0, 0
    p0[0], p1[0] = 0.0, 0.0
    for b in range(1, NUM_BINS):
        width = edges[b + 1] - edges[begin]
        if (s0[b + 1] - s0[begin]) * width * width > tolerance:
            if s0[b] > p0[m]:
                m = min(m + 1, p0.shape[0] - 2)
                p0[m], p1[m] = s0[b], s1[b]
            begin = b
    p0[m + 1], p1[m + 1] = s0[NUM_BINS], s1[NUM_BINS]
    return m + 1


@fast
def _middle(row: np.ndarray) -> tuple[np.float32, np.float32]:
    """The median of nine parts' means, and d about it: both robust to a few outliers."""
    n = row.shape[0]
    parts = np.empty(9, np.float32)
    for k in range(9):
        part = row[k * n // 9 : (k + 1) * n // 9]
        total = np.float32(0.0)
        for i in range(part.shape[0]):
            total += part[i]
        parts[k] = total / np.float32(part.shape[0])
    mean, root = np.sort(parts)[4], np.float32(0.0)
    for i in range(n):
        root += np.sqrt(abs(row[i] - mean))
    return mean, (root / np.float32(n)) ** 2


@fast
def _lloyd(centers: np.ndarray, s0: np.ndarray, s1: np.ndarray, scale: Scale) -> None:
    """Lloyd's iteration on prefix sums of bins, in place; within a bin, values count as even."""
    c, start, density = scale
    K = centers.shape[0]
    below0, below1 = np.zeros(K + 1, np.float32), np.zeros(K + 1, np.float32)
    below0[K], below1[K] = s0[NUM_BINS], s1[NUM_BINS]
    for _ in range(60):
        for k in range(1, K):
            y = np.float32(0.5) * (centers[k - 1] + centers[k])
            at = min(max(_bin(y, c, start, density), np.float32(0.0)), np.float32(NUM_BINS))
            b = np.int32(at)
            part = at - np.float32(b)
            below0[k] = s0[b] + part * (s0[b + 1] - s0[b])
            below1[k] = s1[b] + part * (s1[b + 1] - s1[b])
        change = np.float32(0.0)
        for k in range(K):
            count = below0[k + 1] - below0[k]
            if count > np.float32(1e-3):
                value = (below1[k + 1] - below1[k]) / count
                change = max(change, abs(value - centers[k]))
                centers[k] = value
        if change < np.float32(1e-5) * c:
            break
