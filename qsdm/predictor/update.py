"""A trained predictor that has seen some more outcomes, without being trained again.

The predictor's mean m and the covariance k of its posterior are a Gaussian process, which outcomes
y of configurations R condition:

    mean(c) = m(c) + k(c, R) (k(R, R) + noise)^-1 (y - m(R))

Outcomes that a search has proposed enter here and nowhere else. Folds, and with them all held-out
scores, know random configurations alone: near copies among proposals would flatter the scores.

References:
    Gaussian Processes for Machine Learning (Rasmussen & Williams, 2006), section 2.2, Eq. 2.23 and
    2.24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from qsdm.predictor.encode import Encoding
from qsdm.predictor.posterior import Posterior

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genes, int64 [B, W] => mean and standard deviation, float64 [B] each."""


@dataclass(slots=True, eq=False)
class Remembered:
    """A predictor that predicts each configuration once.

    Attributes:
        predict: predicts new configurations.
    """

    predict: Predict
    _values: dict[bytes, tuple[float, float]] = field(default_factory=dict, repr=False)

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict configurations.

        Args:
            genes: int64 [B, W].

        Returns:
            Mean and standard deviation, float64 [B] each.
        """
        keys = [row.tobytes() for row in np.ascontiguousarray(genes, dtype=np.int64)]
        new = list({key: i for i, key in enumerate(keys) if key not in self._values}.values())
        if new:
            for i, *pair in zip(new, *self.predict(genes[new]), strict=True):
                self._values[keys[i]] = (float(pair[0]), float(pair[1]))
        values = np.array([self._values[key] for key in keys]).reshape(-1, 2)
        return values[:, 0], values[:, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Updated:
    """The predictor and the outcomes that condition it.

    Attributes:
        predict: of the trained predictor.
        encoding: of the space.
        posterior: of the trained predictor.
        genes: int64 [R, W], distinct configurations of the outcomes; R may be 0.
        residuals: float64 [R], outcomes minus what was predicted.
    """

    predict: Predict
    encoding: Encoding
    posterior: Posterior
    genes: np.ndarray
    residuals: np.ndarray
    _inverse: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        hot = self.encoding.one_hot(self.genes)
        within = self.posterior.covariance(hot, hot)
        within[np.diag_indices(len(hot))] += self.posterior.noise_variance(hot)
        factor = cho_factor(within, lower=True) if len(hot) else None
        inverse = within if factor is None else cho_solve(factor, np.eye(len(hot)))
        object.__setattr__(self, "_inverse", inverse)

    @staticmethod
    def of(
        predict: Predict,
        encoding: Encoding,
        posterior: Posterior,
        genes: np.ndarray,
        values: np.ndarray,
    ) -> Updated:
        """Condition a trained predictor.

        Args:
            predict: of the predictor.
            encoding: of the space.
            posterior: of the predictor.
            genes: int64 [R, W], distinct configurations; R may be 0.
            values: float64 [R], what they measured.

        Returns:
            The updated predictor.
        """
        mean = predict(genes)[0] if len(genes) else np.zeros(0)
        return Updated(predict, encoding, posterior, genes, values - mean)

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict configurations.

        Args:
            genes: int64 [B, W].

        Returns:
            Mean and standard deviation of what measuring each would give, float64 [B] each.
        """
        mean, deviation = self.predict(genes)
        if not len(self.genes):
            return mean, deviation
        covariance = self._covariance(genes)
        weights = covariance @ self._inverse
        known = (weights * covariance).sum(axis=1)
        return mean + weights @ self.residuals, np.sqrt(np.maximum(deviation**2 - known, 0))

    def believing(self, genes: np.ndarray) -> Updated:
        """Pretend that configurations measured what is predicted of them.

        Args:
            genes: int64 [B, W], others than those that were measured.

        Returns:
            A predictor with the same means, which is surer.
        """
        believed = self(genes)[0] - self.predict(genes)[0]
        return Updated(
            self.predict,
            self.encoding,
            self.posterior,
            np.concatenate([self.genes, genes]),
            np.concatenate([self.residuals, believed]),
        )

    def _covariance(self, genes: np.ndarray) -> np.ndarray:
        known = self.encoding.one_hot(self.genes)
        parts = [
            self.posterior.covariance(self.encoding.one_hot(genes[i : i + 256]), known)
            for i in range(0, len(genes), 256)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(known)))
