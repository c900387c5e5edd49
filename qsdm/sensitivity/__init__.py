"""Sensitivity: the harm of each decision, computed from the trained predictor.

- ``attribution``: Captum's integrated gradients and group ablation, relative to full precision
- ``hops``: norms of hop embeddings as scores of a weight and of what feeds it
- ``faithfulness``: whether scores agree with measured labels and with the predictor's estimates
- ``curves``, ``stability`` and ``certificate``: whether pictures confirm the attributions
- ``cards``: everything that is known of one decision
- ``tables``: results per role, op and block

All scores are harms, in units of the objective: the amount by which a decision lowers the predicted
quality. Positive values are worse.

Example:
    >>> import numpy as np
    >>> from qsdm.qconfig import QuantMethod
    >>> from qsdm.sensitivity import Sensitivity
    >>> methods = (QuantMethod("uaq", 3), QuantMethod("uaq", 4))
    >>> scores = np.array([[6.0, 1.0], [3.0, np.nan]])
    >>> sensitivity = Sensitivity(("conv_in", "conv_out"), methods, scores, "hops")
    >>> sensitivity.per_weight.tolist(), sensitivity.score("conv_in", methods[1])
    ([3.5, 3.0], 1.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsdm.qconfig import QuantMethod, Space


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """How sensitivities are computed.

    Attributes:
        num_configs: number of random configurations that are explained; every option of a weight
            occurs equally often in them.
        steps: number of points of the integral from full precision to the configuration.
        seed: of the random configurations.
    """

    num_configs: int = 36
    steps: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_configs < 1 or self.steps < 1:
            raise ValueError(
                f"num_configs and steps must be positive (got {self.num_configs} and {self.steps})"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Harm of every weight under every method.

    Attributes:
        weights: names of W weights.
        methods: M methods.
        scores: float64 [W, M]; NaN where a method is not on offer.
        attribution: how the scores were computed: integrated_gradients, ablation_to_full,
            ablation_from_full or hops.
        faithfulness: faithfulness metrics by name (see `qsdm.sensitivity.faithfulness`).
    """

    weights: tuple[str, ...]
    methods: tuple[QuantMethod, ...]
    scores: np.ndarray
    attribution: str
    faithfulness: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.weights), len(self.methods))
        if self.scores.shape != shape:
            raise ValueError(
                f"wanted scores of shape {shape}, weights by methods (got {self.scores.shape})"
            )

    @property
    def per_weight(self) -> np.ndarray:
        """Mean harm over the methods on offer, float64 [W]; NaN for a weight without scores."""
        return _mean(self.scores)

    def at_bits(self, bits: int) -> np.ndarray:
        """Compute the mean harm over the methods of ``bits``.

        Args:
            bits: of the methods.

        Returns:
            Float64 [W]; NaN where no such method is on offer.
        """
        return _mean(
            self.scores[:, [i for i, method in enumerate(self.methods) if method.bits == bits]]
        )

    def score(self, weight: str, method: QuantMethod) -> float | None:
        """Look up the harm of a weight under a method.

        Args:
            weight: its name.
            method: the method.

        Returns:
            The harm; None if there is no score.
        """
        if weight not in self.weights or method not in self.methods:
            return None
        score = self.scores[self.weights.index(weight), self.methods.index(method)]
        return None if np.isnan(score) else float(score)

    def to_json(self) -> dict[str, Any]:
        """The contents of sensitivity.json; NaN becomes null."""
        return {
            "weights": list(self.weights),
            "methods": [str(method) for method in self.methods],
            "scores": [[None if np.isnan(v) else float(v) for v in row] for row in self.scores],
            "attribution": self.attribution,
            "faithfulness": dict(self.faithfulness),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sensitivity:
        """The inverse of `to_json`."""
        scores = np.array(
            [[np.nan if v is None else v for v in row] for row in data["scores"]], dtype=np.float64
        )
        methods = tuple(map(QuantMethod.parse, data["methods"]))
        return Sensitivity(
            tuple(data["weights"]), methods, scores, data["attribution"], dict(data["faithfulness"])
        )


def balanced_genes(space: Space, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random configurations in which weights are independent and options equally frequent.

    `Space.sample` correlates the bits of all weights, so that a weight would be blamed for others.

    Args:
        space: W weights and the methods on offer for each.
        num: number of configurations.
        rng: source of randomness.

    Returns:
        Genes, int64 [num, W]; counts of a weight's options differ by at most one.
    """
    genes = np.empty((num, len(space.options)), dtype=np.int64)
    for i, offered in enumerate(space.options):
        genes[:, i] = rng.permutation(np.resize(rng.permutation(len(offered)), num))
    return genes


def by_decision(space: Space, genes: np.ndarray, harms: np.ndarray) -> np.ndarray:
    """Average the harm of each decision over configurations.

    Args:
        space: W weights and the methods on offer for each.
        genes: int64 [B, W].
        harms: float64 [B, W], of each weight in each configuration.

    Returns:
        Float64 [W, M]; NaN where a decision never occurs.
    """
    scores = np.full((len(space.options), len(space.methods)), np.nan)
    for i, offered in enumerate(space.options):
        for gene, method in enumerate(offered):
            if (chosen := genes[:, i] == gene).any():
                scores[i, space.methods.index(method)] = harms[chosen, i].mean()
    return scores


def _mean(scores: np.ndarray) -> np.ndarray:
    present = ~np.isnan(scores)
    total = np.where(present, scores, 0).sum(axis=1)
    return np.divide(
        total, present.sum(axis=1), out=np.full(len(total), np.nan), where=present.any(axis=1)
    )
