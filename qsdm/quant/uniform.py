"""Uniform affine quantization: equidistant values over a range that is searched.

=============  ============================================================
uaq            per output channel, 10 candidate ranges (the paper's)
uaq_refined    the same with a finer search
uaq_asym       the same with the two ends of the range searched separately
uaq_g32/64/128 a scale for every 32, 64 or 128 inputs of a channel
uaq_w          per output channel, 10 candidate ranges, errors weighted by what the inputs are like
=============  ============================================================

The search and its sources: `qsdm.quant.uaq`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qsdm.quant.method import Method, Stored

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qsdm.quant.method import Fit

BITS = range(2, 9)  # 8 is the widest code that is packed


def uniform(name: str, search: str = "GRID", group_size: int | None = None) -> Method:
    """A method of this family.

    Args:
        name: of the method.
        search: the constant of `qsdm.quant.uaq` that names the search.
        group_size: inputs that share a scale; None: a scale per output channel.
    """

    def stored(_bits: int, rows: int, fan_in: int) -> dict[str, Stored]:
        shape = (rows,) if group_size is None else (rows, method.num_groups(fan_in))
        return {"scale": ("float16", shape), "zero_point": ("float16", shape)}

    def fit(
        x: np.ndarray, widths: Sequence[int], _weight: torch.Tensor, _importance: np.ndarray | None
    ) -> Iterable[Fit]:
        from qsdm.quant import uaq

        return (uaq.fit(x, bits, group_size, getattr(uaq, search)) for bits in widths)

    method = Method(name, BITS, stored, fit, table, group_size)
    return method


def fit_weighted(
    x: np.ndarray, widths: Sequence[int], _weight: torch.Tensor, importance: np.ndarray | None
) -> Iterable[Fit]:
    """See `qsdm.quant.uaq.fit_weighted`."""
    from qsdm.quant import uaq

    return (uaq.fit_weighted(x, bits, importance) for bits in widths)


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
UAQ_W = replace(UAQ, name="uaq_w", fit=fit_weighted, is_weighted=True)
UAQ_G32 = uniform("uaq_g32", group_size=32)
UAQ_G64 = uniform("uaq_g64", group_size=64)
UAQ_G128 = uniform("uaq_g128", group_size=128)
