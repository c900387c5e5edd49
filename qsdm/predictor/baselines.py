"""Trivial predictors that the network must beat: average bits, sum of errors, ridge regression."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qsdm.predictor.encode import errors
from qsdm.predictor.linear import PENALTIES, ridge_dual
from qsdm.qconfig import Space, cost
from qsdm.qconfig.cost import MethodTable


def avg_bits(space: Space, genes: np.ndarray) -> np.ndarray:
    """Compute the average bits of configurations: more bits should give better pictures.

    Args:
        space: W weights and the methods on offer for each.
        genes: int64 [B, W].

    Returns:
        Bits per quantizable value, float64 [B].
    """
    return cost.avg_bits_of(space, genes)


def error_sum(space: Space, table: MethodTable, genes: np.ndarray) -> np.ndarray:
    """Compute minus the sum over weights of the relative squared error.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.
        genes: int64 [B, W].

    Returns:
        Float64 [B].

    Raises:
        ValueError: the table lacks a weight or a method that the space offers.
    """
    return -decision_errors(space, table, genes).sum(axis=1)


def decision_errors(space: Space, table: MethodTable, genes: np.ndarray) -> np.ndarray:
    """Look up the relative squared error of each weight under its method.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.
        genes: int64 [B, W].

    Returns:
        Float64 [B, W].

    Raises:
        ValueError: the table lacks a weight or a method that the space offers.
    """
    error = errors(space, table)
    columns = [
        np.array([space.methods.index(m) for m in offered])[genes[:, i]]
        for i, offered in enumerate(space.options)
    ]
    return np.stack([error[i, column] for i, column in enumerate(columns)], axis=1)


def one_hot(space: Space, genes: np.ndarray) -> np.ndarray:
    """Encode configurations as one-hot over the options of every weight.

    Args:
        space: W weights and the methods on offer for each.
        genes: int64 [B, W].

    Returns:
        Float64 [B, total number of options].
    """
    return np.concatenate(
        [np.eye(len(offered))[genes[:, i]] for i, offered in enumerate(space.options)], axis=1
    )


def fit_ridge(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit ridge regression, with the penalty of the smallest leave-one-out error.

    Args:
        features: float64 [B, F]; they need not be centered or scaled.
        labels: float64 [B].

    Returns:
        A function from features, float64 [B', F], to predicted labels, float64 [B'].
    """
    middle, scale = features.mean(axis=0), features.std() + 1e-12
    x, offset = (features - middle) / scale, labels.mean()
    gram = x @ x.T / x.shape[1]
    dual, _ = ridge_dual(
        gram, labels - offset, PENALTIES * max(float(np.trace(gram)) / len(gram), 1e-12)
    )
    slope = x.T @ dual / x.shape[1]
    return lambda new: ((new - middle) / scale) @ slope + offset


def ridge(features: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predict labels by ridge regression, see `fit_ridge`.

    Args:
        features: float64 [B, F], of the training part.
        labels: float64 [B], of the training part.
        new: float64 [B', F], features of the configurations to predict.

    Returns:
        Float64 [B'].
    """
    return fit_ridge(features, labels)(new)
