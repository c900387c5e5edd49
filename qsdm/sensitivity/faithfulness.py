"""Faithfulness metrics for attributions.

``additive_srcc``
    Rank correlation of measured labels with minus the sum of the configuration's scores. The
    predictor was trained on these labels, so this compares scores; it is not a test of accuracy.
``deletion``
    Weights are restored to full precision one by one, the most harmful first. The metric is the
    mean share of the total harm that is undone along the way, minus that of a random order; larger
    is better.
``agreement``
    Rank correlation, over weights, with the predicted harm of quantizing each weight alone.
``interventions``
    Linear correlation, over weights, with the measured harm of quantizing each weight alone
    (``measure alone=METHOD``). It is linear because most weights do less harm than the noise.
``interventions_srcc``
    The rank correlation of the same harms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qsdm.predictor import Predictor
from qsdm.predictor.scores import srcc
from qsdm.qconfig import QuantMethod
from qsdm.sensitivity import Sensitivity


def additive_srcc(sensitivity: Sensitivity, columns: np.ndarray, labels: np.ndarray) -> float:
    """Compute the rank correlation of labels with minus the sum of scores.

    Args:
        sensitivity: scores of W weights under M methods.
        columns: int64 [B, W], column of each decision's method.
        labels: float64 [B], larger is better.

    Returns:
        In [-1, 1].
    """
    scores = np.where(np.isnan(sensitivity.scores), 0, sensitivity.scores)
    return srcc(-scores[np.arange(columns.shape[1]), columns].sum(axis=1), labels)


def interventions(
    sensitivity: Sensitivity, measured: Mapping[tuple[str, QuantMethod], float]
) -> dict[str, float]:
    """Correlate scores with the measured harm of weights that were quantized alone.

    Args:
        sensitivity: scores of weights under methods.
        measured: harm by weight and method.

    Returns:
        ``interventions`` and ``interventions_srcc``, over the weights that have a score; empty for
        fewer than three of them, or if all scores or all harms are equal.
    """
    pairs = [
        (sensitivity.score(weight, method), harm) for (weight, method), harm in measured.items()
    ]
    both = [pair for pair in pairs if pair[0] is not None]
    scores, harms = np.array(both, dtype=np.float64).reshape(-1, 2).T
    if len(both) < 3 or scores.std() == 0 or harms.std() == 0:
        return {}
    return {
        "interventions": float(np.corrcoef(scores, harms)[0, 1]),
        "interventions_srcc": srcc(scores, harms),
    }


def deletion(
    predictor: Predictor,
    genes: np.ndarray,
    per_weight: np.ndarray,
    rng: np.random.Generator,
    steps: int = 16,
) -> float:
    """Compute how much faster harm is undone in the order of the scores than in a random order.

    Args:
        predictor: trained on the space of the genes.
        genes: int64 [W], one configuration.
        per_weight: float64 [W], harm of each weight in it.
        rng: source of the random orders.
        steps: number of points along the way.

    Returns:
        Mean share of the total harm that is undone along the way, minus that of random orders.
    """
    start = predictor.encoding.columns_of(genes[None])[0]
    counts = np.unique(np.linspace(0, len(genes), steps + 1).astype(int))

    def undone(order: np.ndarray) -> float:
        path = np.repeat(start[None], len(counts), axis=0)
        for row, count in zip(path, counts, strict=True):
            row[order[:count]] = len(predictor.encoding.methods)  # full precision
        values = predictor.at(path).mean(axis=0)
        return float(
            np.trapezoid((values - values[0]) / (values[-1] - values[0]), counts / counts[-1])
        )

    chance = np.mean([undone(rng.permutation(len(genes))) for _ in range(4)])
    return undone(np.argsort(-per_weight)) - float(chance)
