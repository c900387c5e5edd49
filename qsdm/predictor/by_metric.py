"""Predictions of single metrics by the closed model, fitted when they are asked for.

The networks learn one objective. Limits (``limit.psnr=28``) and the axis of fidelity need other
metrics, which the labels hold as well: the informed model (`qsdm.predictor.informed`) of a metric
takes a third of a second for 240 labels, and ranks held-out labels of fidelity as well as the
networks rank theirs. Its mean is a table and a quadratic form, so thousands of configurations are
predicted in no time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdm.measurement.labels import Bank, Labels
from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding
from qsdm.predictor.informed import Lessons
from qsdm.predictor.scores import srcc
from qsdm.qconfig import OutsideSpace
from qsdm.qconfig.cost import MethodTable

OF_FULL_PRECISION = {"lite0_distance": 0.0, "lpips": 0.0, "ssim": 1.0}
"""Metrics of fidelity, and what full precision has by definition; a dB has no such value."""


@dataclass(frozen=True, slots=True, eq=False)
class MetricModel:
    """Predicts a metric of configurations.

    Attributes:
        name: of the metric.
        sign: 1 if larger is better, else -1.
        encoding: of the space.
        offset: what all configurations share.
        contributions: float64 [W, M + 1], of each decision.
        amplitude: float64 [W, M + 1], of each decision in the interactions.
        form: float64 [W, W], interactions of two weights.
        srcc: rank correlation of the labels with their predictions by the others.
    """

    name: str
    sign: int
    encoding: Encoding
    offset: float
    contributions: np.ndarray
    amplitude: np.ndarray
    form: np.ndarray
    srcc: float

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Predict.

        Args:
            genes: int64 [B, W].

        Returns:
            Values of the metric, float64 [B].
        """
        columns, rows = self.encoding.columns_of(genes), np.arange(genes.shape[1])
        chosen = self.amplitude[rows, columns]
        quality = self.offset + self.contributions[rows, columns].sum(axis=1)
        quality += ((chosen @ self.form) * chosen).sum(axis=1)
        return self.sign * quality


def metric_model(
    bank: Bank, encoding: Encoding, table: MethodTable, labels: Labels, name: str, larger: bool
) -> MetricModel:
    """Learn a metric from the labels that measured it.

    Args:
        bank: everything that was measured of the model.
        encoding: of the space.
        table: errors of the space's weights under its methods.
        labels: that the networks have learned from; the metric's are of the same protocol.
        name: of the metric.
        larger: whether larger is better.

    Returns:
        The model.

    Raises:
        ValueError: the labels do not hold the metric.
    """
    from qsdm.predictor.best_probes import choose_probes
    from qsdm.predictor.probes import ProbeError

    objective = Objective({name: 1.0 if larger else -1.0})
    sets = bank.sets(objective, "measure", [labels.protocol])
    if not sets:
        held = sorted({n for o in labels.outcomes for n, v in o.metrics.items() if v is not None})
        raise ValueError(f"the labels hold no {name!r} (they hold {', '.join(held)})")
    own = sets[0]
    full = OF_FULL_PRECISION.get(name)
    if full is None:
        full = next(
            (
                value
                for outcome in bank.outcomes
                if outcome.qconfig.is_full and outcome.protocol == own.protocol.digest
                if (value := outcome.metrics.get(name)) is not None
            ),
            None,
        )
    try:
        probes = choose_probes(bank, table, objective)
    except (ProbeError, OutsideSpace):
        probes = None
    at_full = None if full is None else objective({name: full})
    lessons = Lessons.of(encoding, table, objective, own, probes, at_full)
    model = lessons.model(np.arange(len(own)))
    return MetricModel(
        name,
        1 if larger else -1,
        encoding,
        model.prior.offset,
        model.contributions(),
        model.prior.amplitude,
        model.form(),
        srcc(own.values, model.left_out),
    )
