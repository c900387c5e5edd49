"""Predictions of single metrics by closed models, fitted when they are asked for.

The networks learn one objective. Limits (``limit.psnr=28``) and the axis of fidelity need other
metrics, which the labels hold as well: an informed model (`qsdm.predictor.informed`) of a metric
takes a third of a second for 240 labels, and ranks held-out labels of fidelity as well as the
networks rank theirs. A search looks where a model promises most, so one model alone is believed
where it errs: the mean counts of those that start without probes and from the best probes of each
fidelity, as for the objective (`qsdm.predictor.mean`). It is a table and a few quadratic forms, so
thousands of configurations are predicted in no time.

PSNR is learned as the squared error of pixels (`qsdm.measurement.decibels`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

import numpy as np

from qsdm.measurement.decibels import PSNR, in_decibels, squared
from qsdm.measurement.labels import PROPOSED, Bank, Labels, label_of_full, stage_of
from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding
from qsdm.predictor.informed import Lessons
from qsdm.predictor.mean import Mean
from qsdm.predictor.scores import srcc
from qsdm.qconfig import OutsideSpace
from qsdm.qconfig.cost import MethodTable

OF_FULL_PRECISION = {"lite0_distance": 0.0, "lpips": 0.0, "ssim": 1.0}
"""Metrics of fidelity, and what full precision has by definition."""


@dataclass(frozen=True, slots=True, eq=False)
class MetricModel:
    """Predicts a metric of configurations.

    Attributes:
        name: of the metric.
        sign: 1 if larger is better, else -1.
        encoding: of the space.
        mean: of closed models; of PSNR, of minus the squared error.
        srcc: rank correlation of the labels with their predictions by the others.
    """

    name: str
    sign: int
    encoding: Encoding
    mean: Mean
    srcc: float
    _offset: float = field(init=False)
    _contributions: np.ndarray = field(init=False)  # [W, M + 1]
    _amplitudes: np.ndarray = field(init=False)  # [J, W, M + 1]
    _forms: np.ndarray = field(init=False)  # [J, W, W]

    def __post_init__(self) -> None:
        for name in ("offset", "amplitudes"):
            object.__setattr__(self, f"_{name}", getattr(self.mean, name))
        object.__setattr__(self, "_contributions", self.mean.contributions())
        object.__setattr__(self, "_forms", self.mean.forms())

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Predict.

        Args:
            genes: int64 [B, W].

        Returns:
            Values of the metric, float64 [B].
        """
        columns, rows = self.encoding.columns_of(genes), np.arange(genes.shape[1])
        quality = self._offset + self._contributions[rows, columns].sum(axis=1)
        for amplitude, form in zip(self._amplitudes, self._forms, strict=True):
            chosen = amplitude[rows, columns]
            quality += ((chosen @ form) * chosen).sum(axis=1)
        return in_decibels(quality) if self.name == PSNR else self.sign * quality


def metric_model(
    bank: Bank, encoding: Encoding, table: MethodTable, labels: Labels, name: str, larger: bool
) -> MetricModel:
    """Learn a metric from the labels that measured it, and from what a search has proposed and was
    measured in the same way.

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
    from qsdm.predictor.best_probes import best_of_each_fidelity
    from qsdm.predictor.probes import ProbeError, Probes

    objective = Objective({name: 1.0 if larger else -1.0})
    sets = bank.sets(objective, ("measure", *PROPOSED), [labels.protocol])
    if not sets:
        held = sorted({n for o in labels.outcomes for n, v in o.metrics.items() if v is not None})
        raise ValueError(f"the labels hold no {name!r} (they hold {', '.join(held)})")
    own = sets[0]
    at_full = at_full_precision(bank, own, objective, name)
    if name == PSNR:
        halves = None if own.halves is None else squared(own.halves)
        own = replace(own, values=squared(own.values), halves=halves)
    priors: list[Probes | None] = [None]
    with contextlib.suppress(ProbeError, OutsideSpace):
        priors = [*best_of_each_fidelity(bank, table, objective).values(), None]
    rows = np.arange(len(own))
    models = [
        Lessons.of(encoding, table, objective, own, prior, at_full).model(rows) for prior in priors
    ]
    mean = Mean(tuple(models))
    random = [stage_of(outcome) == "measure" for outcome in own.outcomes]
    rank = srcc(own.values[random], mean.left_out[random])  # near copies would flatter it
    return MetricModel(name, 1 if larger else -1, encoding, mean, rank)


def at_full_precision(bank: Bank, own: Labels, objective: Objective, name: str) -> float | None:
    """Look up what full precision has, by definition or as it was measured.

    Args:
        bank: everything that was measured of the model.
        own: labels of the metric.
        objective: the metric, with its sign.
        name: of the metric.

    Returns:
        The label; None if it is not known.
    """
    if name == PSNR:
        return 0.0  # its squared error
    if (full := OF_FULL_PRECISION.get(name)) is not None:
        return objective({name: full})
    return label_of_full(bank.outcomes, own.protocol.digest, objective, bank.space.full_bits)
