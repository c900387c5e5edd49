"""What a pipeline's call returns => pictures; of videos evenly spaced frames count as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsdm.outcome import EvaluationError


def evenly_spaced(num: int, length: int) -> list[int]:
    """Indices of ``num`` of ``length`` frames: the middles of as many equal parts."""
    return [(2 * k + 1) * length // (2 * num) for k in range(num)]


def pictures_of(output: Any, frames: int) -> Tensor:
    """The pictures of a pipeline's output, float [N * frames, 3, H, W] from 0 to 1; those of a video stay together.

    Args:
        output: has ``images``, or ``frames`` of videos: tensors, arrays or PIL pictures.
        frames: of each drawing.

    Raises:
        EvaluationError: the output holds neither, or shorter videos.
    """
    if (images := getattr(output, "images", None)) is not None:
        pictures = _tensor(images)
        return pictures.flatten(0, -4)
    if (videos := getattr(output, "frames", None)) is None:
        raise EvaluationError(
            f"the pipeline returns {type(output).__name__}, neither pictures nor videos: it cannot be measured"
        )
    pictures = _tensor(videos)
    if pictures.dim() == 4:  # one video without a batch
        pictures = pictures[None]
    length = pictures.shape[1]
    if length < frames:
        raise EvaluationError(
            f"the pipeline draws videos of {length} frames, of which {frames} cannot be taken: "
            f"give frames={length}"
        )
    return pictures[:, evenly_spaced(frames, length)].flatten(0, 1)


def _tensor(pictures: Any) -> Tensor:
    """Tensors, arrays or PIL pictures in nested lists => float [..., 3, H, W]."""
    if isinstance(pictures, list | tuple):
        return torch.stack([_tensor(entry) for entry in pictures])
    if isinstance(pictures, Tensor):
        found = pictures
    elif isinstance(pictures, np.ndarray):
        found = torch.from_numpy(pictures)
    else:
        found = torch.from_numpy(np.array(pictures.convert("RGB"), dtype=np.float32) / 255)
    if found.shape[-3] not in (1, 3) and found.shape[-1] in (1, 3):
        found = found.movedim(-1, -3)
    return found
