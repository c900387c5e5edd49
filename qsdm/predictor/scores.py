"""Quality of a ranking: Spearman's rank correlation, NDCG@10, and the noise ceiling."""

from __future__ import annotations

import numpy as np

from qsdm.store.schemas import Noise

NDCG_AT = 10
RELEVANCE = 50.0  # Qua²SeDiMo's code: r = 50 clip((y - q20) / (max - q20), 0, 1)


def srcc(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Compute Spearman's rank correlation coefficient.

    Args:
        predicted: [B].
        measured: [B].

    Returns:
        In [-1, 1]; 0 if either is constant.
    """
    from scipy.stats import rankdata

    a, b = rankdata(predicted), rankdata(measured)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def relevance(
    labels: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Compute the gain of each configuration: 0 for the worst fifth, 50 for the best.

    Args:
        labels: [B], larger is better.
        low: label with gain 0; by default the 20 % quantile of ``labels``.
        high: label with gain 50; by default the maximum of ``labels``.

    Returns:
        Float64 [B], in [0, 50].
    """
    low = float(np.quantile(labels, 0.2)) if low is None else low
    high = float(np.max(labels)) if high is None else high
    return RELEVANCE * np.clip((labels - low) / max(high - low, 1e-12), 0, 1)


def ndcg(predicted: np.ndarray, measured: np.ndarray, at: int = NDCG_AT) -> float:
    """Compute the normalized discounted cumulative gain, with the linear gains of `relevance`.

    Args:
        predicted: [B].
        measured: [B], larger is better.
        at: number of configurations with the best predictions that count.

    Returns:
        In [0, 1]; 0 if all labels are equal.
    """
    gains = relevance(np.asarray(measured))
    discount = 1 / np.log2(np.arange(2, min(at, len(gains)) + 2))
    order = np.argsort(-np.asarray(predicted), kind="stable")
    gain = gains[order][: len(discount)] @ discount
    best = np.sort(gains)[::-1][: len(discount)] @ discount
    return float(gain / best) if best > 0 else 0.0


def noise_ceiling(halves: np.ndarray) -> Noise:
    """Estimate the rank correlation that noisy labels allow, from labels of halves of the pictures.

    Args:
        halves: float64 [S, 2, B], S ways to halve the pictures, the same for all B configurations.

    Returns:
        A dictionary with

        - ``halves``: rank correlation r between the halves, mean over the ways,
        - ``halves_low`` and ``halves_high``: its 2.5 % and 97.5 % quantiles over the ways,
        - ``reliability``: of the whole label by the Spearman-Brown formula, 2 r / (1 + r),
        - ``ceiling``: the square root of the reliability, which a perfect predictor of the true
          value would reach.
    """
    correlations = np.array([max(srcc(first, second), 0.0) for first, second in halves])
    r = float(correlations.mean())
    low, high = np.quantile(correlations, [0.025, 0.975])
    reliability = 2 * r / (1 + r)
    return {
        "halves": r,
        "halves_low": float(low),
        "halves_high": float(high),
        "reliability": reliability,
        "ceiling": reliability**0.5,
    }
