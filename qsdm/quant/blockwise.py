"""Formats of other engines for comparison: NF4 with double-quantized scales per group, fp8 with a scale per channel.

References:
    QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023), section 3 and appendix E.
    FP8 Formats for Deep Learning (Micikevicius et al., 2022), table 1: e4m3, largest number 448.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from qsdm.quant import kmeans

# Quantiles of the normal distribution, normalised to [-1, 1], with an exact zero (QLoRA, appendix E).
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
_SCALES = 256  # scales that share one scale
_LARGEST_E4M3 = 448.0


def fit_nf4(x: np.ndarray, group: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes uint8 [rows, n]; scale int8 [rows * groups], scale_scale fp32 [per 256 of them], scale_mean fp32 [1].

    A group's scale is its largest magnitude, stored as ``mean + q * scale_scale`` with q in -127 ... 127.
    """
    rows, n = x.shape
    groups = math.ceil(n / group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :n] = x
    largest = np.abs(padded.reshape(-1, group)).max(1)
    mean = np.float32(largest.mean(dtype=np.float64))
    blocks = np.zeros(math.ceil(largest.size / _SCALES) * _SCALES, np.float32)
    blocks[: largest.size] = largest - mean
    blocks = blocks.reshape(-1, _SCALES)
    unit = np.abs(blocks).max(1) / np.float32(127.0)
    q = (
        np.rint(blocks / np.where(unit > 0, unit, 1)[:, None])
        .reshape(-1)[: largest.size]
        .astype(np.int8)
    )
    tensors = {"scale": q, "scale_scale": unit, "scale_mean": np.array([mean])}
    codes = kmeans.encode(padded.reshape(-1, group), table_nf4(**tensors)).reshape(rows, -1)[:, :n]
    return np.ascontiguousarray(codes), tensors


def table_nf4(scale: np.ndarray, scale_scale: np.ndarray, scale_mean: np.ndarray) -> np.ndarray:
    """Float32 [groups, 16]. A scale that rounding made negative is 0."""
    units = np.repeat(scale_scale, _SCALES)[: scale.size]
    return (
        np.maximum(scale.astype(np.float32) * units + scale_mean[0], np.float32(0.0))[:, None] * NF4
    )


def fit_fp8(x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Codes uint8 [rows, n], the bits of e4m3 numbers; scale fp16 [rows]: the row's largest magnitude becomes 448."""
    scale = (np.abs(x).max(1) / np.float32(_LARGEST_E4M3)).astype(np.float16)
    scale = np.where(scale > 0, scale, np.float16(2.0**-24 if x.any() else 1.0))
    scaled = np.clip(x / scale.astype(np.float32)[:, None], -_LARGEST_E4M3, _LARGEST_E4M3)
    return torch.from_numpy(scaled).to(torch.float8_e4m3fn).view(torch.uint8).numpy(), {
        "scale": scale
    }


def table_fp8(scale: np.ndarray) -> np.ndarray:
    """Float32 [rows, 256]; the two codes of NaN, which no fit writes, are 0."""
    values = (
        torch.arange(256, dtype=torch.int32)
        .to(torch.uint8)
        .view(torch.float8_e4m3fn)
        .float()
        .nan_to_num(0.0)
        .numpy()
    )
    return values[None] * scale.astype(np.float32)[:, None]
