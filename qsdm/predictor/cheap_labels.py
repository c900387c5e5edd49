"""Labels of configurations with few pictures, read off their distance to full precision.

A Fréchet distance needs hundreds of pictures. The distance of a dozen pictures to their
full-precision twins needs only that dozen, and correlates with it. The mapping is learned from
configurations that have a full label, whose first pictures have the captions and the noise of the
others' few. Weight errors and average bits, which cost no picture, help.

    measure num_configs=60            full labels
    measure num_configs=240 num_images=16
    train cheap_images=16             240 labels, 60 of them full

References:
    Predicting the output from a complex computer code when fast approximations are available
    (Kennedy & O'Hagan, 2000), section 2: a linear map between levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.measurement.labels import Labels
from qsdm.outcome import Outcome
from qsdm.predictor import baselines
from qsdm.predictor.linear import ridge_dual
from qsdm.predictor.scores import srcc
from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable
from qsdm.store import StoreError

LEAST = 8  # full labels
_PENALTIES = 10.0 ** np.arange(-6, 2)  # in units of the mean squared column


@dataclass(frozen=True, slots=True)
class CheapLabels:
    """Labels that were read off few pictures.

    Attributes:
        labels: float64 [C], in units of the full ones.
        srcc: rank correlation of the full labels and what the map predicts of each without it.
        metrics: names of the metrics whose values on few pictures are used.
    """

    labels: np.ndarray
    srcc: float
    metrics: tuple[str, ...]


def read_off(
    full: Labels, few: Labels, space: Space, table: MethodTable
) -> tuple[Labels, CheapLabels]:
    """Read labels off few pictures for the configurations that have no full label.

    Args:
        full: labels of all pictures.
        few: labels of fewer pictures, whose number their protocol holds.
        space: of both.
        table: errors of the space's weights under its methods.

    Returns:
        The configurations without a full label, with values in units of the full ones; and how
        well the full ones are met.

    Raises:
        StoreError: all configurations have a full label, too few of them do, or the full ones lack
            the metrics of their first pictures.
    """
    num_images, known = few.protocol.num_images, set(full.digests)
    others = few.take([i for i, digest in enumerate(few.digests) if digest not in known])
    if not len(others):
        raise StoreError(
            f"all {len(few)} configurations of {num_images} pictures have a full label, too"
        )

    def without_pictures(labels: Labels) -> np.ndarray:
        errors = -baselines.error_sum(space, table, labels.genes)
        return np.stack([errors, baselines.avg_bits(space, labels.genes)], axis=1)

    cheap = cheap_labels(
        full.outcomes,
        full.values,
        without_pictures(full),
        others.outcomes,
        without_pictures(others),
        num_images,
    )
    return dataclasses.replace(others, values=cheap.labels, halves=None), cheap


def cheap_labels(
    full: Sequence[Outcome],
    labels: np.ndarray,
    full_known: np.ndarray,
    cheap: Sequence[Outcome],
    cheap_known: np.ndarray,
    num_images: int,
) -> CheapLabels:
    """Compute labels from the metrics of few pictures.

    Args:
        full: outcomes with a label, which have the metrics of their first ``num_images`` pictures.
        labels: float64 [B], labels of ``full``.
        full_known: float64 [B, F], positive numbers that describe each configuration of ``full``
            without pictures.
        cheap: outcomes of ``num_images`` pictures.
        cheap_known: float64 [C, F], the same numbers for ``cheap``.
        num_images: pictures of each outcome of ``cheap``.

    Returns:
        Labels of ``cheap``.

    Raises:
        StoreError: there are too few full labels, or they lack the metrics of their first pictures.
    """
    if len(full) < LEAST or not all(num_images in outcome.prefixes for outcome in full):
        raise StoreError(
            f"labels from {num_images} pictures need {LEAST} full ones that know their first "
            f"{num_images} pictures (got {sum(num_images in o.prefixes for o in full)}; prefixes "
            "are of 16, 64 and 256 pictures)"
        )
    rows = [
        *(outcome.prefixes[num_images] for outcome in full),
        *(outcome.metrics for outcome in cheap),
    ]
    names = tuple(name for name in rows[0] if all(row.get(name) is not None for row in rows))
    measured = np.array([[float(row[name] or 0.0) for name in names] for row in rows])
    positive = (measured > 0).all(axis=0)
    described = np.concatenate([full_known, cheap_known])
    x = np.concatenate(
        [measured, np.log(measured[:, positive]), described, np.log(described)], axis=1
    )
    own = x[: len(full)]
    x = (x - own.mean(axis=0)) / (own.std(axis=0) + 1e-12)
    own, offset = x[: len(full)], labels.mean()
    gram = own @ own.T / x.shape[1]
    dual, residual = ridge_dual(
        gram, labels - offset, _PENALTIES * max(float(np.trace(gram)) / len(gram), 1e-12)
    )
    values = x[len(full) :] @ own.T @ dual / x.shape[1] + offset
    return CheapLabels(values, srcc(labels - residual, labels), names)
