"""What a trained predictor says of a recipe that was made elsewhere, and of changes to it.

A predictor knows the methods of its space. Another method stands between full precision and the
method of the space that is nearest to it in bits: a mixture of both, in which the nearest has the
share that the weight's error has, at a factor of 4 per bit. A method of fewer bits than any of the
space counts as the smallest of the space, which favors the recipe.

A difference's deviation is what the predictor is unsure of: that of the closed model's posterior,
and of the folds. The noise of measuring is not in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from qsdm.predictor import Predictor
from qsdm.predictor.encode import Encoding, errors
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.cost import MethodTable

CHUNK = 32  # configurations at a time


@dataclass(frozen=True, slots=True, eq=False)
class StandIns:
    """How a predictor sees any method of any weight.

    Attributes:
        encoding: of the space that the predictor knows.
        error: float64 [W, M], relative squared errors of the space's methods; NaN where one is not
            on offer.
    """

    encoding: Encoding
    error: np.ndarray

    @staticmethod
    def of(encoding: Encoding, table: MethodTable) -> StandIns:
        """Look up the errors of a space.

        Args:
            encoding: of the space.
            table: errors of its weights.
        """
        return StandIns(encoding, errors(encoding.space, table))

    def row(self, weight: int, method: QuantMethod | None) -> tuple[np.ndarray, str]:
        """Describe a weight under a method.

        Args:
            weight: its index.
            method: any; None for full precision.

        Returns:
            Shares of the space's methods and of full precision, float64 [M + 1], which add up to 1;
            and a sentence about a method that the space does not offer, else an empty one.
        """
        methods = self.encoding.methods
        row = np.zeros(len(methods) + 1)
        if method is None or method.is_full:
            row[-1] = 1
            return row, ""
        offered = self.encoding.space.options[weight]
        low = [one for one in offered if not one.is_full]
        if method in offered or not low:
            row[methods.index(method) if method in offered else -1] = 1
            return row, ""
        column = {one: methods.index(one) for one in low}
        near = min(
            low,
            key=lambda one: (
                abs(one.bits - method.bits),
                one.name.split("_")[0] != method.name.split("_")[0],
                self.error[weight, column[one]],
            ),
        )
        share = min(1.0, 4.0 ** (near.bits - method.bits))
        row[column[near]], row[-1] = share, 1 - share
        if share < 1:
            return row, f"{method} is scored as {share:.2g} of the harm of {near}"
        favor = ", which favors the recipe" if method.bits < near.bits else ""
        return row, f"{method} is scored as {near}{favor}"

    def rows(self, qconfig: QuantConfig) -> tuple[np.ndarray, Counter[str]]:
        """Describe a configuration.

        Args:
            qconfig: methods by weight; a weight without one has full precision.

        Returns:
            Float32 [W, M + 1], and how many weights each sentence is about.
        """
        counts: Counter[str] = Counter()
        rows = []
        for i, weight in enumerate(self.encoding.space.graph.weights):
            row, sentence = self.row(i, qconfig.decisions.get(weight.name))
            rows.append(row)
            counts[sentence] += bool(sentence)
        return np.array(rows, dtype=np.float32), +counts


def predict(predictor: Predictor, configurations: np.ndarray) -> np.ndarray:
    """Predict relaxed configurations with each fold.

    Args:
        predictor: a trained one.
        configurations: float32 [B, W, M + 1].

    Returns:
        Float64 [folds, B].
    """
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(configurations), CHUNK):
            part = torch.from_numpy(configurations[start : start + CHUNK].astype(np.float32))
            parts.append(predictor.by_fold(part).double().numpy())
    return np.concatenate(parts, axis=1)


def differences(
    predictor: Predictor, base: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict how much better configurations are than another one.

    Args:
        predictor: a trained one.
        base: float32 [W, M + 1].
        others: float32 [B, W, M + 1].

    Returns:
        Predicted differences of the objective, positive if better, and their standard deviations,
        float64 [B] each.
    """
    everything = np.concatenate([base[None], others])
    values = predict(predictor, everything)
    gains = values[:, 1:] - values[:, :1]
    variance = gains.var(axis=0)
    if predictor.posterior is not None:
        covariance = predictor.posterior.covariance(everything, everything)
        own = np.diag(covariance)
        variance = variance + np.maximum(own[1:] + own[0] - 2 * covariance[0, 1:], 0)
    return gains.mean(axis=0), np.sqrt(variance)


def changed(base: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the weights in which two configurations differ.

    Args:
        base: float32 [W, M + 1].
        target: float32 [W, M + 1].

    Returns:
        Their indices, int64 [K].
    """
    return np.flatnonzero((np.abs(base - target) > 1e-6).any(axis=1))


def single_changes(base: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Take over one weight's method at a time.

    Args:
        base: float32 [W, M + 1].
        target: float32 [W, M + 1].
        weights: int64 [K], indices.

    Returns:
        Float32 [K, W, M + 1].
    """
    rows = np.repeat(base[None], len(weights), axis=0)
    rows[np.arange(len(weights)), weights] = target[weights]
    return rows
