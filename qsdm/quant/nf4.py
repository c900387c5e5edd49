"""NF4: quantiles of the normal distribution in groups of 64 inputs, double-quantized scales.

References:
    QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023), section 3 and appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import torch

    from qsdm.quant.method import Fit

GROUP = 64  # as bitsandbytes' default
SCALES = 256  # scales that share one scale: QLoRA, section 3, double quantization

# Quantiles of a normal distribution, normalized to [-1, 1], with an exact zero (QLoRA, appendix E)
VALUES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip


def stored(_bits: int, rows: int, fan_in: int) -> dict[str, Stored]:
    """8-bit scales, a 32-bit scale for every 256 of them, and a 32-bit mean."""
    scales = rows * math.ceil(fan_in / GROUP)
    return {
        "scale": ("int8", (scales,)),
        "scale_scale": ("float32", (math.ceil(scales / SCALES),)),
        "scale_mean": ("float32", (1,)),
    }


def fit(
    x: np.ndarray, _widths: Sequence[int], _weight: torch.Tensor, _importance: np.ndarray | None
) -> Iterable[Fit]:
    """A group's scale is its largest magnitude, stored as ``mean + q * scale_scale``."""
    import torch

    from qsdm.quant import kmeans

    rows, n = x.shape
    padded = np.zeros((rows, NF4_G64.num_groups(n) * GROUP), np.float32)
    padded[:, :n] = x
    largest = np.abs(padded.reshape(-1, GROUP)).max(1)
    mean = np.float32(largest.mean(dtype=np.float64))
    blocks = np.zeros(math.ceil(largest.size / SCALES) * SCALES, np.float32)
    blocks[: largest.size] = largest - mean
    blocks = blocks.reshape(-1, SCALES)
    unit = np.abs(blocks).max(1) / np.float32(127.0)
    q = np.rint(blocks / np.where(unit > 0, unit, 1)[:, None]).reshape(-1)[: largest.size]
    tensors = {"scale": q.astype(np.int8), "scale_scale": unit, "scale_mean": np.array([mean])}
    values = table({k: torch.from_numpy(v) for k, v in tensors.items()}, 4, slice(None)).numpy()
    codes = kmeans.encode(padded.reshape(-1, GROUP), values).reshape(rows, -1)[:, :n]
    return [(np.ascontiguousarray(codes), tensors)]


def table(tensors: Mapping[str, torch.Tensor], _bits: int, groups: slice) -> torch.Tensor:
    """The 16 quantiles, scaled. A scale that rounding made negative counts as 0."""
    import torch

    scale = tensors["scale"]
    units = tensors["scale_scale"].repeat_interleave(SCALES)[: scale.numel()]
    scale = (scale.float() * units + tensors["scale_mean"]).clamp(min=0)[groups]
    return scale[:, None] * torch.from_numpy(VALUES).to(scale.device)


NF4_G64 = Method("nf4_g64", (4,), stored, fit, table, GROUP)
