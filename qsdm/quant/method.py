"""The contract of a quantization method: one `Method` per name, listed in `qsdm.quant.methods`.

Fitting ``x``, float32 [rows, fan_in], returns codes, uint8 of the same shape, and tensors by name
as they are stored. The method's table computes from these tensors the value of every code in every
group, float32 [groups, 2**bits]; a group is a run of values of one row. The tensors are rounded to
their stored types before the codes are chosen, so that decoding gives exactly what the fit computed
with.

A method's file is imported whenever a configuration is read, so it imports torch and kernels inside
its functions.
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
    Fitter = Callable[[np.ndarray, Sequence[int], torch.Tensor, np.ndarray | None], Iterable[Fit]]
    Table = Callable[[Mapping[str, torch.Tensor], int, slice], torch.Tensor]

Stored = tuple[str, tuple[int, ...]]
"""Type and shape of a stored tensor; the type is a key of `BITS_OF`."""

BITS_OF = {"float16": 16, "float32": 32, "int8": 8}
"""Types that stored tensors may have, by their names in torch and numpy."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a name such as ``uaq_g64`` does to a weight, and what it stores.

    Example:
        >>> import numpy as np, torch
        >>> from qsdm.quant.methods import METHODS
        >>> method, x = METHODS["uaq"], np.float32([[-1.0, 0.0, 2.0]])
        >>> [(codes, tensors)] = method.fit(x, [2], torch.from_numpy(x), None)
        >>> codes.tolist(), method.table(
        ...     {name: torch.from_numpy(t) for name, t in tensors.items()}, 2, slice(None)
        ... ).tolist()
        ([[0, 1, 3]], [[-1.0, 0.0, 1.0, 2.0]])

    Attributes:
        name: its name in artifacts, where it must keep its meaning for years.
        bits: the widths of a code that the method offers, 2 to 8.
        stored: (bits, rows, fan_in) => type and shape of the tensors beside the codes, by name.
            Each value of a float16 tensor counts as ``full_bits`` bits in the cost model, as the
            paper counts scales and codebooks.
        fit: (x float32 [rows, fan_in], widths ascending, the original weight
            ``[out, in, *kernel]``, importance) => for each width in turn, codes uint8
            [rows, fan_in] and the tensors by name. What the widths share is computed once.
            The importance of each input value, positive float32 [fan_in], is read by methods that
            are weighted; None: all are alike.
        table: (tensors, bits, groups) => float32 ``[groups, 2**bits]`` on the tensors' device: the
            value of every code in the groups of the slice. None if the codes are the values
            themselves, as in full precision.
        group_size: input values that share a row of the table; None: all of an output channel.
        per_tensor: whether one row of the table serves the whole weight.
        is_weighted: whether the fit weights errors by the importance of the inputs that they meet.
    """

    name: str
    bits: Sequence[int]
    stored: Callable[[int, int, int], dict[str, Stored]]
    fit: Fitter
    table: Table | None
    group_size: int | None = None
    per_tensor: bool = False
    is_weighted: bool = False

    def num_groups(self, fan_in: int) -> int:
        """The number of groups in an output channel, each with a row of the table.

        Args:
            fan_in: values of an output channel.
        """
        return math.ceil(fan_in / self.group_size) if self.group_size else 1

    def overhead_bits(self, bits: int, rows: int, fan_in: int, full_bits: int) -> int:
        """Bits of scales, zero points and codebooks beside the codes of a weight.

        Args:
            bits: width of a code.
            rows: output channels.
            fan_in: values of an output channel.
            full_bits: the paper's P, in which it stores scales and codebooks, 16 or 32.
        """
        return sum(
            (full_bits if dtype == "float16" else BITS_OF[dtype]) * math.prod(shape)
            for dtype, shape in self.stored(bits, rows, fan_in).values()
        )
