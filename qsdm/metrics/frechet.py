"""Fréchet distance between the features of pictures and those of reference pictures.

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

With any factors C = A A^T the last trace is the sum of the singular values of A1^T A2 (the nuclear norm). This form is
symmetric, takes no root of a rounding error, and is small for few pictures: A^T is then the centred features
themselves.

References:
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017), equation 6.
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
    """Mean float64 [D] and a factor float64 [D, R] of the covariance C = factor factor^T."""

    mean: np.ndarray
    factor: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> Gaussian:
        """Of features [N, D], with the unbiased covariance; N at least 2."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"a Fréchet distance needs features [N, D] of two or more pictures (got shape {features.shape})"
            )
        values = features.astype(np.float64)
        mean = values.mean(0)
        centred = (values - mean) / np.sqrt(len(values) - 1)
        if len(values) > values.shape[1]:
            centred = np.linalg.qr(centred, mode="r")  # C = R^T Q^T Q R
        return Gaussian(mean, centred.T)

    @staticmethod
    def of_moments(mean: np.ndarray, cov: np.ndarray) -> Gaussian:
        """Of a mean [D] and a symmetric covariance [D, D]."""
        if cov.shape != (len(mean), len(mean)):
            raise ValueError(
                f"wanted a mean [D] and a covariance [D, D] (got shapes {mean.shape} and {cov.shape})"
            )
        cov = cov.astype(np.float64)
        values, vectors = np.linalg.eigh((cov + cov.T) / 2)
        return Gaussian(mean.astype(np.float64), vectors * np.sqrt(values.clip(0)))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two normal distributions; 0 for equal ones, never negative."""
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    distance = (
        np.square(a.mean - b.mean).sum()
        + np.square(a.factor).sum()
        + np.square(b.factor).sum()
        - 2 * cross
    )
    return max(0.0, float(distance))


def read_reference(path: Path, num_features: int) -> Gaussian:
    """Mean [D] and covariance [D, D], the tensors ``mean`` and ``cov`` of a safetensors file.

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
            f"{path} is damaged or no reference, which has tensors mean and cov ({error}): make or restore it"
        ) from error
    if mean.shape != (num_features,) or cov.shape != (num_features, num_features):
        raise MetricError(
            f"wanted a reference of {num_features} features (got mean {mean.shape} and cov {cov.shape} in {path})"
        )
    return Gaussian.of_moments(mean, cov)


def write_reference(path: Path, features: np.ndarray) -> None:
    """Store mean and covariance of the reference pictures' features [N, D]."""
    values = features.astype(np.float64)
    moments = {"mean": values.mean(0), "cov": np.cov(values, rowvar=False)}
    write_tensors(path, moments, {"num_images": len(values)})


@dataclass(frozen=True, slots=True)
class FrechetLite0:
    """``fd_lite0``: over 112 features of EfficientNet-Lite0, for small pictures. It is not FID and not comparable with
    it.

    Attributes:
        reference: safetensors file with mean [112] and cov [112, 112] of the reference pictures; ``zoo`` for that of
            the emoji set.
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
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        return networks.lite0(images)

    def reduce(self, features: np.ndarray) -> float:
        from qsdm.metrics import lite0

        return frechet(Gaussian.of(features), read_reference(self.path, lite0.NUM_FEATURES))


@dataclass(frozen=True, slots=True)
class FrechetInception:
    """``fid``: over the 2048 pooled features of the Inception network of the original FID, as torch-fidelity ports it.

    Attributes:
        reference: safetensors file with mean [2048] and cov [2048, 2048] of the reference pictures (see
            `write_reference`).
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
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        return networks.inception(images)

    def reduce(self, features: np.ndarray) -> float:
        return frechet(
            Gaussian.of(features), read_reference(Path(self.reference).expanduser(), 2048)
        )
