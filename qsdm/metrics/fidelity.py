"""How near a picture is to that which the full-precision denoiser draws from the same caption and starting noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CAP_DB = 100.0  # of a picture that is equal in all pixels, whose ratio is infinite


@dataclass(frozen=True, slots=True)
class Psnr:
    """``psnr``: mean over pictures of 10 log10(255^2 / mean squared error), in dB; None for full precision itself."""

    name: str = "psnr"
    larger_is_better: bool = True

    @property
    def version(self) -> str:
        return f"8 bit, RGB, mean of pictures, at most {CAP_DB:g} dB"

    def features(self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None) -> np.ndarray:
        """Pictures => dB, float32 [N, 1]; [N, 0] for full precision."""
        if full is None:
            return np.empty((len(images), 0), dtype=np.float32)
        if full.shape != images.shape:
            raise ValueError(f"psnr needs full-precision pictures of the same shape {images.shape} (got {full.shape})")
        error = np.square(images.astype(np.float32) - full.astype(np.float32)).mean((1, 2, 3))
        floor = 255.0**2 / 10 ** (CAP_DB / 10)
        return (10 * np.log10(255.0**2 / np.maximum(error, floor)))[:, None].astype(np.float32)

    def reduce(self, features: np.ndarray) -> float | None:
        return float(features.astype(np.float64).mean()) if features.shape[1] else None
