"""Which configurations to measure next: those that promise the largest gain of hypervolume.

The size of a configuration is known and its quality q is normal, with the predictor's mean and
deviation. What it adds to the hypervolume of the measured front is the integral, over all sizes
from its own on, of how far q lies above the best that was measured up to this size. So the expected
gain is closed: the sum over the front's steps of width × expected improvement on the step.

A batch is chosen one by one, as if each chosen configuration had measured what was predicted of it
(the *Kriging believer*): that raises the front, and makes the predictor surer of all that resembles
it.

References:
    Efficient Global Optimization of Expensive Black-Box Functions (Jones et al., 1998), Eq. 15:
    expected improvement.

    Single- and Multiobjective Evolutionary Optimization Assisted by Gaussian Random Field
    Metamodels (Emmerich et al., 2006), section IV: expected improvement of the hypervolume.

    Kriging Is Well-Suited to Parallelize Optimization (Ginsbourger et al., 2010), section 4.2: the
    Kriging believer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from qsdm.strategies.front import hypervolume

MOST = 500  # candidates of the largest gains, among which a batch is chosen
NEAR = 20  # configurations that differ in fewer than one weight in so many are near copies


class Believer(Protocol):
    """A predictor that can pretend."""

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Genes, int64 [B, W] => mean and standard deviation of the quality, float64 [B] each."""

    def believing(self, genes: np.ndarray) -> Believer:
        """As if these configurations had measured what is predicted of them."""


@dataclass(frozen=True, slots=True)
class Region:
    """The sizes that matter, and the quality below which nothing counts.

    Attributes:
        low_bytes: smaller configurations count as if they were of this size.
        high_bytes: configurations of this size or more do not count.
        worst: quality of the reference point.

    Raises:
        ValueError: it is empty.
    """

    low_bytes: float
    high_bytes: float
    worst: float

    def __post_init__(self) -> None:
        if not self.low_bytes < self.high_bytes:
            raise ValueError(
                f"wanted sizes from low to high (got {self.low_bytes} to {self.high_bytes} bytes)"
            )

    @staticmethod
    def of(size: np.ndarray, quality: np.ndarray, max_bytes: float | None = None) -> Region:
        """Choose the region by what was measured.

        Args:
            size: float64 [B], bytes; B is positive.
            quality: float64 [B].
            max_bytes: only the best configuration of at most this size matters; None for the whole
                front.

        Returns:
            The region. Of a single size it is one byte wide.
        """
        worst = float(quality.min())
        if max_bytes is not None:
            return Region(float(max_bytes), float(max_bytes) + 1, worst)
        return Region(float(size.min()), float(size.max()) + 1, worst)

    def volume(self, size: np.ndarray, quality: np.ndarray) -> float:
        """Compute the mean height of a front above the worst quality.

        Args:
            size: float64 [B], bytes.
            quality: float64 [B].

        Returns:
            Hypervolume ÷ width of the region, in units of quality.
        """
        values = np.stack([-quality, np.maximum(size, self.low_bytes)], axis=1)
        reference = np.array([-self.worst, self.high_bytes])
        inside = (values < reference).all(axis=1)
        if not inside.any():
            return 0.0
        return hypervolume(values[inside], reference) / (self.high_bytes - self.low_bytes)

    def steps(self, size: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """List the steps of a front.

        Args:
            size: float64 [B], bytes.
            quality: float64 [B].

        Returns:
            Sizes at which the K steps begin and the last one ends, float64 [K + 1], and the best
            quality up to each, float64 [K].
        """
        inside = size < self.high_bytes
        starts = np.maximum(size[inside], self.low_bytes)
        edges = np.unique(np.append(starts, self.low_bytes))
        best = np.full(len(edges), self.worst)
        np.maximum.at(best, np.searchsorted(edges, starts), quality[inside])
        return np.append(edges, self.high_bytes), np.maximum.accumulate(best)


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Compute how far a normal value is expected to lie above the best one; 0 where it lies below.

    Args:
        mean: float64 [...].
        deviation: float64 [...], not negative.
        best: float64 [...].

    Returns:
        Float64 [...].
    """
    above = mean - best
    scale = np.where(deviation > 0, deviation, 1.0)
    z = above / scale
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.where(deviation > 0, above * ndtr(z) + scale * density, np.maximum(above, 0))


def expected_gain(
    region: Region,
    front: tuple[np.ndarray, np.ndarray],
    size: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> np.ndarray:
    """Compute the expected gain of `Region.volume` by measuring each configuration.

    Args:
        region: the sizes that matter.
        front: steps of what was measured, see `Region.steps`.
        size: float64 [B], bytes.
        mean: float64 [B], predicted quality.
        deviation: float64 [B], its standard deviation.

    Returns:
        Float64 [B], not negative.
    """
    edges, best = front
    width = np.maximum(edges[1:] - np.maximum(edges[:-1], size[:, None]), 0)
    gain = expected_improvement(mean[:, None], deviation[:, None], best)
    return (width * gain).sum(axis=1) / (region.high_bytes - region.low_bytes)


def choose_batch(
    predict: Believer,
    genes: np.ndarray,
    size: np.ndarray,
    region: Region,
    measured: tuple[np.ndarray, np.ndarray],
    num: int,
) -> list[int]:
    """Choose configurations to measure.

    Near copies of a chosen one are taken only where nothing else is left.

    Args:
        predict: the predictor.
        genes: int64 [B, W], candidates, none of which was measured.
        size: float64 [B], their bytes.
        region: the sizes that matter.
        measured: sizes and qualities of what was measured, float64 [M] each.
        num: how many.

    Returns:
        Indices of at most ``num`` candidates that promise a gain, in the order of their choice.
    """
    chosen: list[int] = []
    sizes, qualities = measured
    mean, deviation = predict(genes) if len(genes) else (np.zeros(0), np.zeros(0))
    gain = expected_gain(region, region.steps(sizes, qualities), size, mean, deviation)
    rows = np.argsort(-gain, kind="stable")[:MOST]
    rows = rows[gain[rows] > 0]
    open_ = np.ones(len(rows), dtype=bool)
    distinct = np.ones(len(rows), dtype=bool)
    while len(chosen) < min(num, len(rows)):
        if chosen:
            mean[rows], deviation[rows] = predict(genes[rows])
        front = region.steps(sizes, qualities)
        gain = expected_gain(region, front, size[rows], mean[rows], deviation[rows])
        among = open_ & distinct if (open_ & distinct).any() else open_
        best = int(np.argmax(np.where(among, gain, -1.0)))
        row = int(rows[best])
        chosen.append(row)
        open_[best] = False
        distinct &= NEAR * (genes[rows] != genes[row]).sum(axis=1) >= genes.shape[1]
        sizes, qualities = np.append(sizes, size[row]), np.append(qualities, mean[row])
        predict = predict.believing(genes[row][None])
    return chosen
