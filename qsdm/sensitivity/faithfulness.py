"""Whether scores say the truth.

additive_srcc   rank correlation of measured labels with minus the sum of the configuration's scores; these are labels
                that the predictor has learned from, so this tells scores apart and says nothing of its accuracy
deletion        full precision is given to one weight after the other, the most harmful first: the mean share of the
                total harm that is undone along the way, minus the same for a random order; larger is better
agreement       rank correlation over weights with the harm of quantizing each weight alone, as the predictor sees it
interventions   linear correlation over weights with the harm that was measured on the denoiser itself, each weight
                quantized alone (``measure alone=METHOD``); linear, since most of them do less harm than the noise
interventions_srcc    the same of ranks
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qsdm.predictor import Predictor
from qsdm.predictor.scores import srcc
from qsdm.qconfig import QuantMethod
from qsdm.sensitivity import Sensitivity


def additive_srcc(sensitivity: Sensitivity, columns: np.ndarray, labels: np.ndarray) -> float:
    """Rank correlation of labels with minus the sum of scores.

    Args:
        columns: int64 [B, W], the method's column of each decision.
        labels: [B], larger is better.
    """
    scores = np.where(np.isnan(sensitivity.scores), 0, sensitivity.scores)
    return srcc(-scores[np.arange(columns.shape[1]), columns].sum(axis=1), labels)


def interventions(
    sensitivity: Sensitivity, measured: Mapping[tuple[str, QuantMethod], float]
) -> dict[str, float]:
    """Correlations of scores with measured harm, over the weights that were quantized alone and have a score; none for
    fewer than three.

    Args:
        measured: harm by weight and method.
    """
    pairs = [
        (sensitivity.score(weight, method), harm) for (weight, method), harm in measured.items()
    ]
    known = np.array([pair for pair in pairs if pair[0] is not None], dtype=np.float64).reshape(
        -1, 2
    )
    scores, harms = known.T
    if len(known) < 3 or scores.std() == 0 or harms.std() == 0:
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
    """Mean share of the harm undone by the scores' order, over that of a random order.

    Args:
        genes: int64 [W], one configuration.
        per_weight: harm of each weight in it, [W].
        steps: points along the way.
    """
    import torch

    encoding = predictor.encoding
    start, full = encoding.one_hot(genes[None])[0], encoding.full_precision()[0]
    counts = np.unique(np.linspace(0, len(genes), steps + 1).astype(int))

    def undone(order: np.ndarray) -> float:
        path = np.repeat(start[None], len(counts), axis=0)
        for row, count in zip(path, counts, strict=True):
            row[order[:count]] = full[order[:count]]
        with torch.no_grad():
            values = predictor.by_fold(torch.from_numpy(path)).mean(dim=0).double().numpy()
        return float(
            np.trapezoid((values - values[0]) / (values[-1] - values[0]), counts / counts[-1])
        )

    chance = np.mean([undone(rng.permutation(len(genes))) for _ in range(4)])
    return undone(np.argsort(-per_weight)) - float(chance)
