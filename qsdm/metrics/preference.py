"""Human preference, as networks learned it from people's choices; for pictures of large models.

Both metrics download their network once, as safetensors in the format of imscore.

References:
    ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (Xu et al.,
        2023).
    Human Preference Score v2 (Wu et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.metrics import MetricError, file_digest, networks

BATCH = 16
NETWORKS = {"image_reward": "RE-N-Y/ImageReward", "hps": "RE-N-Y/hpsv21"}
LABELS = {"image_reward": "ImageReward", "hps": "HPS v2.1"}


@dataclass(frozen=True, slots=True)
class Preference:
    """``image_reward`` or ``hps``: the mean score over pictures.

    Attributes:
        name: ``image_reward``, standardized: about 0 for an average picture; or ``hps``, version
            2.1, about 0.2 to 0.3.
        network: its hub id or directory; None for the published one.
    """

    name: str
    network: str | None = None
    larger_is_better: bool = True
    label: str = ""
    digits: int = 4

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"wanted one of {', '.join(NETWORKS)} (got {self.name!r})")
        object.__setattr__(self, "label", self.label or LABELS[self.name])

    @property
    def source(self) -> str:
        """Hub id or directory of the network."""
        return self.network or NETWORKS[self.name]

    @property
    def version(self) -> str:
        directory = Path(self.source).expanduser()
        return f"imscore {file_digest(directory) if directory.is_dir() else self.source}"

    def features(
        self, images: np.ndarray, captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        """A score of every picture, float32 [N, 1]; captions are cut to 35 tokens, by hps to 77."""
        import torch

        network = _network(self.name, self.source)
        scores = []
        with torch.inference_mode():
            for i in range(0, len(images), BATCH):
                pixels = networks.pixels(images[i : i + BATCH])
                scores.append(network.score(pixels, list(captions[i : i + BATCH])).reshape(-1, 1))
            return torch.cat(scores).float().numpy()

    def reduce(self, features: np.ndarray) -> float:
        return float(features.astype(np.float64).mean())


@lru_cache(maxsize=2)
def _network(name: str, source: str) -> Any:
    try:
        if name == "hps":
            from imscore.hps.model import HPSv2 as Network
        else:
            Network = _image_reward()
        return Network.from_pretrained(source).eval()
    except Exception as error:  # packages and hubs fail in many ways
        raise MetricError(
            f"{name} needs the package imscore and its network {source} ({error}): run pip install "
            f"'qsdm[preference]', or measure without the metric {name}"
        ) from error


def _image_reward() -> Any:
    """imscore 0.0.11's class, whose tokenizer gets an attribute that transformers 5 removed."""
    from imscore.imreward import model

    class BertTokenizer(model.BertTokenizer):  # type: ignore[name-defined,misc]
        @property
        def additional_special_tokens_ids(self) -> list[int]:
            return [self.convert_tokens_to_ids("[ENC]")]

    model.BertTokenizer = BertTokenizer
    return model.ImageReward
