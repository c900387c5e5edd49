"""The contract of a quantization method: one `Method` per name, listed in `qsdm.quant.methods`.

A fit of ``x``, float32 [rows, fan_in], gives codes, uint8 of the same shape, and tensors by name as they are stored. A
table made of these tensors, float32 [groups, 2**bits], holds the value of every code in every group, where a group is
a run of values of one row. Stored numbers are rounded before the codes are chosen: decoding gives what the fit saw.

A method's file is imported whenever a configuration is read, so it imports torch and its kernels inside its functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    Fit = tuple[np.ndarray, dict[str, np.ndarray]]
    Fitter = Callable[[np.ndarray, Sequence[int], torch.Tensor], Iterable[Fit]]
    Table = Callable[[Mapping[str, torch.Tensor], int, slice], torch.Tensor]

Stored = tuple[str, tuple[int, ...]]
"""Type, as torch and numpy call it, and shape of a stored tensor."""

BITS_OF = {"float16": 16, "float32": 32, "int8": 8}


@dataclass(frozen=True, slots=True)
class Method:
    """What a name such as ``uaq_g64`` does to a weight, and what is stored.

    Attributes:
        name: as it stands in artifacts, where it must keep its meaning for years.
        bits: widths of a code that the method has.
        stored: (bits, rows, fan_in) => tensors beside the codes, by name. Those of float16 count as ``full_bits`` in
            the cost model, as the paper counts scales and codebooks.
        fit: (x float32 [rows, fan_in], widths, the weight as it was given) => codes uint8 [rows, fan_in] and tensors
            for each width, in their order. What widths share is computed once.
        table: (tensors, bits, groups) => float32 [groups, 2**bits] on the tensors' device: the value of every code in
            the groups of the slice. None if codes are the values themselves, as in full precision.
        group_size: input values that share a line of the table; None for all of a row's.
        per_tensor: one line serves the whole weight.
    """

    name: str
    bits: Sequence[int]
    stored: Callable[[int, int, int], dict[str, Stored]]
    fit: Fitter
    table: Table | None
    group_size: int | None = None
    per_tensor: bool = False

    def num_groups(self, fan_in: int) -> int:
        """Lines of the table that a row of ``fan_in`` values takes."""
        return math.ceil(fan_in / self.group_size) if self.group_size else 1

    def overhead_bits(self, bits: int, rows: int, fan_in: int, full_bits: int) -> int:
        """Bits of scales, zero points and codebooks beside the codes.

        Args:
            bits: of a code.
            rows: output channels.
            fan_in: values of a row.
            full_bits: P, the precision in which the paper stores scales and codebooks, 16 or 32.
        """
        return sum(
            (full_bits if dtype == "float16" else BITS_OF[dtype]) * math.prod(shape)
            for dtype, shape in self.stored(bits, rows, fan_in).values()
        )
