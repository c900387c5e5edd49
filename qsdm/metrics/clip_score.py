"""How well a picture fits its caption: the cosine of their CLIP embeddings.

References:
    CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021),
        equation 1 without its factor 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.metrics.networks import clip_caption, clip_pictures, clip_version


@dataclass(frozen=True, slots=True)
class ClipScore:
    """``clip_score``: mean over pictures of max(cosine, 0), 0 to 1; some report 100 times that.

    Attributes:
        judge: a CLIP model with its processor in the layout of transformers: hub id or directory;
            ``zoo`` for the small one that ships with qsdm for the emoji set and took no part in the
            training of the generators.
        revision: branch, tag or commit of the hub repository; None for its main branch.
    """

    judge: str = "zoo"
    revision: str | None = None
    name: str = "clip_score"
    larger_is_better: bool = True
    label: str = "CLIP score"
    digits: int = 4

    @property
    def version(self) -> str:
        return clip_version(self.judge, self.revision)

    def features(
        self, images: np.ndarray, captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        """The cosine of every picture and its caption, float32 [N, 1]."""
        import torch

        of_images = torch.from_numpy(clip_pictures(self.judge, self.revision, images))
        of_captions = torch.stack(
            [clip_caption(self.judge, self.revision, caption) for caption in captions]
        )
        return (of_images * of_captions).sum(-1, keepdim=True).numpy()

    def reduce(self, features: np.ndarray) -> float:
        return float(features.astype(np.float64).clip(0).mean())
