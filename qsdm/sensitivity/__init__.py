"""Sensitivity: what each decision costs, read off the trained predictor.

    attribution     Captum's integrated gradients and group ablation, from the full-precision configuration
    hops            norms of hop embeddings as scores of a weight and what feeds it
    faithfulness    whether the scores foretell measured labels and the predictor's own answers
    tables, plots   per role, op and block

All scores are harms in units of the objective: what the decision takes off the predicted quality, positive is worse.
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
        num_configs: random configurations that are explained; every option of a weight occurs equally often in them.
        steps: of the integral from full precision to the configuration.
        seed: of these configurations.
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
        weights: names, W of them.
        methods: M of them.
        scores: float64 [W, M]; NaN where a method is not on offer.
        attribution: what made the scores: integrated_gradients, ablation_to_full, ablation_from_full or hops.
        faithfulness: figures by name (see `qsdm.sensitivity.faithfulness`).
    """

    weights: tuple[str, ...]
    methods: tuple[QuantMethod, ...]
    scores: np.ndarray
    attribution: str
    faithfulness: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (len(self.weights), len(self.methods))
        if self.scores.shape != wanted:
            raise ValueError(
                f"wanted scores of shape {wanted}, weights by methods (got {self.scores.shape})"
            )

    @property
    def per_weight(self) -> np.ndarray:
        """Mean harm over the methods on offer, [W]; NaN where nothing is known."""
        return _mean(self.scores)

    def at_bits(self, bits: int) -> np.ndarray:
        """Mean harm over the methods of ``bits``, [W]; NaN where none is on offer."""
        return _mean(
            self.scores[:, [i for i, method in enumerate(self.methods) if method.bits == bits]]
        )

    def score(self, weight: str, method: QuantMethod) -> float | None:
        """Harm of a weight under a method; None where it is not known."""
        if weight not in self.weights or method not in self.methods:
            return None
        found = self.scores[self.weights.index(weight), self.methods.index(method)]
        return None if np.isnan(found) else float(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": list(self.weights),
            "methods": [str(method) for method in self.methods],
            "scores": [[None if np.isnan(v) else float(v) for v in row] for row in self.scores],
            "attribution": self.attribution,
            "faithfulness": dict(self.faithfulness),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sensitivity:
        scores = np.array(
            [[np.nan if v is None else v for v in row] for row in data["scores"]], dtype=np.float64
        )
        methods = tuple(map(QuantMethod.parse, data["methods"]))
        return Sensitivity(
            tuple(data["weights"]), methods, scores, data["attribution"], dict(data["faithfulness"])
        )


def balanced_genes(space: Space, num: int, rng: np.random.Generator) -> np.ndarray:
    """Random configurations, int64 [num, W]: weights decide independently, each option occurs equally often (+- 1).

    `Space.sample` ties the bits of all weights together, which would blame a weight for its company.
    """
    genes = np.empty((num, len(space.options)), dtype=np.int64)
    for i, offered in enumerate(space.options):
        genes[:, i] = rng.permutation(np.resize(rng.permutation(len(offered)), num))
    return genes


def by_decision(space: Space, genes: np.ndarray, harms: np.ndarray) -> np.ndarray:
    """Mean harm of each decision, [W, M]; NaN where it never occurs.

    Args:
        genes: int64 [B, W].
        harms: of each weight in each configuration, [B, W].
    """
    scores = np.full((len(space.options), len(space.methods)), np.nan)
    for i, offered in enumerate(space.options):
        for gene, method in enumerate(offered):
            if (chosen := genes[:, i] == gene).any():
                scores[i, space.methods.index(method)] = harms[chosen, i].mean()
    return scores


def _mean(scores: np.ndarray) -> np.ndarray:
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0).sum(axis=1)
    return np.divide(
        total, known.sum(axis=1), out=np.full(len(total), np.nan), where=known.any(axis=1)
    )
