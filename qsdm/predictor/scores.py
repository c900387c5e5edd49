"""How good a ranking is: Spearman's rank correlation, NDCG@10, and the ceiling that the labels' own noise sets."""

from __future__ import annotations

import numpy as np

NDCG_AT = 10
RELEVANCE = 50.0  # Qua²SeDiMo's release: r = 50 clip((y - q20) / (max - q20), 0, 1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 upwards, ties share their mean."""
    _, inverse, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    last = counts.cumsum()
    return ((last - 1 + last - counts) / 2)[inverse]


def srcc(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation; 0 if either is constant."""
    a, b = ranks(predicted), ranks(measured)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def relevance(
    labels: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Gain of each configuration: 0 for the worst fifth, 50 for the best.

    Args:
        low, high: the labels with gain 0 and 50; their own 20 % quantile and maximum if not given.
    """
    low = float(np.quantile(labels, 0.2)) if low is None else low
    high = float(np.max(labels)) if high is None else high
    return RELEVANCE * np.clip((labels - low) / max(high - low, 1e-12), 0, 1)


def ndcg(predicted: np.ndarray, measured: np.ndarray, at: int = NDCG_AT) -> float:
    """Normalised discounted cumulative gain of the ``at`` best by prediction, with the linear gains of `relevance`."""
    gains = relevance(np.asarray(measured))
    discount = 1 / np.log2(np.arange(2, min(at, len(gains)) + 2))
    found = gains[np.argsort(-np.asarray(predicted), kind="stable")][: len(discount)] @ discount
    best = np.sort(gains)[::-1][: len(discount)] @ discount
    return float(found / best) if best > 0 else 0.0


def noise_ceiling(halves: np.ndarray) -> dict[str, float]:
    """What the labels' noise allows, from the labels of two halves of the pictures.

    Args:
        halves: float64 [S, 2, B]: S ways to halve the pictures, the same for all B configurations.

    Returns:
        halves: rank correlation between the halves, mean over the ways; halves_low, halves_high: their 2.5 % and 97.5 %
        quantiles; reliability: of the whole label by Spearman and Brown, 2 r / (1 + r); ceiling: its square root, what
        a perfect predictor of the true value would reach.
    """
    found = np.array([max(srcc(first, second), 0.0) for first, second in halves])
    r = float(found.mean())
    low, high = np.quantile(found, [0.025, 0.975])
    reliability = 2 * r / (1 + r)
    return {
        "halves": r,
        "halves_low": float(low),
        "halves_high": float(high),
        "reliability": reliability,
        "ceiling": reliability**0.5,
    }
