"""Maximum mean discrepancy between the features of pictures and those of reference pictures.

Unlike the estimate of a Fréchet distance, its estimate is unbiased at any number of pictures.

    mmd = E k(x, x') + E k(y, y') - 2 E k(x, y)        over pairs of different pictures

References:
    Demystifying MMD GANs (Bińkowski et al., 2018), section 3.1: KID, the kernel (x.y / D + 1)^3
        over features of Inception.
    Rethinking FID: Towards a Better Evaluation Metric for Image Generation (Jayasumana et al.,
        2024), section 4: CMMD, exp(-|x - y|^2 / (2 10^2)) over normalized CLIP embeddings, times
        1000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qsdm.metrics import networks
from qsdm.metrics.reference import Reference

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features [N, D], [M, D] => [N, M]

_SIGMA = 10.0  # both as in the paper on CMMD
_CMMD_SCALE = 1000.0


def discrepancy(kernel: Kernel, x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two sets of features.

    Args:
        kernel: features [N, D] and [M, D] => similarities [N, M].
        x: [N, D], N at least 2.
        y: [M, D], M at least 2.

    Returns:
        About 0, and sometimes below, for samples of one distribution.
    """
    return _discrepancies(kernel, x, [np.arange(len(x))], y, _within(kernel, y))[0]


def _discrepancies(
    kernel: Kernel, x: np.ndarray, subsets: Sequence[np.ndarray], y: np.ndarray, within_y: float
) -> list[float]:
    """The estimates of subsets of x. The kernel, most of the work, is evaluated once."""
    a = x.astype(np.float64)
    k = kernel(a, a)
    to_y = kernel(a, y.astype(np.float64)).mean(1)
    return [
        float(_mean_of_pairs(k[np.ix_(rows, rows)]) + within_y - 2 * to_y[rows].mean())
        for rows in subsets
    ]


def _within(kernel: Kernel, x: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows."""
    a = x.astype(np.float64)
    return _mean_of_pairs(kernel(a, a))


def _mean_of_pairs(k: np.ndarray) -> float:
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))


def _to_reference(
    kernel: Kernel,
    x: np.ndarray,
    subsets: Sequence[np.ndarray],
    reference: Reference,
    network: str,
) -> list[float]:
    y = reference.features(network, x.shape[1])
    within_y = _within_reference(kernel, reference, network, reference.version)
    return _discrepancies(kernel, x, subsets, y, within_y)


@lru_cache(maxsize=8)
def _within_reference(kernel: Kernel, reference: Reference, network: str, _version: str) -> float:
    """Most of the work, and the same for all pictures. A new ``_version`` computes it again."""
    return _within(kernel, reference.features(network, None))


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The kernel of KID.

    Args:
        a: [N, D].
        b: [M, D].

    Returns:
        [N, M].
    """
    base = a @ b.T / a.shape[1] + 1
    return base * base * base  # a tenth of the time of ** 3


def gaussian(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The kernel of CMMD.

    Args:
        a: [N, D].
        b: [M, D].

    Returns:
        [N, M].
    """
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.exp(-squares / (2 * _SIGMA**2))


@dataclass(frozen=True, slots=True)
class KernelLite0:
    """``kd_lite0``: the polynomial kernel over 112 features of EfficientNet-Lite0; not KID.

    Attributes:
        reference: see `Reference`.
    """

    reference: str = "zoo"
    name: str = "kd_lite0"
    larger_is_better: bool = False
    label: str = "kd_lite0"
    digits: int = 0

    @property
    def version(self) -> str:
        from qsdm.metrics import lite0

        return f"lite0 {lite0.version()}, {Reference(self.reference).version}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.lite0(images)

    def reduce(self, features: np.ndarray) -> float:
        return self.reduce_subsets(features, [np.arange(len(features))])[0]

    def reduce_subsets(self, features: np.ndarray, subsets: Sequence[np.ndarray]) -> list[float]:
        return _to_reference(polynomial, features, subsets, Reference(self.reference), "lite0")


@dataclass(frozen=True, slots=True)
class KernelInception:
    """``kid``: the polynomial kernel over the features of `qsdm.metrics.frechet.FrechetInception`.

    Attributes:
        reference: see `Reference`.
    """

    reference: str
    name: str = "kid"
    larger_is_better: bool = False
    label: str = "KID"
    digits: int = 5

    @property
    def version(self) -> str:
        return f"inception-v3-compat 2048, {Reference(self.reference).version}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.inception(images)

    def reduce(self, features: np.ndarray) -> float:
        return self.reduce_subsets(features, [np.arange(len(features))])[0]

    def reduce_subsets(self, features: np.ndarray, subsets: Sequence[np.ndarray]) -> list[float]:
        return _to_reference(polynomial, features, subsets, Reference(self.reference), "inception")


@dataclass(frozen=True, slots=True)
class Cmmd:
    """``cmmd``: the Gaussian kernel over CLIP's embeddings of the pictures, times 1000.

    Differs from the paper: the estimate is unbiased, so that small numbers of pictures can be
    compared; and the default CLIP is not ViT-L/14 at 336 px, but that of ``judge``.

    Attributes:
        reference: see `Reference`.
        judge: see `qsdm.metrics.clip_score.ClipScore`.
        revision: see `qsdm.metrics.clip_score.ClipScore`.
    """

    reference: str = "zoo"
    judge: str = "zoo"
    revision: str | None = None
    name: str = "cmmd"
    larger_is_better: bool = False
    label: str = "CMMD"
    digits: int = 4

    @property
    def version(self) -> str:
        clip = networks.clip_version(self.judge, self.revision)
        return f"{clip}, unbiased, {Reference(self.reference).version}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.clip_pictures(self.judge, self.revision, images)

    def reduce(self, features: np.ndarray) -> float:
        return self.reduce_subsets(features, [np.arange(len(features))])[0]

    def reduce_subsets(self, features: np.ndarray, subsets: Sequence[np.ndarray]) -> list[float]:
        values = _to_reference(gaussian, features, subsets, Reference(self.reference), "clip")
        return [_CMMD_SCALE * value for value in values]
