"""What a pipeline's call returns => pictures; of videos, evenly spaced frames count as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsdm.outcome import EvaluationError


def evenly_spaced(num: int, length: int) -> list[int]:
    """Choose frames of a video: the middles of equal parts.

    Args:
        num: how many.
        length: frames of the video.

    Returns:
        Their indices.
    """
    return [(2 * k + 1) * length // (2 * num) for k in range(num)]


def pictures_of(output: Any, frames: int) -> Tensor:
    """Take the pictures out of a pipeline's output.

    Args:
        output: has ``images``, or ``frames`` of videos: tensors, arrays or PIL pictures.
        frames: pictures that are taken of each drawing.

    Returns:
        Pictures, float [N * frames, 3, H, W] from 0 to 1; those of a video lie together.

    Raises:
        EvaluationError: the output holds neither, or shorter videos.
    """
    if (images := getattr(output, "images", None)) is not None:
        pictures = _tensor(images)
        return pictures.flatten(0, -4)
    if (videos := getattr(output, "frames", None)) is None:
        raise EvaluationError(
            f"the pipeline returns {type(output).__name__}, neither pictures nor videos: "
            "it cannot be measured"
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
        tensor = pictures
    elif isinstance(pictures, np.ndarray):
        tensor = torch.from_numpy(pictures)
    else:
        tensor = torch.from_numpy(np.array(pictures.convert("RGB"), dtype=np.float32) / 255)
    if tensor.shape[-3] not in (1, 3) and tensor.shape[-1] in (1, 3):
        tensor = tensor.movedim(-1, -3)
    return tensor
