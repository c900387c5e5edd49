"""How sure a trained predictor is: the posterior of the informed model, as a file of its own.

Networks of different folds agree where all of them are wrong. So a prediction's deviation is that
of the closed Gaussian model of all labels and the best probes (`qsdm.predictor.informed`), and what
the networks add:

    deviation² = (calibration × deviation of the closed model)² + variance of the networks' parts

The calibration is the root mean square of the errors on held-out labels, each in units of the
deviation that the closed model of its fold gives it. A fold finds scales of its own: predictions
that leave out one label only would not show that the scales were fitted to all of them. Where the
networks complete a mean of closed models (`qsdm.predictor.mean`), the errors are those of the mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from qsdm.predictor.encode import Encoding
from qsdm.predictor.informed import Informed, Noise
from qsdm.predictor.prior import Prior
from qsdm.store import StoreError
from qsdm.store.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from qsdm.predictor.fit import Fold

NAME = "posterior.safetensors"
SCHEMA = "qsdm/posterior/1"
REMEDY = "run python -m qsdm.train again"
# Labels that the calibration 1 counts for: few labels hardly move it.
_TRUST = 5


class _PosteriorFile(TypedDict):
    """What the file holds in addition to its arrays."""

    schema: str
    encoding: str
    offset: float
    typical: float
    anchored: bool
    least: float
    rising: float
    misfit: float
    evidence: float
    calibration: float


_OF_PRIOR = ("costs", "damage", "uncertainty", "error", "roles", "blocks", "edges")
_OF_MODEL = ("scales", "dual", "inverse", "left_out", "left_out_deviation")


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """The closed model of all labels, with its calibration.

    Attributes:
        model: the closed model.
        calibration: factor of its deviations, positive.
    """

    model: Informed
    calibration: float = 1.0

    def variance(self, configurations: np.ndarray) -> np.ndarray:
        """Compute the variance of what measuring a configuration would give.

        Args:
            configurations: [B, W, M + 1], one-hot.

        Returns:
            Float64 [B].
        """
        return (self.calibration * self.model.predict(configurations)[1]) ** 2

    def covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compute the covariance of two sets of configurations, without noise.

        Args:
            first: [B, W, M + 1], one-hot.
            second: [B', W, M + 1], one-hot.

        Returns:
            Float64 [B, B'].
        """
        return self.calibration**2 * self.model.covariance(first, second)

    def noise_variance(self, configurations: np.ndarray) -> np.ndarray:
        """Compute what of the variance no other configuration tells about.

        Args:
            configurations: [B, W, M + 1], one-hot.

        Returns:
            Float64 [B].
        """
        return self.calibration**2 * self.model.noise_variance(configurations)

    def save(self, directory: Path, encoding: Encoding) -> None:
        """Write ``posterior.safetensors``.

        Args:
            directory: of the predictor.
            encoding: of the space.
        """
        model, prior = self.model, self.model.prior
        arrays = {name: getattr(prior, name) for name in _OF_PRIOR}
        arrays |= {name: getattr(model, name) for name in _OF_MODEL}
        arrays["columns"] = model.configurations.argmax(axis=2).astype(np.int64)
        about = {
            "schema": SCHEMA,
            "encoding": encoding.digest,
            "calibration": self.calibration,
            "evidence": model.evidence,
            **{name: getattr(prior, name) for name in ("offset", "typical", "anchored")},
            **dataclasses.asdict(model.noise),
        }
        write_tensors(directory / NAME, arrays, about)

    @staticmethod
    def load(directory: Path, encoding: Encoding) -> Posterior:
        """Read what `save` wrote.

        Args:
            directory: of the predictor.
            encoding: of the space.

        Returns:
            The posterior.

        Raises:
            StoreError: it is missing, damaged, or of another graph, space or table of errors.
        """
        path = directory / NAME
        if not path.exists():
            raise StoreError(f"no {path}, which tells how sure the predictor is: {REMEDY}")
        arrays, about = read_tensors(path, _PosteriorFile, REMEDY)
        if about["schema"] != SCHEMA or about["encoding"] != encoding.digest:
            raise StoreError(
                f"{path} was made for another graph, space or table of errors, or by another "
                f"version of qsdm: {REMEDY}"
            )
        num_columns = encoding.decisions.shape[1]
        try:
            prior = Prior(
                offset=about["offset"],
                typical=about["typical"],
                anchored=about["anchored"],
                **{name: arrays[name] for name in _OF_PRIOR},
            )
            hot = np.eye(num_columns)[arrays["columns"]]
            model = Informed(
                prior=prior,
                parts=tuple(prior.parts()),
                noise=Noise(about["least"], about["rising"], about["misfit"]),
                configurations=hot,
                evidence=about["evidence"],
                **{name: arrays[name] for name in _OF_MODEL},
            )
        except (KeyError, IndexError) as error:
            raise StoreError(f"{path} lacks something ({error}): {REMEDY}") from error
        return Posterior(model, about["calibration"])


def calibrated(
    model: Informed, labels: np.ndarray, held_out: np.ndarray, deviations: np.ndarray
) -> Posterior:
    """Scale a closed model's deviations to the errors on held-out labels.

    Args:
        model: of all labels.
        labels: float64 [B].
        held_out: float64 [B], prediction of each by a fold that has not seen it.
        deviations: float64 [B], of these predictions by the fold's closed model.

    Returns:
        The posterior.
    """
    away = (labels - held_out) / deviations
    return Posterior(model, float(np.sqrt((_TRUST + (away**2).sum()) / (_TRUST + len(labels)))))


def learned_parts(folds: Sequence[Fold], columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Subtract the folds' closed models from their predictions: what the networks learned.

    Args:
        folds: K trained networks.
        columns: int64 [B, W], column of each decision's method.
        values: float64 [K, B], predictions.

    Returns:
        Float64 [K, B].
    """
    rows = np.arange(columns.shape[1])
    parts = []
    for fold, predicted in zip(folds, values, strict=True):
        tables = (fold.gnn.additive, fold.gnn.amplitude, fold.gnn.pairs)
        additive, amplitude, pairs = (table.numpy().astype(np.float64) for table in tables)
        chosen = amplitude[:, rows, columns]
        closed = additive[rows, columns].sum(axis=1) + float(fold.gnn.offset)
        closed += ((chosen @ pairs) * chosen).sum(axis=(0, 2))
        parts.append(predicted - fold.mean - fold.deviation * closed)
    return np.stack(parts)
