"""Uniform affine quantization: equidistant values between a searched smallest and largest one.

=============  ============================================================
uaq            per output channel, 10 factors (the paper's)
uaq_refined    the same with a finer search
uaq_asym       the same with both ends of the range searched apart
uaq_g32/64/128 a scale for every 32, 64 or 128 inputs of a channel
=============  ============================================================

The search and its sources: `qsdm.quant.uaq`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qsdm.quant.method import Fit

BITS = range(2, 9)  # of a code; 8 is the widest that is packed


def uniform(name: str, search: str = "GRID", group_size: int | None = None) -> Method:
    """A member of the family.

    Args:
        search: name of the constant in `qsdm.quant.uaq`.
        group_size: inputs that share a scale; None for a scale per output channel.
    """

    def stored(bits: int, rows: int, fan_in: int) -> dict[str, Stored]:
        per = (rows,) if group_size is None else (rows, method.num_groups(fan_in))
        return {"scale": ("float16", per), "zero_point": ("float16", per)}

    def fit(x: np.ndarray, widths: Sequence[int], weight: torch.Tensor) -> Iterable[Fit]:
        from qsdm.quant import uaq

        return (uaq.fit(x, bits, group_size, getattr(uaq, search)) for bits in widths)

    method = Method(name, BITS, stored, fit, table, group_size)
    return method


def table(tensors: Mapping[str, torch.Tensor], bits: int, groups: slice) -> torch.Tensor:
    """``(code - zero_point) * scale``, float32 [groups, 2**bits]."""
    import torch

    scale, zero_point = (
        tensors[part].reshape(-1, 1)[groups].float() for part in ("scale", "zero_point")
    )
    codes = torch.arange(2**bits, dtype=torch.float32, device=scale.device)
    return (codes - zero_point) * scale


UAQ = uniform("uaq")
UAQ_REFINED = uniform("uaq_refined", "REFINED")
UAQ_ASYM = uniform("uaq_asym", "ASYMMETRIC")
UAQ_G32 = uniform("uaq_g32", group_size=32)
UAQ_G64 = uniform("uaq_g64", group_size=64)
UAQ_G128 = uniform("uaq_g128", group_size=128)
