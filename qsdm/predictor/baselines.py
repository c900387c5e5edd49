"""The trivial predictors that the network must beat: average bits, the sum of errors, ridge regression."""

from __future__ import annotations

import numpy as np

from qsdm import cost
from qsdm.cost import MethodTable
from qsdm.predictor.encode import errors
from qsdm.predictor.linear import PENALTIES, ridge_dual
from qsdm.qconfig import Space


def avg_bits(space: Space, genes: np.ndarray) -> np.ndarray:
    """More bits, better pictures: [B]."""
    return np.array(
        [cost.avg_bits(space.graph, space.decode(row), space.full_bits) for row in genes]
    )


def error_sum(space: Space, table: MethodTable, genes: np.ndarray) -> np.ndarray:
    """Minus the sum over weights of the relative squared error: [B]."""
    return -decision_errors(space, table, genes).sum(axis=1)


def decision_errors(space: Space, table: MethodTable, genes: np.ndarray) -> np.ndarray:
    """Relative squared error of each weight as it is decided, [B, W]."""
    error = errors(space, table)
    columns = [
        np.array([space.methods.index(m) for m in offered])[genes[:, i]]
        for i, offered in enumerate(space.options)
    ]
    return np.stack([error[i, column] for i, column in enumerate(columns)], axis=1)


def one_hot(space: Space, genes: np.ndarray) -> np.ndarray:
    """[B, sum of options]."""
    return np.concatenate(
        [np.eye(len(offered))[genes[:, i]] for i, offered in enumerate(space.options)], axis=1
    )


def ridge(features: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression in its dual form, the penalty chosen by leave-one-out error on the training part.

    Args:
        features: [B, F] of the training part; centred inside and scaled as a whole.
        labels: [B].
        new: [B', F].

    Returns: [B'].
    """
    middle, scale = features.mean(axis=0), features.std() + 1e-12
    x, offset = (features - middle) / scale, labels.mean()
    gram = x @ x.T / x.shape[1]
    dual, _ = ridge_dual(
        gram, labels - offset, PENALTIES * max(float(np.trace(gram)) / len(gram), 1e-12)
    )
    return ((new - middle) / scale) @ x.T @ dual / x.shape[1] + offset
