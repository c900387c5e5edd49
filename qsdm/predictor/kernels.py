"""Parts of a label as explicit features of a configuration; their inner products are kernels.

Every part is linear in unknown coefficients with independent normal priors of one variance v. So
its kernel is v <f(c), f(c')>, and the posterior of its coefficients is closed.

- `Sums`: contributions of single decisions; the weights of a group share their coefficients
- `Pairs`: products of two weights' amplitudes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """A sum over weights of features of their decisions, with coefficients for each group.

    Attributes:
        name: of the part.
        scale: typical standard deviation of a coefficient.
        decisions: float64 [W, M + 1, F], features of a weight under a method.
        groups: int64 [W], group of each weight, from 0 to G - 1.
    """

    name: str
    scale: float
    decisions: np.ndarray
    groups: np.ndarray

    def features(self, configurations: np.ndarray) -> np.ndarray:
        """Sum the decisions' features over the weights of each group.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B, G × F].
        """
        chosen = np.einsum("bwm,wmf->wbf", configurations, self.decisions)
        num_groups, num_features = int(self.groups.max()) + 1, chosen.shape[2]
        sums = np.zeros((num_groups, len(configurations), num_features))
        np.add.at(sums, self.groups, chosen)
        return sums.transpose(1, 0, 2).reshape(len(configurations), num_groups * num_features)

    def contributions(self, coefficients: np.ndarray) -> np.ndarray:
        """Compute what each decision adds to the label.

        Args:
            coefficients: float64 [G × F].

        Returns:
            Float64 [W, M + 1].
        """
        by_weight = coefficients.reshape(-1, self.decisions.shape[2])[self.groups]
        return np.einsum("wmf,wf->wm", self.decisions, by_weight)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Products of the amplitudes of two weights, with a coefficient for each pair.

    Attributes:
        name: of the part.
        scale: typical standard deviation of a coefficient.
        amplitude: float64 [W, M + 1], of each decision.
        pairs: int64 [P, 2], distinct weights.
    """

    name: str
    scale: float
    amplitude: np.ndarray
    pairs: np.ndarray

    def features(self, configurations: np.ndarray) -> np.ndarray:
        """Compute the products.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B, P].
        """
        chosen = np.einsum("bwm,wm->bw", configurations, self.amplitude)
        return chosen[:, self.pairs[:, 0]] * chosen[:, self.pairs[:, 1]]

    def form(self, coefficients: np.ndarray) -> np.ndarray:
        """Arrange the coefficients as a quadratic form of the amplitudes a: the part is a' Q a.

        Args:
            coefficients: float64 [P].

        Returns:
            Q, symmetric float64 [W, W].
        """
        form = np.zeros((len(self.amplitude),) * 2)
        for one, other in (self.pairs.T, self.pairs.T[::-1]):
            np.add.at(form, (one, other), coefficients / 2)
        return form


Part = Sums | Pairs


def neighbors(edges: Sequence[tuple[int, int]], weights: Sequence[int]) -> np.ndarray:
    """Find pairs of weights of which one is the next that the other's output reaches.

    Args:
        edges: sources and targets among N nodes in topological order.
        weights: index of each node's weight, -1 for a node without one.

    Returns:
        Int64 [P, 2], distinct pairs of distinct weights, the smaller index first.
    """
    last: list[set[int]] = [set() for _ in weights]  # weights through which a node was reached
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        last[target] |= {weights[source]} if weights[source] >= 0 else last[source]
    pairs = {
        (min(a, weight), max(a, weight))
        for weight, reached in zip(weights, last, strict=True)
        for a in reached
        if weight not in (-1, a)
    }
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def within(groups: np.ndarray) -> np.ndarray:
    """List all pairs of weights of the same group.

    Args:
        groups: int64 [W].

    Returns:
        Int64 [P, 2], the smaller index first.
    """
    first, second = np.triu_indices(len(groups), k=1)
    same = groups[first] == groups[second]
    return np.stack([first[same], second[same]], axis=1)
