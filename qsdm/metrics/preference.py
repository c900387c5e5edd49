"""What people would prefer, as networks learned it from their choices. For pictures of real models; both download
their network once.

References:
    ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (Xu et al., 2023).
    Human Preference Score v2 (Wu et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qsdm.metrics import MetricError


@dataclass(frozen=True, slots=True)
class ImageReward:
    """``image_reward``: mean over pictures; about 0 for a mean picture, with a deviation of 1."""

    network: str = "ImageReward-v1.0"
    name: str = "image_reward"
    larger_is_better: bool = True

    @property
    def version(self) -> str:
        return self.network

    def features(self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None) -> np.ndarray:
        """Pictures and captions => reward, float32 [N, 1]."""
        from PIL import Image

        network = _image_reward(self.network)
        scores = [network.score(text, Image.fromarray(image)) for image, text in zip(images, captions, strict=True)]
        return np.array(scores, dtype=np.float32)[:, None]

    def reduce(self, features: np.ndarray) -> float:
        return float(features.astype(np.float64).mean())


@lru_cache(maxsize=1)
def _image_reward(network: str) -> Any:
    try:
        import ImageReward as package  # noqa: N813

        return package.load(network)
    except Exception as error:  # the package fails in many ways beside a transformers that is too new for it
        raise MetricError(
            f"image_reward needs the package image-reward and its network ({error}): pip install 'qsdm[preference]', "
            "or measure without the metric image_reward"
        ) from error


@dataclass(frozen=True, slots=True)
class Hps:
    """``hps``: Human Preference Score, mean over pictures, about 0.2 to 0.3."""

    network: str = "v2.1"
    name: str = "hps"
    larger_is_better: bool = True

    @property
    def version(self) -> str:
        return f"hps {self.network}"

    def features(self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None) -> np.ndarray:
        """Pictures and captions => score, float32 [N, 1]."""
        from PIL import Image

        score = _hps()
        found = [
            score(Image.fromarray(image), text, hps_version=self.network)[0]
            for image, text in zip(images, captions, strict=True)
        ]
        return np.array(found, dtype=np.float32)[:, None]

    def reduce(self, features: np.ndarray) -> float:
        return float(features.astype(np.float64).mean())


@lru_cache(maxsize=1)
def _hps() -> Any:
    try:
        import hpsv2

        return hpsv2.score
    except Exception as error:
        raise MetricError(
            f"hps needs the package hpsv2 ({error}): pip install 'qsdm[preference]', or measure without the metric hps"
        ) from error
