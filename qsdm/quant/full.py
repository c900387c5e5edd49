"""Full precision: unchanged values in 16 or 32 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qsdm.quant.method import Fit


def stored(_bits: int, _rows: int, _fan_in: int) -> dict[str, Stored]:
    """Nothing beside the values."""
    return {}


def fit(
    _x: np.ndarray, widths: Sequence[int], weight: torch.Tensor, _importance: np.ndarray | None
) -> Iterable[Fit]:
    """The bytes of the values in float16 or float32."""
    return ((values(weight, bits), {}) for bits in widths)


def values(weight: torch.Tensor, bits: int) -> np.ndarray:
    """The bytes of a weight's values in float16 or float32.

    Args:
        weight: of any shape and floating type, on the CPU.
        bits: 16 or 32.

    Returns:
        uint8 [numel * bits / 8].
    """
    import torch

    return weight.to(dtype_of(bits)).view(-1).view(torch.uint8).numpy()


def dtype_of(bits: int) -> torch.dtype:
    """The type in which the values are stored.

    Args:
        bits: 16 or 32.
    """
    import torch

    return torch.float16 if bits == 16 else torch.float32


FULL = Method("fp", (16, 32), stored, fit, None)
