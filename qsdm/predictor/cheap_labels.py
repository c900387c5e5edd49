"""Labels of configurations of which only a few pictures were drawn, read off their nearness to full precision.

A Fréchet distance needs hundreds of pictures. How far a dozen are from the full-precision pictures of the same noise
needs no more than that dozen, and goes with it. How it goes is learned from configurations that have a full label:
their first pictures are those that the others have. Weight errors and average bits, which cost no picture, help.

    measure num_configs=60            full labels
    measure num_configs=240 num_images=16
    train cheap_images=16             240 labels, 60 of them full

References:
    Predicting the output from a complex computer code when fast approximations are available (Kennedy & O'Hagan, 2000),
        section 2: a linear map between levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.outcome import Outcome
from qsdm.predictor.linear import ridge_dual
from qsdm.predictor.scores import srcc
from qsdm.store import StoreError

LEAST = 8  # full labels
_PENALTIES = 10.0 ** np.arange(-6, 2)  # in units of the mean squared column


@dataclass(frozen=True, slots=True)
class CheapLabels:
    """
    Attributes:
        labels: float64 [C], in units of the full ones.
        srcc: rank correlation of the full labels and what the map makes of them when they are left out.
        metrics: whose values on a few pictures are used.
    """

    labels: np.ndarray
    srcc: float
    metrics: tuple[str, ...]


def cheap_labels(
    full: Sequence[Outcome],
    labels: np.ndarray,
    full_known: np.ndarray,
    cheap: Sequence[Outcome],
    cheap_known: np.ndarray,
    num_images: int,
) -> CheapLabels:
    """Labels of ``cheap`` from the metrics of their few pictures.

    Args:
        full: outcomes with a label, which have the metrics of their first ``num_images`` pictures.
        labels: float64 [B].
        full_known: float64 [B, F], what is known of a configuration without pictures; the columns are positive.
        cheap: outcomes of ``num_images`` pictures.
        cheap_known: float64 [C, F].

    Raises:
        StoreError: there are too few full labels, or they lack the metrics of their first pictures.
    """
    if len(full) < LEAST or not all(num_images in outcome.prefixes for outcome in full):
        raise StoreError(
            f"labels from {num_images} pictures need {LEAST} full ones that know their first {num_images} pictures "
            f"(got {sum(num_images in o.prefixes for o in full)}; prefixes are of 16, 64 and 256 pictures)"
        )
    rows = [
        *(outcome.prefixes[num_images] for outcome in full),
        *(outcome.metrics for outcome in cheap),
    ]
    names = tuple(name for name in rows[0] if all(row.get(name) is not None for row in rows))
    seen = np.array([[float(row[name] or 0.0) for name in names] for row in rows])
    known = np.concatenate([full_known, cheap_known])
    positive = (seen > 0).all(axis=0)
    x = np.concatenate([seen, np.log(seen[:, positive]), known, np.log(known)], axis=1)
    own = x[: len(full)]
    x = (x - own.mean(axis=0)) / (own.std(axis=0) + 1e-12)
    own, offset = x[: len(full)], labels.mean()
    gram = own @ own.T / x.shape[1]
    dual, residual = ridge_dual(
        gram, labels - offset, _PENALTIES * max(float(np.trace(gram)) / len(gram), 1e-12)
    )
    found = x[len(full) :] @ own.T @ dual / x.shape[1] + offset
    return CheapLabels(found, srcc(labels - residual, labels), names)
