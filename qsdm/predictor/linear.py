"""The additive part of a label: ridge regression on the decisions, in closed form.

Features of a configuration are the errors of its weights and, with less influence, all features of
its decisions: those of each weight, their sums over the weights of a role, and their sums over all
weights. The sums allow learning what weights have in common. The penalty, and whether the further
features are used, are chosen by the leave-one-out error, which ridge regression gives without
refitting.

References:
    The Relationship between Variable Selection and Data Augmentation and a Method for Prediction
    (Allen, 1974): PRESS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qsdm.predictor.encode import Encoding

PENALTIES = 10.0 ** np.arange(-3, 2.6, 0.5)  # in units of the kernels' mean diagonal
SHARES = (0.0, 0.1)  # of each further kernel; the share of the weights' own errors is 1
ERROR = 2  # column of the relative error in `Encoding.decisions`


@dataclass(frozen=True, slots=True, eq=False)
class Additive:
    """A label as a sum over decisions.

    Attributes:
        contributions: float64 [W, M + 1], what each decision adds to the label; 0 for full
            precision.
        offset: the label of full precision.
        left_out: float64 [B], prediction of each training label by the fit without it.
    """

    contributions: np.ndarray
    offset: float
    left_out: np.ndarray

    def __call__(self, configurations: np.ndarray) -> np.ndarray:
        """Predict labels.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B].
        """
        return np.einsum("bwm,wm->b", configurations, self.contributions) + self.offset


def fit_additive(encoding: Encoding, configurations: np.ndarray, labels: np.ndarray) -> Additive:
    """Fit an additive model by ridge regression on the decisions.

    Args:
        encoding: of the space.
        configurations: [B, W, M + 1], one-hot.
        labels: float64 [B].

    Returns:
        The model.
    """
    decisions = encoding.decisions.astype(np.float64)
    num_features = decisions.shape[2]
    spread = decisions[
        encoding.allowed & (np.arange(decisions.shape[1]) < decisions.shape[1] - 1)
    ].std(axis=0)
    decisions = decisions / np.maximum(spread, 1e-6)
    chosen = np.einsum("bwm,wmf->bwf", configurations, decisions)
    middle = chosen.mean(axis=0)
    chosen = chosen - middle
    groups = np.array(
        [
            str(encoding.space.graph.node_of(weight.name).role)
            for weight in encoding.space.graph.weights
        ]
    )
    member = (groups[:, None] == np.unique(groups)[None]).astype(np.float64)  # [W, G]
    error = np.arange(num_features) == ERROR
    # Each kernel is <x, P x'> with a projection P of decisions, [..., W, F'] => the same shape.
    projections: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x * error,  # damage is close to sensitivity x error
        lambda x: x,
        lambda x: member @ (member.T @ x),
        lambda x: np.broadcast_to(x.sum(axis=-2, keepdims=True), x.shape),
    ]
    flat = chosen.reshape(len(chosen), -1)
    kernels = [flat @ project(chosen).reshape(flat.shape).T for project in projections]
    scales = [max(np.trace(kernel) / len(kernel), 1e-12) for kernel in kernels]
    kernels = [kernel / scale for kernel, scale in zip(kernels, scales, strict=True)]
    offset = labels.mean()
    fits = [
        (share, *ridge_dual(kernels[0] + share * sum(kernels[1:]), labels - offset, PENALTIES))
        for share in SHARES
    ]
    share, dual, residual = min(fits, key=lambda fit: float(fit[2] @ fit[2]))
    total = np.tensordot(dual, chosen, axes=1)  # [W, F']
    mixture = (1.0, share, share, share)
    parts = [
        m / scale * project(total)
        for m, scale, project in zip(mixture, scales, projections, strict=True)
    ]
    per_weight = np.sum(parts, axis=0)
    contributions = np.einsum("wmf,wf->wm", decisions, per_weight)
    return Additive(contributions, float(offset - (middle * per_weight).sum()), labels - residual)


def ridge_dual(
    kernel: np.ndarray, labels: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge regression with the penalty that has the smallest leave-one-out error.

    With the residuals r and the hat matrix H of the fit, including its unpenalized mean, label i
    differs from the prediction of the fit without it by r_i / (1 - H_ii).

    Args:
        kernel: float64 [B, B], of centered features.
        labels: float64 [B], centered.
        penalties: the penalties to choose from, positive, in units of the kernel.

    Returns:
        Dual coefficients and leave-one-out residuals, float64 [B] each.
    """
    values, vectors = np.linalg.eigh(kernel)
    values, projected = np.maximum(values, 0), vectors.T @ labels
    best = None
    for penalty in penalties:
        dual = vectors @ (projected / (values + penalty))
        leverage = 1 / len(labels) + vectors**2 @ (values / (values + penalty))
        residual = penalty * dual / np.maximum(1 - leverage, 1e-9)
        if best is None or residual @ residual < best[1] @ best[1]:
            best = (dual, residual)
    assert best is not None
    return best
