"""8-bit floating point, e4m3, with a scale per output channel.

References:
    FP8 Formats for Deep Learning (Micikevicius et al., 2022), table 1: e4m3, largest number 448.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import torch

    from qsdm.quant.method import Fit

LARGEST = 448.0  # Micikevicius et al., table 1


def stored(_bits: int, rows: int, _fan_in: int) -> dict[str, Stored]:
    """A scale for every output channel."""
    return {"scale": ("float16", (rows,))}


def fit(
    x: np.ndarray, _widths: Sequence[int], _weight: torch.Tensor, _importance: np.ndarray | None
) -> Iterable[Fit]:
    """Codes are the bits of e4m3 numbers; a channel's largest magnitude becomes 448."""
    import torch

    scale = (np.abs(x).max(1) / np.float32(LARGEST)).astype(np.float16)
    scale = np.where(scale > 0, scale, np.float16(2.0**-24 if x.any() else 1.0))
    scaled = np.clip(x / scale.astype(np.float32)[:, None], -LARGEST, LARGEST)
    codes = torch.from_numpy(scaled).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return [(codes, {"scale": scale})]


def table(tensors: Mapping[str, torch.Tensor], _bits: int, groups: slice) -> torch.Tensor:
    """The 256 values of e4m3, scaled; the two codes of NaN, which no fit writes, are 0."""
    import torch

    scale = tensors["scale"][groups].float()
    codes = torch.arange(256, dtype=torch.int32, device=scale.device).to(torch.uint8)
    return codes.view(torch.float8_e4m3fn).float().nan_to_num(0.0)[None] * scale[:, None]


FP8_E4M3 = Method("fp8_e4m3", (8,), stored, fit, table)
