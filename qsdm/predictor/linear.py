"""The additive part of a label: ridge regression on the decisions, in closed form.

Features of a configuration are the errors of its weights, and, with less weight, all features of its decisions: per
weight, summed over the weights of a role, and over all of them: what weights have in common is learned from all. The
penalty, and whether the further features are used, are chosen by the leave-one-out error, which ridge regression
gives without refitting.

References:
    The Relationship between Variable Selection and Data Augmentation and a Method for Prediction (Allen, 1974): PRESS;
    in the dual form, with alpha = (K + penalty I)^-1 y, the left-out residual is alpha_i / ((K + penalty I)^-1)_ii.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdm.predictor.encode import Encoding

PENALTIES = 10.0 ** np.arange(-3, 1.6, 0.5)
SHARES = (0.0, 0.1)  # of each further kernel, beside 1 of the weights' own errors
ERROR = 2  # column of the relative error in `Encoding.decisions`


@dataclass(frozen=True, slots=True, eq=False)
class Additive:
    """
    Attributes:
        contributions: float64 [W, M + 1], what each decision adds to the label; 0 for full precision.
        offset: the label of full precision.
        left_out: float64 [B], prediction of each training label by the fit without it.
    """

    contributions: np.ndarray
    offset: float
    left_out: np.ndarray

    def __call__(self, configurations: np.ndarray) -> np.ndarray:
        """One-hot or relaxed [B, W, M + 1] => [B]."""
        return np.einsum("bwm,wm->b", configurations, self.contributions) + self.offset


def fit_additive(encoding: Encoding, configurations: np.ndarray, labels: np.ndarray) -> Additive:
    """Ridge regression on decisions.

    Args:
        configurations: one-hot, [B, W, M + 1].
        labels: [B].
    """
    decisions = encoding.decisions.astype(np.float64)
    num_weights, _, num_features = decisions.shape
    spread = decisions[encoding.allowed & (np.arange(decisions.shape[1]) < decisions.shape[1] - 1)].std(axis=0)
    decisions = decisions / np.maximum(spread, 1e-6)
    chosen = np.einsum("bwm,wmf->bwf", configurations, decisions)
    middle = chosen.mean(axis=0)
    chosen = chosen - middle
    groups = np.array([str(encoding.space.graph.node_of(weight.name).role) for weight in encoding.space.graph.weights])
    member = (groups[:, None] == np.unique(groups)[None]).astype(np.float64)  # [W, G]
    member /= np.sqrt(member.sum(axis=0))
    error = (
        np.arange(decisions.shape[2]) == ERROR
    )  # the relative error alone, per weight: damage is close to sensitivity x error
    maps = [  # [W, F', features]: how each kernel reads the decisions
        np.einsum("vw,fg->vfwg", np.eye(num_weights), np.diag(error.astype(float))),
        np.einsum("vw,fg->vfwg", np.eye(num_weights), np.eye(num_features)),
        np.einsum("vw,fg->vfwg", member, np.eye(num_features)),
        np.einsum("vw,fg->vfwg", np.ones((num_weights, 1)), np.eye(num_features)),
    ]
    maps = [a.reshape(num_weights * num_features, -1) for a in maps]
    flat = chosen.reshape(len(chosen), -1)
    parts = [flat @ a for a in maps]
    scales = [max((part**2).sum() / len(part), 1e-12) for part in parts]
    kernels = [part @ part.T / scale for part, scale in zip(parts, scales, strict=True)]
    offset = labels.mean()
    best = (np.inf, (1.0, 0.0, 0.0, 0.0), np.zeros(len(labels)), np.zeros(len(labels)))
    for mixture in ((1.0, share, share, share) for share in SHARES):
        values, vectors = np.linalg.eigh(sum(m * kernel for m, kernel in zip(mixture, kernels, strict=True)))
        turned = vectors.T @ (labels - offset)
        for penalty in PENALTIES:
            inverse = 1 / (np.maximum(values, 0) + penalty)
            dual = vectors @ (inverse * turned)
            residual = dual / ((vectors**2) @ inverse)
            if (loss := float(residual @ residual)) < best[0]:
                best = (loss, mixture, dual, residual)
    _, mixture, dual, residual = best
    theta = sum(
        m / scale * (a @ (part.T @ dual)) for m, scale, a, part in zip(mixture, scales, maps, parts, strict=True)
    )
    per_weight = theta.reshape(num_weights, num_features)
    contributions = np.einsum("wmf,wf->wm", decisions, per_weight)
    return Additive(contributions, float(offset - (middle * per_weight).sum()), labels - residual)
