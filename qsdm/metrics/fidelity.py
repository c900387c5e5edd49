"""How close a picture is to its full-precision twin of the same caption and starting noise.

References:
    Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004),
        equation 13: SSIM.
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        equation 1: LPIPS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qsdm.metrics import MetricError, networks

CAP_DB = 100.0  # where all pixels are equal the ratio would be infinite


def _pairs(
    name: str,
    images: np.ndarray,
    full: np.ndarray | None,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """``compare`` for each pair of pictures, float32 [N, 1]; [N, 0] for full precision itself."""
    if full is None:
        return np.empty((len(images), 0), dtype=np.float32)
    if full.shape != images.shape:
        raise ValueError(
            f"{name} needs full-precision pictures of the same shape {images.shape} "
            f"(got {full.shape})"
        )
    return compare(images, full).astype(np.float32)[:, None]


def _mean(features: np.ndarray) -> float | None:
    return float(features.astype(np.float64).mean()) if features.shape[1] else None


@dataclass(frozen=True, slots=True)
class Psnr:
    """``psnr``: mean over pictures of 10 log10(255^2 / mean squared error), in dB.

    None for full precision itself.
    """

    name: str = "psnr"
    larger_is_better: bool = True
    label: str = "PSNR, dB"
    digits: int = 2

    @property
    def version(self) -> str:
        return f"8 bit, RGB, mean of pictures, at most {CAP_DB:g} dB"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean((1, 2, 3))
            decibels = 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 10 ** (CAP_DB / 10)))
            return np.minimum(decibels, CAP_DB)  # a logarithm of float32 may be a bit larger

        return _pairs(self.name, images, full, compare)

    def reduce(self, features: np.ndarray) -> float | None:
        return _mean(features)


@dataclass(frozen=True, slots=True)
class Ssim:
    """``ssim``: structural similarity with a Gaussian window, mean over pictures, at most 1.

    None for full precision itself.
    """

    name: str = "ssim"
    larger_is_better: bool = True
    label: str = "SSIM"
    digits: int = 3

    @property
    def version(self) -> str:
        return "torchmetrics, RGB, gaussian 11 x 11 sigma 1.5"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            from torchmetrics.functional.image import structural_similarity_index_measure as ssim

            batches = [
                ssim(
                    networks.pixels(a[i : i + 64]),
                    networks.pixels(b[i : i + 64]),
                    data_range=1.0,
                    reduction="none",
                ).reshape(-1)  # type: ignore[union-attr]
                for i in range(0, len(a), 64)
            ]
            return np.concatenate(batches)

        return _pairs(self.name, images, full, compare)

    def reduce(self, features: np.ndarray) -> float | None:
        return _mean(features)


@dataclass(frozen=True, slots=True)
class Lpips:
    """``lpips``: distance in the features of a network, mean over pictures, 0 or more.

    None for full precision itself.

    Attributes:
        network: alex, vgg or squeeze; its weights are downloaded once.
    """

    network: str = "alex"
    name: str = "lpips"
    larger_is_better: bool = False
    label: str = "LPIPS"
    digits: int = 4

    @property
    def version(self) -> str:
        return f"lpips {self.network} 0.1"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            import torch

            network = _lpips(self.network)
            with torch.inference_mode():
                batches = [
                    network(
                        2 * networks.pixels(a[i : i + 16]) - 1,
                        2 * networks.pixels(b[i : i + 16]) - 1,
                    ).reshape(-1)
                    for i in range(0, len(a), 16)
                ]
            return np.concatenate(batches)

        return _pairs(self.name, images, full, compare)

    def reduce(self, features: np.ndarray) -> float | None:
        return _mean(features)


@lru_cache(maxsize=1)
def _lpips(network: str) -> Any:
    try:
        import lpips

        return lpips.LPIPS(net=network, verbose=False).eval()
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        raise MetricError(
            f"lpips needs the packages lpips and torchvision and its weights ({error}): run pip "
            "install 'qsdm[lpips]', or measure without the metric lpips"
        ) from error


@dataclass(frozen=True, slots=True)
class FeatureDistance:
    """``lite0_distance``: mean over pictures of |f(x) - f(y)|^2 in the features f of Lite0.

    None for full precision itself. A few pictures suffice to rank configurations, before a distance
    between distributions can (see experiments/fidelity).
    """

    name: str = "lite0_distance"
    larger_is_better: bool = False
    label: str = "lite0 distance"
    digits: int = 1

    @property
    def version(self) -> str:
        from qsdm.metrics import lite0

        return f"lite0 {lite0.version()}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        return _pairs(
            self.name,
            images,
            full,
            lambda a, b: np.square(networks.lite0(a) - networks.lite0(b)).sum(1),
        )

    def reduce(self, features: np.ndarray) -> float | None:
        return _mean(features)
