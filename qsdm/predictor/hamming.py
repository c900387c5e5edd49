"""A baseline: a Gaussian process that only knows how many weights have another method.

The covariance of two labels falls exponentially with the Hamming distance of their configurations.

References:
    Gaussian Processes for Machine Learning (Rasmussen & Williams, 2006): algorithm 2.1, as
    scikit-learn has it.

    Combinatorial Bayesian Optimization using the Graph Cartesian Product (Oh et al., 2019),
    section 2.2: on a complete graph per variable, the diffusion kernel depends on the Hamming
    distance alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)


class Hamming(StationaryKernelMixin, NormalizedKernelMixin, Kernel):
    """exp(-h / length) of the number h of weights whose methods differ."""

    def __init__(
        self, length: float = 30.0, length_bounds: tuple[float, float] = (1.0, 1e4)
    ) -> None:
        self.length = length
        self.length_bounds = length_bounds

    @property
    def hyperparameter_length(self) -> Hyperparameter:
        """That the likelihood is maximized over."""
        return Hyperparameter("length", "numeric", self.length_bounds)

    def __call__(
        self, X: np.ndarray, Y: np.ndarray | None = None, eval_gradient: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Compute the kernel, and its derivative by the logarithm of the length.

        Args:
            X: int64 [B, W], genes.
            Y: int64 [B', W]; None for ``X``.
            eval_gradient: whether the derivative is wanted.

        Returns:
            Float64 [B, B']; with the derivative, [B, B', 1].
        """
        scaled = cdist(X, X if Y is None else Y, "hamming") * X.shape[1] / self.length
        kernel = np.exp(-scaled)
        if not eval_gradient:
            return kernel
        derivative = (kernel * scaled)[..., None]
        return kernel, derivative[..., :0] if self.hyperparameter_length.fixed else derivative


Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genes, int64 [B, W] => mean and standard deviation of what measuring gives, float64 [B] each."""


def fit_hamming(genes: np.ndarray, labels: np.ndarray) -> Predict:
    """Fit a Gaussian process; length, variance and noise are the most probable ones.

    Args:
        genes: int64 [B, W], distinct configurations.
        labels: float64 [B].

    Returns:
        The posterior.
    """
    offset, scale = float(labels.mean()), float(labels.std()) or 1.0
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * Hamming() + WhiteKernel(0.1, (1e-5, 1e1))
    process = GaussianProcessRegressor(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tells that a bound was met
        process.fit(genes, (labels - offset) / scale)

    def predict(new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = process.predict(new, return_std=True)
        return offset + scale * mean, scale * deviation

    return predict
