"""How well a picture fits its caption: the cosine of their CLIP embeddings.

References:
    CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021), equation 1 without its
        factor 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.metrics import ZOO, MetricError, file_digest

BATCH = 64


@dataclass(frozen=True, slots=True)
class ClipScore:
    """``clip_score``: mean over pictures of max(cosine, 0), between 0 and 1 (some authors give 100 times that).

    Attributes:
        judge: a CLIP model with its processor in the layout of transformers: hub id or directory; ``zoo`` for the small
            one that qsdm ships for the emoji set, which no generator saw.
        revision: of the hub repository.
    """

    judge: str = "zoo"
    revision: str | None = None
    name: str = "clip_score"
    larger_is_better: bool = True

    @property
    def source(self) -> str:
        return str(ZOO / "judge") if self.judge == "zoo" else self.judge

    @property
    def version(self) -> str:
        directory = Path(self.source).expanduser()
        if directory.is_dir() or self.judge == "zoo":
            return f"clip {file_digest(directory)}"
        return f"clip {self.judge}@{self.revision or 'main'}"

    def features(self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None) -> np.ndarray:
        """Pictures and captions => cosine, float32 [N, 1]."""
        import torch
        from PIL import Image
        from torch.nn import functional as F

        model, processor, _ = _judge(self.source, self.revision)
        texts = [_text_embedding(self.source, self.revision, caption) for caption in captions]
        found = np.empty((len(images), 1), dtype=np.float32)
        with torch.inference_mode():
            for i in range(0, len(images), BATCH):
                batch = processor(
                    images=[Image.fromarray(image) for image in images[i : i + BATCH]], return_tensors="pt"
                )
                seen = F.normalize(_pooled(model.get_image_features(pixel_values=batch["pixel_values"])), dim=-1)
                found[i : i + BATCH, 0] = (seen * torch.stack(texts[i : i + BATCH])).sum(-1).numpy()
        return found

    def reduce(self, features: np.ndarray) -> float:
        return float(features.astype(np.float64).clip(0).mean())


def _pooled(out: Any) -> Any:
    return getattr(out, "pooler_output", out)  # transformers 5 wraps the embedding


@lru_cache(maxsize=2)
def _judge(source: str, revision: str | None) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    try:
        model = (
            CLIPModel.from_pretrained(source, revision=revision or "main", dtype="float32").eval().requires_grad_(False)
        )
        processor = CLIPImageProcessorPil.from_pretrained(source, revision=revision or "main")
        return model, processor, AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise MetricError(
            f"no CLIP model and processor at {source!r}: give the judge of clip_score in conf/metrics, "
            f"or download it once with `hf download {source}`"
        ) from error


@lru_cache(maxsize=16384)
def _text_embedding(source: str, revision: str | None, caption: str) -> Any:
    import torch
    from torch.nn import functional as F

    model, _, tokenizer = _judge(source, revision)
    with torch.inference_mode():
        tokens = tokenizer([caption], truncation=True, return_tensors="pt")
        return F.normalize(_pooled(model.get_text_features(**tokens)), dim=-1)[0]
