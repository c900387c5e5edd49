"""What a configuration is worth to a search by quality and fidelity, in units of quality.

Of the front of both, one point is taken (`qsdm.strategies.choice`). Rounds that asked for the best
quality alone would measure what is never taken: at 3.5 bits on `emoji_unet`, configurations of 4 dB
less. So they ask for the largest worth,

    quality, at most that of full precision + fidelity × span of quality ÷ span of fidelity,

and a span of quality more for those that are as good as full precision; its largest value on the
front is that point. Fidelity that was not measured counts as it is predicted: that has less noise
than quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qsdm.measurement.labels import Labels
from qsdm.strategies.acquisition import Believer
from qsdm.strategies.archive import Metric
from qsdm.strategies.choice import Tradeoff


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """How much a configuration is worth.

    Attributes:
        tradeoff: of quality and fidelity.
        fidelity: gives what predicts the fidelity of configurations, as far as it has learned.
    """

    tradeoff: Tradeoff
    fidelity: Callable[[], Metric]

    def known(self, labels: Labels) -> Labels:
        """Select the labels whose fidelity was measured.

        Args:
            labels: of quality.
        """
        values = [outcome.metrics.get(self.tradeoff.metric) for outcome in labels.outcomes]
        return labels.take([i for i, value in enumerate(values) if value is not None])

    def of_labels(self, labels: Labels) -> Labels:
        """Let labels tell the worth.

        Args:
            labels: of quality, B of them, all with a measured fidelity.

        Returns:
            The same configurations; without halves if an outcome lacks those of the fidelity.
        """
        name = self.tradeoff.metric
        fidelity = np.array([outcome.metrics[name] for outcome in labels.outcomes])
        halves = labels.halves
        if halves is not None:
            own = [outcome.halves.get(name, ()) for outcome in labels.outcomes]
            if min(map(len, own), default=0) < len(halves):
                halves = None
            else:
                split = np.array([pairs[: len(halves)] for pairs in own])  # [B, S, 2]
                halves = self.tradeoff.worth(halves, split.transpose(1, 2, 0))
        return replace(labels, values=self.tradeoff.worth(labels.values, fidelity), halves=halves)

    def of_model(self, model: Believer) -> Believer:
        """Let a predictor tell the worth.

        Args:
            model: predicts quality.
        """
        return _Predicted(self.tradeoff, self.fidelity(), model)


@dataclass(frozen=True, slots=True, eq=False)
class _Predicted:
    tradeoff: Tradeoff
    fidelity: Metric
    model: Believer

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = self.model(genes)
        return self.tradeoff.worth(mean, self.fidelity(genes)), deviation

    def believing(self, genes: np.ndarray) -> _Predicted:
        return replace(self, model=self.model.believing(genes))
