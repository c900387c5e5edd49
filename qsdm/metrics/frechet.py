"""Fréchet distance between the features of pictures and those of reference pictures.

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

With any factors C = A A^T the last trace is the sum of the singular values of A1^T A2 (the nuclear
norm). This form is symmetric, takes no root of a rounding error, and is cheap for few pictures, as
A^T is then the centered features themselves.

References:
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et
        al., 2017), equation 6.
    The Fréchet Distance between Multivariate Normal Distributions (Dowson and Landau, 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qsdm.metrics import MetricError, file_digest, networks
from qsdm.store import ZOO
from qsdm.store.tensors import load_tensors, write_tensors


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A normal distribution.

    Attributes:
        mean: float64 [D].
        factor: float64 [D, R], of the covariance C = factor factor^T.
    """

    mean: np.ndarray
    factor: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> Gaussian:
        """The normal distribution with the mean and the unbiased covariance of features.

        Args:
            features: [N, D], N at least 2.

        Raises:
            ValueError: there are fewer than two.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                "a Fréchet distance needs features [N, D] of two or more pictures "
                f"(got shape {features.shape})"
            )
        values = features.astype(np.float64)
        mean = values.mean(0)
        centered = (values - mean) / np.sqrt(len(values) - 1)
        if len(values) > values.shape[1]:
            centered = np.linalg.qr(centered, mode="r")  # C = R^T Q^T Q R
        return Gaussian(mean, centered.T)

    @staticmethod
    def of_moments(mean: np.ndarray, cov: np.ndarray) -> Gaussian:
        """The normal distribution of a mean and a covariance.

        Args:
            mean: [D].
            cov: [D, D], symmetric.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if cov.shape != (len(mean), len(mean)):
            raise ValueError(
                "wanted a mean [D] and a covariance [D, D] "
                f"(got shapes {mean.shape} and {cov.shape})"
            )
        cov = cov.astype(np.float64)
        values, vectors = np.linalg.eigh((cov + cov.T) / 2)
        return Gaussian(mean.astype(np.float64), vectors * np.sqrt(values.clip(0)))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance between two normal distributions.

    Args:
        a: one of them.
        b: the other, of the same D.

    Returns:
        0 or more; about 0 for equal ones.
    """
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    distance = (
        np.square(a.mean - b.mean).sum()
        + np.square(a.factor).sum()
        + np.square(b.factor).sum()
        - 2 * cross
    )
    return max(0.0, float(distance))


def read_reference(path: Path, num_features: int) -> Gaussian:
    """Read the distribution of the reference pictures' features.

    Args:
        path: safetensors file with the tensors ``mean`` [D] and ``cov`` [D, D].
        num_features: D.

    Raises:
        MetricError: it is missing, damaged, or of other features.
    """
    return _read_reference(path, file_digest(path), num_features)


@lru_cache(maxsize=8)
def _read_reference(path: Path, _digest: str, num_features: int) -> Gaussian:
    try:
        moments = load_tensors(path)
        mean, cov = moments["mean"], moments["cov"]
    except (OSError, ValueError, KeyError) as error:
        raise MetricError(
            f"{path} is damaged or not a reference, which has the tensors mean and cov ({error}): "
            "restore it, or write it with python -m qsdm.metrics.reference"
        ) from error
    if mean.shape != (num_features,) or cov.shape != (num_features, num_features):
        raise MetricError(
            f"wanted a reference of {num_features} features "
            f"(got mean {mean.shape} and cov {cov.shape} in {path})"
        )
    return Gaussian.of_moments(mean, cov)


def write_reference(path: Path, features: np.ndarray) -> None:
    """Write the mean and covariance of the reference pictures' features.

    Args:
        path: the safetensors file, replaced if it exists.
        features: [N, D].

    Raises:
        StoreError: it cannot be written.
    """
    values = features.astype(np.float64)
    moments = {"mean": values.mean(0), "cov": np.cov(values, rowvar=False)}
    write_tensors(path, moments, {"num_images": len(values)})


@dataclass(frozen=True, slots=True)
class FrechetLite0:
    """``fd_lite0``: over 112 features of EfficientNet-Lite0, for small pictures.

    It is not FID, and not comparable with it.

    Attributes:
        reference: safetensors file with mean [112] and cov [112, 112] of the reference pictures;
            ``zoo`` for that of the emoji set.
    """

    reference: str = "zoo"
    name: str = "fd_lite0"
    larger_is_better: bool = False
    label: str = "fd_lite0"
    digits: int = 1

    @property
    def path(self) -> Path:
        return (
            ZOO / "emoji_unet" / "reference.safetensors"
            if self.reference == "zoo"
            else Path(self.reference).expanduser()
        )

    @property
    def version(self) -> str:
        from qsdm.metrics import lite0

        return f"lite0 {lite0.version()}, reference {file_digest(self.path)}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.lite0(images)

    def reduce(self, features: np.ndarray) -> float:
        from qsdm.metrics import lite0

        return frechet(Gaussian.of(features), read_reference(self.path, lite0.NUM_FEATURES))


@dataclass(frozen=True, slots=True)
class FrechetInception:
    """``fid``: over 2048 features of the original FID's Inception, as ported by torch-fidelity.

    Attributes:
        reference: safetensors file with mean [2048] and cov [2048, 2048] of the reference pictures
            (see `write_reference`).
    """

    reference: str
    name: str = "fid"
    larger_is_better: bool = False
    label: str = "FID"
    digits: int = 2

    @property
    def version(self) -> str:
        return (
            f"inception-v3-compat 2048, reference {file_digest(Path(self.reference).expanduser())}"
        )

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.inception(images)

    def reduce(self, features: np.ndarray) -> float:
        return frechet(
            Gaussian.of(features), read_reference(Path(self.reference).expanduser(), 2048)
        )
